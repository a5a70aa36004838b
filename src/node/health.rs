//! Can this server's votes be counted on? What it says of itself when a connection is made.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value, from_redis_value};

use super::introduce::said;

/// A server whose run id stands in this key was declared to be new: it has no earlier votes to forget. Whoever starts a
/// new cluster sets it (`cluster/up` does); a restart changes the run id and so ends the declaration.
const DECLARED_NEW: &str = "quorlock:new";

/// Stands on a server that logs every write before it answers, once it was trusted. A process that still finds it after a
/// restart has its log; one that does not was given an empty disk.
const KEPT: &str = "quorlock:kept";

/// The command that leaves that mark, for thirty days from the last connection.
pub(super) fn keep() -> redis::Cmd {
    let mut command = redis::cmd("SET");
    command.arg(KEPT).arg(1).arg("EX").arg(30 * 24 * 3600);
    command
}

/// What a server says of itself. What it does not say, or the user may not ask, counts against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) run_id: Option<String>,
    /// How long this process has run, at least.
    pub(super) uptime: Duration,
    pub(super) is_replica: bool,
    /// The policy by which it may throw keys away.
    pub(super) evicts_by: Option<String>,
    /// It logs every write before it answers.
    pub(super) is_durable: bool,
    /// Its restart, if there was one, cannot have cost a vote.
    pub(super) keeps_votes: bool,
}

/// What to ask a server of itself.
pub(super) fn questions() -> [Cmd; 4] {
    let [info, mut config, mut kept, mut declared] = ["INFO", "CONFIG", "EXISTS", "GET"].map(redis::cmd);
    config.arg("GET").arg("appendfsync");
    kept.arg(KEPT);
    declared.arg(DECLARED_NEW);
    [info, config, kept, declared]
}

/// Its answers to them. What it refuses to say is left open.
pub(super) fn judge(answers: Vec<Value>) -> Health {
    fn next<T: FromRedisValue>(answers: &mut impl Iterator<Item = Value>) -> Option<T> {
        answers.next().and_then(|answer| said(answer).ok()).and_then(|value| from_redis_value(value).ok())
    }
    let answers = &mut answers.into_iter();
    let info: String = next(answers).unwrap_or_default();
    let appendfsync = next::<HashMap<String, String>>(answers).and_then(|mut settings| settings.remove("appendfsync"));
    let kept = next(answers).unwrap_or(false);
    let declared = next::<Option<String>>(answers).flatten();
    weigh(&info, appendfsync.as_deref(), kept, declared.as_deref())
}

fn weigh(info: &str, appendfsync: Option<&str>, kept: bool, declared_new: Option<&str>) -> Health {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let run_id = field("run_id").map(str::to_owned);
    let limited = field("maxmemory").is_some_and(|limit| limit != "0");
    let policy = field("maxmemory_policy").filter(|policy| limited && *policy != "noeviction");
    let is_durable = field("aof_enabled") == Some("1") && appendfsync == Some("always");
    let is_new = run_id.is_some() && run_id.as_deref() == declared_new;
    Health {
        // The difference of two times that were cut to seconds: it may say up to a second too much.
        uptime: Duration::from_secs(
            field("uptime_in_seconds").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0).saturating_sub(1),
        ),
        is_replica: field("role").is_some_and(|role| role != "master"),
        evicts_by: policy.map(str::to_owned),
        is_durable,
        keeps_votes: (is_durable && kept) || is_new,
        run_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nrun_id:abc\r\nuptime_in_seconds:7\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
                        role:master\r\naof_enabled:1\r\n";

    #[test]
    fn a_server_in_order() {
        let health = weigh(INFO, Some("everysec"), true, None);
        let expected = Health { run_id: Some("abc".to_owned()), uptime: Duration::from_secs(6), ..Health::default() };
        assert_eq!(health, expected);
    }

    #[test]
    fn only_a_kept_log_or_a_declaration_keeps_votes() {
        let keeps = |info: &str, fsync, kept, new| weigh(info, fsync, kept, new).keeps_votes;
        assert!(keeps(INFO, Some("always"), true, None));
        assert!(!keeps(INFO, Some("always"), false, None), "its disk may be another one");
        assert!(!keeps(INFO, Some("everysec"), true, None));
        assert!(!keeps(INFO, None, true, None));
        assert!(!keeps(&INFO.replace("aof_enabled:1", "aof_enabled:0"), Some("always"), true, None));
        assert!(keeps(INFO, None, false, Some("abc")));
        assert!(!keeps(INFO, None, false, Some("another process")));
        assert!(!keeps("", None, false, Some("")));
        assert!(weigh(INFO, Some("always"), false, None).is_durable);
    }

    #[test]
    fn replicas_and_evictors_are_told_apart() {
        assert!(weigh(&INFO.replace("master", "slave"), None, false, None).is_replica);
        let limited = INFO.replace("maxmemory:0", "maxmemory:1000");
        assert_eq!(weigh(&limited, None, false, None).evicts_by.as_deref(), Some("allkeys-lru"));
        assert_eq!(weigh(&limited.replace("allkeys-lru", "noeviction"), None, false, None).evicts_by, None);
    }
}
