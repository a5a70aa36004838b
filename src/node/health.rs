//! What a server says of itself when a connection is made, and whether it can have a vote at all.

use redis::{Cmd, Value};

use super::server_error::{node_error, said};
use crate::error::NodeError;
use crate::protocol::{Process, Record};

/// The node record.
pub const RECORD: &str = "quorlock:node";

/// From this number on, a list key holds no length: the list is being changed, from a list of `number % CHANGING` nodes (0
/// for none) to one of `number / CHANGING`.
pub const CHANGING: usize = 1000;

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Health {
    /// Tells servers apart that are in the list twice.
    pub(super) run_id: String,
    pub(super) process: Process,
    /// The node record as it is, and as it reads.
    pub(super) record: Option<(String, Record)>,
    /// How many nodes the list of this client's prefix has.
    pub(super) listed: Option<usize>,
    /// Its clock, in µs.
    pub(super) clock: u64,
}

impl Health {
    /// Returns whether the server's record holds for this process of it.
    pub(super) fn has_own_record(&self) -> bool {
        self.record.as_ref().is_some_and(|(_, record)| record.is_of(&self.process))
    }
}

/// A run id has 40 bytes. The client keeps those of servers that have gone.
const MOST_RUN_ID: usize = 64;

/// Returns what to ask a server of itself. `list` is the key of the list.
pub(super) fn questions(list: &[u8]) -> [Cmd; 3] {
    let [info, mut stored, time] = ["INFO", "MGET", "TIME"].map(redis::cmd);
    stored.arg(RECORD).arg(list);
    [info, stored, time]
}

/// Reads the answers to them.
///
/// # Errors
///
/// What keeps it from voting. What it does not say counts against it.
pub(super) fn judge(answers: [Value; 3], database: i64) -> Result<Health, NodeError> {
    let [info, stored, time] = answers;
    let info: String = answer(info, "INFO")?;
    let (record, listed): (Option<Vec<u8>>, Option<Vec<u8>>) = answer(stored, "MGET")?;
    let (seconds, micros): (u64, u64) = answer(time, "TIME")?;
    let process = weigh(&info, database)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let record = record.and_then(text).and_then(|text| Record::parse(&text).map(|record| (text, record)));
    let listed = listed.and_then(text).and_then(|text| text.parse().ok());
    let clock = seconds.saturating_mul(1_000_000).saturating_add(micros);
    let run_id = field(&info, "run_id").unwrap_or_default().to_owned();
    if run_id.len() > MOST_RUN_ID {
        return Err(NodeError::Nonsense(format!("a run id of {} bytes", run_id.len())));
    }
    Ok(Health { run_id, process, record, listed, clock })
}

fn answer<T: redis::FromRedisValue>(value: Value, command: &str) -> Result<T, NodeError> {
    let value = said(value).map_err(|error| match error.code() {
        Some("NOPERM") => NodeError::NotAllowed { command: forbidden(command, error.detail().unwrap_or_default()) },
        _ => node_error(&error),
    })?;
    T::from_redis_value(value).map_err(|_| NodeError::Nonsense(format!("an answer to {command} that cannot be read")))
}

