//! Node clocks that can be set: a small library that is preloaded into a server and answers its time calls by a file.
#![allow(dead_code, reason = "each user needs its own part of it")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const SOURCE: &str = include_str!("../../../../cluster/clock.c");

/// Names the file; see the source.
const FILE_VARIABLE: &str = "QUORLOCK_CLOCK";

/// The compiled library.
pub struct Shim(PathBuf);

impl Shim {
    /// Compiles it into this folder, by the compiler `cc`.
    pub fn build(dir: &Path) -> io::Result<Self> {
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        fs::write(&source, SOURCE)?;
        let compiled = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .stdin(Stdio::null())
            .output()?;
        if !compiled.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&compiled.stderr).trim().to_owned()));
        }
        Ok(Self(library))
    }
}

/// One node's clock, as the file says.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    setting: Setting,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Setting {
    /// µs ahead of the machine's clock.
    offset: i64,
    ppm: i64,
    /// From when on it has run at that rate, in µs since 1970.
    since: i64,
}

impl Setting {
    fn offset_at(self, now: i64) -> i64 {
        self.offset + (now - self.since) * self.ppm / 1_000_000
    }

    fn stepped(self, by: i64) -> Self {
        Self { offset: self.offset + by, ..self }
    }

    fn at_rate(self, ppm: i64, now: i64) -> Self {
        Self { offset: self.offset_at(now), ppm, since: now }
    }
}

impl Clock {
    /// A right one.
    pub fn new(file: PathBuf) -> io::Result<Self> {
        let clock = Self { file, setting: Setting::default() };
        clock.write()?;
        Ok(clock)
    }

    /// What a server needs in its environment to go by it.
    pub fn environment(&self, shim: &Shim) -> Vec<(String, String)> {
        let variable = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        vec![variable("LD_PRELOAD", &shim.0), variable(FILE_VARIABLE, &self.file)]
    }

    /// How far it was set ahead of the machine's clock, in µs.
    pub fn offset(&self) -> i64 {
        self.setting.offset
    }

    /// Both in µs.
    pub fn step(&mut self, by: i64) -> io::Result<()> {
        self.setting = self.setting.stepped(by);
        self.write()
    }

    /// Too fast by so many millionths, from now on.
    pub fn run_at(&mut self, ppm: i64) -> io::Result<()> {
        self.setting = self.setting.at_rate(ppm, wall_micros());
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let Setting { offset, ppm, since } = self.setting;
        let draft = self.file.with_extension("draft");
        fs::write(&draft, format!("{offset} {ppm} {since}\n"))?;
        fs::rename(&draft, &self.file)
    }
}

fn wall_micros() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_rate_does_not_make_the_clock_leap() {
        let fast = Setting::default().stepped(500).at_rate(4000, 1_000_000);
        assert_eq!(fast.offset_at(1_000_000), 500);
        assert_eq!(fast.offset_at(2_000_000), 4500);
        let slow = fast.at_rate(-1000, 2_000_000);
        assert_eq!(slow.offset_at(2_000_000), 4500);
        assert_eq!(slow.offset_at(3_000_000), 3500);
    }
}
