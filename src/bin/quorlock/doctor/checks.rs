//! The checks, as functions of what a node says.

use std::collections::BTreeSet;
use std::time::Duration;

use humantime::format_duration;
use quorlock::text::{Printable, readable};
use quorlock::{ErrorKind, NodeError};

use super::finding::{Finding, Grade};
use crate::messages::quoted;
use crate::nodes::keeps::Keeps;
use crate::status::reading::{NodeStatus, State, Status};

/// What a node has answered.
#[derive(Debug)]
pub struct Answers {
    pub info: String,
    pub keeps: Keeps,
    /// By how much the node's clock is ahead of this machine's, in ms.
    pub offset_ms: i64,
    /// By how much that changed while it was watched.
    pub drift_ms: i64,
    pub watched: Duration,
    /// The connection's user, where it may ask.
    pub user: Option<String>,
    pub missing_rights: Vec<String>,
    /// A lock key without an end; the error of a search that the user may not make.
    pub endless: Result<Option<Vec<u8>>, NodeError>,
}

/// A node under examination.
pub struct Target {
    pub name: String,
    /// How `redis-cli` reaches it.
    pub client: String,
    /// The flag that names the prefix for other subcommands, with a space before it. Empty for the default prefix.
    pub prefix_flag: String,
}

/// From this offset on the clock is worth a look, in ms.
const OFFSET_WARN: i64 = 1_000;
/// From here on the node refuses ballots of this machine, or nearly so, in ms.
const OFFSET_FAIL: i64 = 240_000;
/// What the drift allowance covers: 1 %. What the measurement itself may be off by, in ms.
const DRIFT_WARN: f64 = 0.01;
const DRIFT_NOISE_MS: i64 = 20;
/// A longer key is not printed in a command, in bytes.
const LONGEST_COPIED: usize = 120;
/// So much of a limit may be used.
const FULL: f64 = 0.8;

fn found(grade: Grade, node: &Target, what: impl Into<String>, mend: Option<String>) -> Finding {
    Finding { grade, node: Some(node.name.clone()), what: what.into(), mend }
}

fn on(node: &Target, command: &str) -> String {
    format!("{} {command}", node.client)
}

pub fn quorum(status: &Status) -> Finding {
    let spare = status.voting().checked_sub(status.quorum());
    let (grade, mend) = match spare {
        Some(0) => (Grade::Warn, Some("look at the nodes without a vote, before one more fails".to_owned())),
        Some(_) => (Grade::Ok, None),
        None => (Grade::Fail, Some("look at the nodes without a vote".to_owned())),
    };
    // One node alone never has one to spare.
    let grade = if status.nodes.len() == 1 && spare.is_some() { Grade::Ok } else { grade };
    let mend = mend.filter(|_| grade > Grade::Ok);
    Finding { grade, node: None, what: figures(&status.summary()).to_owned(), mend }
}

/// Returns a summary without its OK, as a grade stands before it.
pub fn figures(summary: &str) -> &str {
    summary.strip_prefix("OK: ").unwrap_or(summary)
}

/// Passwords that cross a network in the clear.
pub fn plain_passwords<'a>(urls: impl Iterator<Item = &'a str>) -> Option<Finding> {
    let is_plain = |url: &&str| {
        let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("valkey://"));
        let Some((credentials, host)) = rest.and_then(|rest| rest.rsplit_once('@')) else { return false };
        let is_here = ["127.", "localhost", "[::1]"].iter().any(|here| host.starts_with(here));
        credentials.contains(':') && !is_here
    };
    let count = urls.filter(is_plain).count();
    let nodes = if count == 1 { "1 node gets".to_owned() } else { format!("{count} nodes get") };
    (count > 0).then(|| Finding {
        grade: Grade::Warn,
        node: None,
        what: format!("{nodes} a password over a connection that is not encrypted"),
        mend: Some("use rediss:// URLs (build with --features tls)".to_owned()),
    })
}

