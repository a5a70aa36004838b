//! Node clocks that can be set: a small library that is preloaded into a server and answers its time calls from a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::server::Server;

const SOURCE: &str = include_str!("clock.c");

/// The variable with the path of the file; see the source.
const FILE_VARIABLE: &str = "QUORLOCK_CLOCK";

/// The name of the compiled library.
const LIBRARY: &str = "clock.so";

/// The allowed difference between a server's TIME and its clock, in µs: the library reads its file every 5 ms.
const TIME_TOLERANCE: i64 = 50_000;
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// In µs.
const TRIED_STEP: i64 = 3600 * 1_000_000;

/// The compiled library. Servers start in folders beside it.
pub struct Shim(PathBuf);

impl Shim {
    /// Compiles it into this folder, by the compiler `cc`.
    pub fn build(dir: &Path) -> io::Result<Self> {
        let (source, library) = (dir.join("clock.c"), dir.join(LIBRARY));
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
        Ok(Self(dir.to_owned()))
    }

    /// Starts a server with it and sets its clock. An error says why clocks cannot be set on this machine.
    pub fn prove(&self) -> io::Result<()> {
        let mut clock = Clock::new(self.0.join("clock-tried"))?;
        let server = Server::start(self.0.join("tried"), &[], &clock.environment())?;
        let mut redis = server.try_redis().map_err(io::Error::other)?;
        clock.step(TRIED_STEP)?;
        match clock.unlike(&mut redis).map_err(io::Error::other)? {
            Some(why) => Err(io::Error::other(format!("a server does not take the library's time: {why}"))),
            None => Ok(()),
        }
    }
}

/// The clock of one node.
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
    /// Creates a clock that is right, with this file.
    pub fn new(file: PathBuf) -> io::Result<Self> {
        let clock = Self { file: std::path::absolute(file)?, setting: Setting::default() };
        clock.write()?;
        Ok(clock)
    }

    /// Returns the environment of a server that goes by it. The loader takes a space or a colon for the end of a path, and any
    /// folder above may have one: so the path begins in the folder of the server, which lies beside the library.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = ("LD_PRELOAD".to_owned(), format!("../{LIBRARY}"));
        vec![library, (FILE_VARIABLE.to_owned(), self.file.display().to_string())]
    }

    /// Returns how the TIME of this server differs from the clock, if it does.
    pub fn unlike(&self, redis: &mut redis::Connection) -> redis::RedisResult<Option<String>> {
        let limit = Instant::now() + TIME_LIMIT;
        loop {
            let before = wall_micros();
            let (seconds, micros): (i64, i64) = redis::cmd("TIME").query(redis)?;
            let after = wall_micros();
            let time = seconds * 1_000_000 + micros;
            let (least, most) = (before + self.setting.offset_at(before), after + self.setting.offset_at(after));
            if (least - TIME_TOLERANCE..=most + TIME_TOLERANCE).contains(&time) {
                return Ok(None);
            }
            if Instant::now() > limit {
                let [is, ought] = [time - after, self.setting.offset_at(after)].map(|micros| micros / 1000);
                return Ok(Some(format!("it is {is} ms ahead of the machine's clock and not {ought} ms")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns how far it was set ahead of the machine's clock, in µs.
    pub fn offset(&self) -> i64 {
        self.setting.offset
    }

    /// Sets it ahead, or back, by this number of µs.
    pub fn step(&mut self, by: i64) -> io::Result<()> {
        self.setting = self.setting.stepped(by);
        self.write()
    }

    /// Lets it run too fast by this number of millionths, from now on.
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
    fn a_new_rate_does_not_step_the_clock() {
        let fast = Setting::default().stepped(500).at_rate(4000, 1_000_000);
        assert_eq!(fast.offset_at(1_000_000), 500);
        assert_eq!(fast.offset_at(2_000_000), 4500);
        let slow = fast.at_rate(-1000, 2_000_000);
        assert_eq!(slow.offset_at(2_000_000), 4500);
        assert_eq!(slow.offset_at(3_000_000), 3500);
    }
}
