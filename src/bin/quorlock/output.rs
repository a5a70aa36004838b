//! The flags that say how a result is written.

use clap::{Args, ValueEnum};

/// The flags of a command that prints a table or JSON, and perhaps other formats (`F`).
#[derive(Args)]
pub struct OutputFlags<F: ValueEnum + Send + Sync + 'static> {
    /// How the result is written.
    #[arg(long, short, value_enum, default_value = "table")]
    output: F,

    /// The same as `--output json`.
    #[arg(long, conflicts_with = "output")]
    json: bool,

    /// Print no head line.
    #[arg(long)]
    no_headers: bool,
}

/// The formats of a result that is a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// How a result is written.
#[derive(Clone, Copy)]
pub struct Output<F> {
    pub format: F,
    /// A table has a head line.
    pub heads: bool,
}

impl<F: ValueEnum + Send + Sync + 'static> OutputFlags<F> {
    /// `json` is what `--json` means.
    pub fn check(self, json: F) -> Output<F> {
        Output { format: if self.json { json } else { self.output }, heads: !self.no_headers }
    }
}