/// Why the node has no vote, from its connection.
pub fn no_vote(node: &Target, error: &NodeError) -> Finding {
    let mend = match error {
        NodeError::MayEvict { .. } => Some(on(node, "CONFIG SET maxmemory-policy noeviction")),
        NodeError::Replica => Some("list its master, or make it one and start it with an empty data folder".to_owned()),
        _ if error.kind() == ErrorKind::Misconfigured => None, // The message says it.
        NodeError::Redis { .. } => Some("check the user and the password in its URL".to_owned()),
        NodeError::NoAnswer(_) | NodeError::Silent(_) => {
            Some(format!("look whether the server hangs or is overloaded: {}", on(node, "PING")))
        }
        _ => {
            let certificates =
                if node.client.contains("rediss://") { ", or the certificates of both sides" } else { "" };
            Some(format!("start the server, or check the way to it{certificates}: {}", on(node, "PING")))
        }
    };
    found(Grade::Fail, node, error.to_string(), mend)
}

/// Whether all nodes know the same longest lease: a node that forgets leases is in quarantine for as long as the others know.
pub fn longest_leases(status: &Status) -> Option<Finding> {
    let known = status.nodes.iter().filter_map(|node| node.facts.as_ref()?.longest_lease);
    let known: BTreeSet<Duration> = known.collect();
    let longest = *known.last()?;
    let texts: Vec<String> = known.iter().map(|lease| format_duration(*lease).to_string()).collect();
    let (grade, what, mend) = if known.len() == 1 {
        (Grade::Ok, format!("the longest lease is {}", texts[0]), None)
    } else {
        let mend = format!("set it in every client: --longest-lease {}", format_duration(longest));
        (Grade::Warn, format!("the nodes know different longest leases: {}", texts.join(", ")), Some(mend))
    };
    Some(Finding { grade, node: None, what, mend })
}

/// Whether the node has a vote, by its record.
pub fn vote(node: &Target, known: &NodeStatus) -> Finding {
    match &known.state {
        State::Voting => {
            let server = known.facts.as_ref().map(|facts| format!(" ({} {}, RESP3)", facts.server, facts.version));
            found(Grade::Ok, node, format!("it has a vote{}", server.unwrap_or_default()), None)
        }
        State::Quarantined(left) => {
            let what = format!("in quarantine for {} s, as it may have forgotten leases", left.as_secs() + 1);
            found(Grade::Warn, node, what, Some("wait".to_owned()))
        }
        State::Undeclared => {
            let declare = format!("quorlock nodes declare-new{}", node.prefix_flag);
            let mend = format!(
                "{declare}, before the first client connects, if no client has ever used the nodes. If it has lost its data, \
                 nothing: a lease may be in force, and the first client that connects begins a quarantine"
            );
            found(Grade::Warn, node, "it has no record: it is new, or has lost its data", Some(mend))
        }
        State::Not(error) => no_vote(node, error),
    }
}

/// All other checks of a node.
pub fn all(node: &Target, answers: &Answers) -> Vec<Finding> {
    let checks = [persistence, replicas, clock, memory, connections, rights, endless];
    checks.into_iter().map(|check| check(node, answers)).collect()
}

fn field<'a>(answers: &'a Answers, name: &str) -> &'a str {
    let value = answers.info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(str::trim).unwrap_or_default()
}

fn count(answers: &Answers, name: &str) -> u64 {
    field(answers, name).parse().unwrap_or(0)
}

fn persistence(node: &Target, answers: &Answers) -> Finding {
    if answers.keeps.is_kept() {
        return found(Grade::Ok, node, "it keeps every write", None);
    }
    let why = answers.keeps.why();
    let Some(setting) = answers.keeps.setting() else {
        return found(Grade::Warn, node, format!("it is not known whether it keeps every write: {why}"), None);
    };
    let now = on(node, &format!("CONFIG SET {setting}"));
    let mend = format!("{now}, and in its configuration file; then quorlock nodes set-list{}", node.prefix_flag);
    found(Grade::Warn, node, format!("it is in quarantine after each restart ({why})"), Some(mend))
}

fn replicas(node: &Target, answers: &Answers) -> Finding {
    match count(answers, "connected_slaves") {
        0 => found(Grade::Ok, node, "a master without replicas", None),
        some => {
            let replicas = if some == 1 { "replica" } else { "replicas" };
            let what =
                format!("it has {some} {replicas}: one that is promoted in its place has forgotten acknowledged votes");
            found(Grade::Warn, node, what, Some("remove the replicas, and let nothing fail over to them".to_owned()))
        }
    }
}

