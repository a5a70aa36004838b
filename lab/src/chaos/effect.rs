//! Faults that make a server lose its data while its connections stay open, each with a check of the effect.

use std::time::{Duration, Instant};

use quorlock_testkit::server::info_field;
use redis::{Connection, RedisResult, cmd, pipe};

const RECORD: &str = "quorlock:node";

/// The database that database 0 is exchanged with.
const OTHER_DATABASE: usize = 9;

/// How long a node may take to copy another one.
const COPY_LIMIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Whether a fault had its effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    Seen,
    /// The node could not be asked, because of another fault.
    Unasked,
    /// It had no effect.
    Failed(String),
}

impl Proof {
    fn of(is_so: bool, otherwise: impl FnOnce() -> String) -> Self {
        if is_so { Self::Seen } else { Self::Failed(otherwise()) }
    }

    /// Returns why a fault on these nodes does not count as done, if one of them shows no effect.
    pub fn failure(proofs: &[Self]) -> Option<String> {
        proofs.iter().find_map(|proof| match proof {
            Self::Failed(why) => Some(why.clone()),
            _ => None,
        })
    }

    /// Returns whether no node could be asked.
    pub fn are_missing(proofs: &[Self]) -> bool {
        !proofs.is_empty() && proofs.iter().all(|proof| *proof == Self::Unasked)
    }
}

/// Sends FLUSHALL. In the same transaction, the database must be empty.
pub fn flush(redis: &mut Connection) -> RedisResult<Proof> {
    let (left,): (usize,) = pipe().atomic().cmd("FLUSHALL").ignore().cmd("DBSIZE").query(redis)?;
    Ok(Proof::of(left == 0, || format!("{left} keys are left after FLUSHALL")))
}

/// Sends SWAPDB with an empty database. In the same transaction, the node must have no record.
pub fn swap(redis: &mut Connection) -> RedisResult<Proof> {
    let (records,): (usize,) = pipe()
        .atomic()
        .cmd("SELECT")
        .arg(OTHER_DATABASE)
        .ignore()
        .cmd("FLUSHDB")
        .ignore()
        .cmd("SELECT")
        .arg(0)
        .ignore()
        .cmd("SWAPDB")
        .arg(0)
        .arg(OTHER_DATABASE)
        .ignore()
        .cmd("EXISTS")
        .arg(RECORD)
        .query(redis)?;
    Ok(Proof::of(records == 0, || "the node still has its record after SWAPDB".to_owned()))
}

/// Returns the word of the node's record.
pub fn word(redis: &mut Connection) -> RedisResult<Option<String>> {
    let record: Option<String> = cmd("GET").arg(RECORD).query(redis)?;
    Ok(record.map(|record| first_word(&record)))
}

fn first_word(record: &str) -> String {
    record.split(' ').next().unwrap_or_default().to_owned()
}

pub fn run_id(redis: &mut Connection) -> RedisResult<Option<String>> {
    let info: String = cmd("INFO").arg("server").query(redis)?;
    Ok(info_field(&info, "run_id:").map(str::to_owned))
}

/// Makes the node a replica of the one on this port.
pub fn follow(redis: &mut Connection, port: u16) -> RedisResult<Proof> {
    cmd("REPLICAOF").arg("127.0.0.1").arg(port).query::<()>(redis)?;
    copied(redis)
}

/// Waits until the node has copied the one that it is a replica of.
pub fn copied(redis: &mut Connection) -> RedisResult<Proof> {
    let limit = Instant::now() + COPY_LIMIT;
    loop {
        let info: String = cmd("INFO").arg("replication").query(redis)?;
        if info_field(&info, "master_link_status:") == Some("up") {
            return Ok(Proof::Seen);
        }
        if Instant::now() > limit {
            return Ok(Proof::Failed(format!("no copy of the other node within {} s", COPY_LIMIT.as_secs())));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Makes a replica a master. In the same transaction, its record must be that of the copied node, and no longer its own, which
/// had the word `before`.
pub fn promote(redis: &mut Connection, before: Option<&str>) -> RedisResult<Proof> {
    let mut promote = pipe();
    promote.atomic().cmd("REPLICAOF").arg("NO").arg("ONE").ignore().cmd("GET").arg(RECORD);
    let limit = Instant::now() + COPY_LIMIT;
    let (record,): (Option<String>,) = loop {
        match promote.query(redis) {
            // It is still loading the copied data.
            Err(error) if error.code() == Some("LOADING") && Instant::now() < limit => std::thread::sleep(LOOK_EVERY),
            answer => break answer?,
        }
    };
    let word = record.as_deref().map(first_word);
    let info: String = cmd("INFO").arg("replication").query(redis)?;
    if info_field(&info, "role:") != Some("master") {
        return Ok(Proof::Failed("the node is still a replica".to_owned()));
    }
    Ok(Proof::of(word.as_deref() != before, || "the node still has its own record".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_without_effect_fails_the_fault() {
        let failed = Proof::Failed("late".to_owned());
        assert_eq!(Proof::failure(&[Proof::Seen, Proof::Unasked]), None);
        assert_eq!(Proof::failure(&[Proof::Unasked, failed.clone()]), Some("late".to_owned()));
        let missing = [&[Proof::Unasked][..], &[Proof::Unasked, failed], &[Proof::Seen, Proof::Unasked], &[]];
        assert_eq!(missing.map(Proof::are_missing), [true, false, false, false]);
    }

    #[test]
    fn the_word_is_the_first_field_of_the_record() {
        assert_eq!(first_word("00ff 10000 0 0 300000 - 1 abc"), "00ff");
    }
}
