//! The `quorlock` command against real redis-server processes: exit codes, nesting, signals, loss of the lock, and the
//! output of `inspect`.
//!
//! Programs under the lock are small shell scripts that report through files; tests wait for the files, never for time.

mod codes;
mod danger;
mod declare_new;
mod doctor;
mod escaping;
mod inspect;
mod lead;
mod list;
mod manual;
mod names;
mod nesting;
mod nodes;
mod place;
mod pty;
mod release;
mod rest;
mod revoke;
mod rights;
mod sandbox;
mod secrets;
mod set_list;
mod signals;
mod status;
mod terminal;
mod tls;
#[cfg(feature = "tui")]
mod top;
mod waiting;