fn clock(node: &Target, answers: &Answers) -> Finding {
    let ntp = || Some("run NTP on it and on this machine".to_owned());
    let ms = answers.offset_ms;
    let allowed = answers.watched.as_secs_f64() * 1000.0 * DRIFT_WARN;
    let is_fast = answers.drift_ms.abs() > DRIFT_NOISE_MS && as_f64(answers.drift_ms.unsigned_abs()) > allowed;
    match ms.abs() {
        OFFSET_FAIL.. => found(Grade::Fail, node, format!("its clock is off by {ms:+} ms"), ntp()),
        _ if is_fast => {
            let what =
                format!("its clock moved by {:+} ms within {} ms", answers.drift_ms, answers.watched.as_millis());
            found(Grade::Warn, node, what, ntp())
        }
        OFFSET_WARN.. => found(Grade::Warn, node, format!("its clock is off by {ms:+} ms"), ntp()),
        _ => found(Grade::Ok, node, format!("its clock is off by {ms:+} ms"), None),
    }
}

fn memory(node: &Target, answers: &Answers) -> Finding {
    let (used, limit) = (count(answers, "used_memory"), count(answers, "maxmemory"));
    if limit == 0 || as_f64(used) < FULL * as_f64(limit) {
        return found(Grade::Ok, node, "it has memory left", None);
    }
    let what = format!("it uses {used} of {limit} bytes: a node that is full grants nothing");
    found(Grade::Warn, node, what, Some(on(node, &format!("CONFIG SET maxmemory {}", limit.saturating_mul(2)))))
}

fn connections(node: &Target, answers: &Answers) -> Finding {
    let (used, limit) = (count(answers, "connected_clients"), count(answers, "maxclients"));
    if limit == 0 || as_f64(used) < FULL * as_f64(limit) {
        let connections = if used == 1 { "connection" } else { "connections" };
        return found(Grade::Ok, node, format!("{used} {connections}"), None);
    }
    let what = format!("{used} of {limit} connections are in use");
    let mend = format!("CONFIG SET maxclients {}", limit.saturating_mul(2));
    let mend = format!("{}, with as many file descriptors (ulimit -n)", on(node, &mend));
    found(Grade::Warn, node, what, Some(mend))
}

fn rights(node: &Target, answers: &Answers) -> Finding {
    if answers.missing_rights.is_empty() {
        return found(Grade::Ok, node, "the user has the rights it needs", None);
    }
    let rights = answers.missing_rights.join(" ");
    let user = answers.user.as_deref().unwrap_or("USER");
    let words: Vec<String> = answers.missing_rights.iter().map(|right| quoted(right)).collect();
    let mend = on(node, &format!("ACL SETUSER {} {}", quoted(user), words.join(" ")));
    let mend = format!("{mend} (as an administrator, and in its ACL file)");
    found(Grade::Fail, node, format!("the user lacks the rights {}", Printable(&rights)), Some(mend))
}

fn endless(node: &Target, answers: &Answers) -> Finding {
    match &answers.endless {
        Ok(None) => found(Grade::Ok, node, "every lock has an end", None),
        Ok(Some(key)) => {
            let what = format!("the key {} has no end, so nothing is granted there", readable(key));
            let mend = match copied(key) {
                Some(word) => format!("{}, if no program uses it", on(node, &format!("DEL {word}"))),
                None => format!(
                    "delete that key if no program uses it. Its name has {} bytes and is shown escaped or cut: SCAN finds it",
                    key.len()
                ),
            };
            found(Grade::Warn, node, what, Some(mend))
        }
        Err(_) => {
            let mend = "allow +scan to this user, or run doctor as an administrator".to_owned();
            found(Grade::Warn, node, "it is not known whether every lock has an end: the search is refused", Some(mend))
        }
    }
}

/// Returns the key as a word of a command that people may copy into a shell, unless a message shows another name in its place.
fn copied(key: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(key).ok()?;
    let is_shown = key.len() <= LONGEST_COPIED && Printable(text).to_string() == text;
    is_shown.then(|| quoted(text))
}

