//! A password that is asked for at each connection.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::environment::{Beside, Environment, within};

/// What was asked for, or the words of the error.
type Asked = Result<String, String>;

/// Passwords are asked for in threads, one for each source: a disk or a service may hang.
static ASKING: LazyLock<Beside<u64, Asked>> = LazyLock::new(Beside::default);
static SOURCES: AtomicU64 = AtomicU64::new(0);

/// How long an attempt to connect waits for the password.
const LIMIT: Duration = Duration::from_secs(2);

/// Where the password is from.
#[derive(Clone)]
pub(crate) struct PasswordSource(Arc<Shared>);

struct Shared {
    id: u64,
    kind: Kind,
}

enum Kind {
    File(PathBuf),
    Function(Box<dyn Fn() -> Asked + Send + Sync>),
}

impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.said())
    }
}

impl PasswordSource {
    pub(super) fn file(path: PathBuf) -> Self {
        Self::new(Kind::File(path))
    }

    pub(super) fn function<E>(function: impl Fn() -> Result<String, E> + Send + Sync + 'static) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let in_words = move || function().map_err(|error| error.into().to_string());
        Self::new(Kind::Function(Box::new(in_words)))
    }

    fn new(kind: Kind) -> Self {
        Self(Arc::new(Shared { id: SOURCES.fetch_add(1, Ordering::Relaxed), kind }))
    }

    /// Returns the password as it is now.
    pub(super) async fn ask(&self, environment: &dyn Environment) -> io::Result<String> {
        let shared = Arc::clone(&self.0);
        let asked = within(environment, LIMIT, ASKING.ask(shared.id, move || shared.ask())).await;
        let failed = |why: &str| io::Error::other(format!("{} cannot be used: {why}", self.0.said()));
        let asked = asked.ok_or_else(|| failed("it is still being read"))?;
        asked.map_err(|error| failed(&error.to_string()))?.map_err(|why| failed(&why))
    }
}

impl Shared {
    /// It may block.
    fn ask(&self) -> Asked {
        match &self.kind {
            Kind::File(path) => read(path),
            Kind::Function(function) => function(),
        }
    }

    fn said(&self) -> String {
        match &self.kind {
            Kind::File(path) => format!("the password file {}", path.display()),
            Kind::Function(_) => "the password of the program's function".to_owned(),
        }
    }
}

/// Reads a password, without the line's end.
fn read(path: &Path) -> Asked {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let password = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() { Err("it is empty".to_owned()) } else { Ok(password.to_owned()) }
}