/// What the user may not do: run the command, or run it on these keys.
fn forbidden(command: &str, detail: &str) -> String {
    if command != "MGET" || detail.contains(" run the ") || !detail.contains(" key") {
        return command.to_owned();
    }
    "MGET of the keys quorlock:node and quorlock:list:PREFIX with this client's prefix".to_owned()
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn weigh(info: &str, database: i64) -> Result<Process, NodeError> {
    let field = |name| field(info, name);
    if field("cluster_enabled") == Some("1") || field("redis_mode") == Some("cluster") {
        return Err(NodeError::ClusterMode);
    }
    let limited = field("maxmemory").is_some_and(|limit| limit != "0");
    if let Some(policy) = field("maxmemory_policy").filter(|policy| limited && *policy != "noeviction") {
        return Err(NodeError::MayEvict { policy: policy.to_owned() });
    }
    let (Some(run_id), Some(role), Some(_)) = (field("run_id"), field("role"), field("maxmemory_policy")) else {
        return Err(NodeError::NotAllowed { command: "INFO".to_owned() });
    };
    if role != "master" {
        return Err(NodeError::Replica);
    }
    let was_replica = field("master_replid2").is_none_or(|id| id.bytes().any(|byte| byte != b'0'));
    Ok(Process::new(run_id, database, field("aof_enabled") == Some("1"), was_replica))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_mode:standalone\r\nrun_id:abc\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
                        role:master\r\nmaster_replid2:0000\r\naof_enabled:1\r\n";

    #[test]
    fn a_server_in_order() {
        assert_eq!(weigh(INFO, 0), Ok(Process::new("abc", 0, true, false)));
        assert_eq!(weigh(&INFO.replace("aof_enabled:1", "aof_enabled:0"), 0), Ok(Process::new("abc", 0, false, false)));
    }

    #[test]
    fn a_server_that_was_a_replica_is_told_apart() {
        assert_eq!(weigh(&INFO.replace("replid2:0000", "replid2:00f0"), 0), Ok(Process::new("abc", 0, true, true)));
        let silent = INFO.replace("master_replid2:0000\r\n", "");
        assert_eq!(weigh(&silent, 0), Ok(Process::new("abc", 0, true, true)), "what is not said counts against it");
    }

    #[test]
    fn servers_that_have_no_vote() {
        assert_eq!(weigh(&INFO.replace("master\r\n", "slave\r\n"), 0), Err(NodeError::Replica));
        assert_eq!(weigh(&INFO.replace("standalone", "cluster"), 0), Err(NodeError::ClusterMode));
        let limited = INFO.replace("maxmemory:0", "maxmemory:1000");
        assert_eq!(weigh(&limited, 0), Err(NodeError::MayEvict { policy: "allkeys-lru".to_owned() }));
        assert!(weigh(&limited.replace("allkeys-lru", "noeviction"), 0).is_ok());
        let unknown = Err(NodeError::NotAllowed { command: "INFO".to_owned() });
        for part in ["run_id:abc\r\n", "role:master\r\n", "maxmemory_policy:allkeys-lru\r\n"] {
            assert_eq!(weigh(&INFO.replace(part, ""), 0), unknown, "without {part}");
        }
    }

    #[test]
    fn a_refusal_of_keys_is_told_apart_from_one_of_the_command() {
        let keys = "this user has no permissions to access one of the keys used as arguments";
        assert!(forbidden("MGET", keys).starts_with("MGET of the keys quorlock:node and quorlock:list:PREFIX"));
        assert!(forbidden("MGET", "No permissions to access a key").starts_with("MGET of the keys"));
        assert_eq!(forbidden("MGET", "User key has no permissions to run the 'mget' command"), "MGET");
        assert_eq!(forbidden("INFO", "this user has no permissions to run the 'info' command"), "INFO");
    }

    #[test]
    fn a_server_that_does_not_let_the_client_ask_has_no_vote() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let refused = redis::parse_redis_value(b"-NOPERM this user has no permissions to run the 'info' command\r\n");
        let stored = Value::Array(vec![text("00000000000000af 10000 0 0 300000 - 1 abc"), Value::Nil]);
        let time = Value::Array(vec![text("17"), text("5")]);
        let health = judge([text(INFO), stored.clone(), time.clone()], 0).expect("a server in order");
        assert_eq!((health.clock, health.listed), (17_000_005, None));
        assert_eq!(health.record.map(|(_, record)| record.word), Some(0xaf));
        let long = INFO.replace("run_id:abc", &format!("run_id:{}", "a".repeat(65)));
        let no_redis = judge([text(&long), stored.clone(), time.clone()], 0);
        assert_eq!(no_redis, Err(NodeError::Nonsense("a run id of 65 bytes".to_owned())));
        let denied = judge([refused.expect("an error"), stored, time], 0);
        assert_eq!(denied, Err(NodeError::NotAllowed { command: "INFO".to_owned() }));
    }
}