#[expect(clippy::cast_precision_loss, reason = "a part of a limit")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::reading::Facts;

    const INFO: &str =
        "connected_slaves:0\r\nused_memory:10\r\nmaxmemory:100\r\nconnected_clients:7\r\nmaxclients:100\r\n";

    fn answers() -> Answers {
        let settings = [("appendonly", "yes"), ("appendfsync", "always"), ("no-appendfsync-on-rewrite", "no")];
        Answers {
            info: INFO.to_owned(),
            keeps: Keeps::of(&settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            offset_ms: 3,
            drift_ms: 1,
            watched: Duration::from_secs(1),
            user: Some("quorlock".to_owned()),
            missing_rights: Vec::new(),
            endless: Ok(None),
        }
    }

    fn target() -> Target {
        let client = "redis-cli -u redis://a:1".to_owned();
        Target { name: "a:1".to_owned(), client, prefix_flag: String::new() }
    }

    #[test]
    fn a_node_in_order_passes_every_check() {
        let found = all(&target(), &answers());
        assert!(found.iter().all(|finding| finding.grade == Grade::Ok && finding.mend.is_none()), "{found:?}");
    }

    /// A node that lost its data under a living holder must not be declared, and looks like a new one.
    #[test]
    fn a_node_without_a_record_is_declared_only_if_it_is_new() {
        let known = NodeStatus { name: "a:1".to_owned(), state: State::Undeclared, facts: Some(Facts::default()) };
        let mend = vote(&target(), &known).mend.unwrap_or_default();
        assert!(
            mend.starts_with("quorlock nodes declare-new, before the first client connects, if no client"),
            "{mend}"
        );
        assert!(mend.contains("If it has lost its data, nothing:"), "{mend}");
    }

    #[test]
    fn nodes_that_know_different_longest_leases_are_named_with_the_flag_that_mends_it() {
        let finding = |leases: &[u64]| {
            let facts = |lease: &u64| Facts { longest_lease: Some(Duration::from_secs(*lease)), ..Facts::default() };
            let node = |lease| NodeStatus { name: String::new(), state: State::Voting, facts: Some(facts(lease)) };
            longest_leases(&Status { nodes: leases.iter().map(node).collect() }).map(|finding| finding.to_string())
        };
        assert_eq!(finding(&[]), None);
        assert_eq!(finding(&[30, 30, 30]).as_deref(), Some("[OK]   the longest lease is 30s"));
        let different =
            "[WARN] the nodes know different longest leases: 30s, 1m. Mend: set it in every client: --longest-lease 1m";
        assert_eq!(finding(&[30, 60, 30]).as_deref(), Some(different));
    }

    /// Each change of an answer is found by one check, which says what mends it.
    #[test]
    fn each_fault_has_its_finding() {
        type Change = fn(&mut Answers);
        let faults: [(Change, Grade, &str, &str); 12] = [
            (
                |answers| answers.keeps = Keeps::of(&[("appendonly".to_owned(), "no".to_owned())].into()),
                Grade::Warn,
                "appendonly is no, not yes",
                "redis-cli -u redis://a:1 CONFIG SET appendonly yes",
            ),
            (|answers| set(answers, "connected_slaves:1"), Grade::Warn, "it has 1 replica:", "remove"),
            (|answers| set(answers, "used_memory:80"), Grade::Warn, "it uses 80 of 100 bytes", "maxmemory 200"),
            (|answers| set(answers, "connected_clients:80"), Grade::Warn, "80 of 100 connections", "maxclients 200"),
            (|answers| answers.offset_ms = -1_000, Grade::Warn, "off by -1000 ms", "NTP"),
            (|answers| answers.offset_ms = 240_000, Grade::Fail, "off by +240000 ms", "NTP"),
            (|answers| answers.drift_ms = -21, Grade::Warn, "moved by -21 ms within 1000 ms", "NTP"),
            (
                |answers| answers.missing_rights = vec!["+zadd".to_owned(), "+script|load".to_owned()],
                Grade::Fail,
                "lacks the rights +zadd +script|load",
                "ACL SETUSER quorlock +zadd '+script|load' (as",
            ),
            (
                |answers| {
                    answers.missing_rights = vec!["~quorlock:queue:b:*".to_owned(), "&quorlock:call:*".to_owned()];
                },
                Grade::Fail,
                "lacks the rights ~quorlock:queue:b:* &quorlock:call:*",
                "ACL SETUSER quorlock '~quorlock:queue:b:*' '&quorlock:call:*' (as",
            ),
            (
                |answers| answers.endless = Err(NodeError::Redis { code: "NOPERM".to_owned(), detail: String::new() }),
                Grade::Warn,
                "it is not known whether every lock has an end",
                "+scan",
            ),
            (
                |answers| answers.endless = Ok(Some(b"lock:x".to_vec())),
                Grade::Warn,
                "lock:x has no end",
                "DEL lock:x, if no",
            ),
            (
                |answers| answers.keeps = Keeps::of(&[].into()),
                Grade::Warn,
                "not known whether it keeps every write",
                "",
            ),
        ];
        for (change, grade, what, mend) in faults {
            let mut answers = answers();
            change(&mut answers);
            let bad: Vec<Finding> =
                all(&target(), &answers).into_iter().filter(|found| found.grade > Grade::Ok).collect();
            let [finding] = bad.as_slice() else { panic!("{what}: {bad:?}") };
            assert_eq!(finding.grade, grade, "{finding}");
            assert!(finding.what.contains(what), "{finding}");
            assert!(finding.mend.as_deref().unwrap_or_default().contains(mend), "{finding}");
        }
    }

    fn set(answers: &mut Answers, line: &str) {
        let (name, _) = line.split_once(':').expect("a field");
        let others = INFO.lines().filter(|old| !old.starts_with(&format!("{name}:")));
        answers.info = others.chain([line]).collect::<Vec<_>>().join("\r\n");
    }

    #[test]
    fn a_node_that_hangs_is_told_apart_from_one_that_is_away() {
        let tls = Target { client: "redis-cli -u rediss://a:1".to_owned(), ..target() };
        let mend = |node: &Target, error: NodeError| no_vote(node, &error).mend.unwrap_or_default();
        let away = || NodeError::Connect("refused".to_owned());
        assert_eq!(mend(&target(), away()), "start the server, or check the way to it: redis-cli -u redis://a:1 PING");
        assert!(mend(&tls, away()).contains(", or the certificates of both sides: redis-cli -u rediss://a:1 PING"));
        assert!(mend(&tls, NodeError::NoAnswer(Duration::from_secs(5))).starts_with("look whether the server hangs"));
    }

    #[test]
    fn a_key_is_copied_only_as_it_is_shown() {
        let long = [b'x'; LONGEST_COPIED + 1];
        for (key, expected) in [
            (&b"lock:x"[..], Some("lock:x")),
            (b"it's", Some(r"'it'\''s'")),
            (b"\xff", None),
            (b"a\x1bb", None),
            (&long[1..], std::str::from_utf8(&long[1..]).ok()),
            (&long, None),
        ] {
            assert_eq!(copied(key).as_deref(), expected);
        }
    }

    #[test]
    fn a_slow_watch_allows_more_drift() {
        let answers = Answers { drift_ms: 25, watched: Duration::from_secs(3), ..answers() };
        assert_eq!(clock(&target(), &answers).grade, Grade::Ok);
    }

    #[test]
    fn passwords_in_the_clear_are_counted_unless_they_stay_on_the_machine() {
        let grade = |urls: &[&str]| plain_passwords(urls.iter().copied()).map(|finding| finding.what);
        let one = "1 node gets a password over a connection that is not encrypted";
        for (url, expected) in [
            ("redis://:secret@10.0.0.1", Some(one)),
            ("redis://me:secret@db", Some(one)),
            ("redis://me:se@cret@db", Some(one)),
            ("valkey://me:secret@db", Some(one)),
            ("redis://me@db", None),
            ("redis://db", None),
            ("rediss://:secret@db", None),
            ("redis://:secret@127.0.0.1:7001", None),
            ("redis://:secret@localhost", None),
            ("redis://:secret@[::1]:7001", None),
        ] {
            assert_eq!(grade(&[url]).as_deref(), expected, "{url}");
        }
        assert!(grade(&["redis://:a@b", "redis://:a@c"]).is_some_and(|what| what.starts_with("2 nodes get ")));
    }
}
