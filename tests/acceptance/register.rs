//! The register outside the nodes: a number in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub struct Register(PathBuf);

impl Register {
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self(path.as_ref().to_owned())
    }

    pub fn create(path: impl AsRef<Path>) -> Self {
        let register = Self::new(path);
        register.write(0);
        register
    }

    pub fn read(&self) -> u64 {
        fs::read_to_string(&self.0).expect("the register").trim().parse().expect("a number")
    }

    fn write(&self, value: u64) {
        fs::write(&self.0, value.to_string()).expect("the register");
    }

    /// Loses an update when two do it at once.
    pub async fn add(&self, amount: u64, sleep: Duration) -> u64 {
        let value = self.read() + amount;
        tokio::time::sleep(sleep).await;
        self.write(value);
        value
    }
}
