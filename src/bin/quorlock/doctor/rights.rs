//! Which rights the Redis user lacks.

use quorlock::NodeError;
use quorlock::admin::Node;
use redis::Cmd;

use crate::nodes::keys::read;

/// A call that shows whether the user has a right.
struct Probe {
    name: &'static str,
    /// The patterns of the keys or the channel that it asks for, as an ACL line has them.
    pattern: String,
    command: Cmd,
}

/// For each command that the scripts and the client use, a call that changes nothing: on a key that is not there, as its name has
/// a random part, or with a value that the server refuses after it has checked the rights. The keys are of the kinds that a client
/// uses, so that a user of one prefix may ask for them. Each asks for one key at most, so a refusal names its pattern. The keys of the
/// node record and of the list were read when the connection was made.
fn probes(prefix: &[u8], random: u64) -> Vec<Probe> {
    let lock = [prefix, format!("doctor {random:016x}").as_bytes()].concat();
    let (ballot, queue) = ([b"quorlock:ballot:", &*lock].concat(), [b"quorlock:queue:", &*lock].concat());
    let channel = format!("quorlock:call:doctor {random:016x}");
    let call = |name: &'static str, args: &[&[u8]]| {
        let mut command = Cmd::new();
        for word in name.split('|').map(str::as_bytes).chain(args.iter().copied()) {
            command.arg(word);
        }
        let pattern = match args.first() {
            Some(key) if **key == *lock => format!("~{}*", literal(prefix)),
            Some(key) if **key == *ballot => format!("~quorlock:ballot:{}*", literal(prefix)),
            Some(key) if **key == *queue => format!("~quorlock:queue:{}*", literal(prefix)),
            Some(key) if **key == *channel.as_bytes() => "&quorlock:call:*".to_owned(),
            _ => String::new(),
        };
        Probe { name, pattern, command }
    };
    vec![
        call("ping", &[]),
        call("info", &[b"server"]),
        call("time", &[]),
        call("mget", &[&lock]),
        call("mget", &[&ballot]),
        call("exists", &[&lock]),
        call("type", &[&lock]),
        call("pttl", &[&lock]),
        call("set", &[&lock, b"", b"XX", b"PX", b"0"]),
        call("psetex", &[&ballot, b"0", b""]),
        call("pexpire", &[&lock, b"1"]),
        call("del", &[&lock]),
        call("zadd", &[&queue, b"XX", b"0", b"0"]),
        call("zcard", &[&queue]),
        call("zpopmin", &[&queue]),
        call("zrem", &[&queue, b"0"]),
        call("publish", &[channel.as_bytes(), b""]),
        call("script|load", &[b"return 1"]),
        call("evalsha", &[b"0000000000000000000000000000000000000000", b"0"]),
        // The last one: no other client knows the channel, so no call comes between later answers.
        call("subscribe", &[channel.as_bytes()]),
    ]
}

/// Writes a prefix as a pattern of keys that matches nothing but it.
fn literal(prefix: &[u8]) -> String {
    let special = |c: &char| "*?[]\\".contains(*c);
    String::from_utf8_lossy(prefix).chars().flat_map(|c| special(&c).then_some('\\').into_iter().chain([c])).collect()
}

/// Returns the right that this refusal is about. Servers say of a command that the user may not run it, and otherwise whether it is a key
/// or a channel.
fn refused(probe: &Probe, detail: &str) -> String {
    let is_command = detail.contains(" run the ") || !(detail.contains(" key") || detail.contains(" channel"));
    if is_command || probe.pattern.is_empty() { format!("+{}", probe.name) } else { probe.pattern.clone() }
}

/// Returns the rights that the user lacks, as an ACL line writes them: commands, patterns of keys, and channels.
pub async fn missing(node: &mut Node, prefix: &[u8]) -> Result<Vec<String>, NodeError> {
    let mut missing = Vec::new();
    let random = node.random();
    for probe in probes(prefix, random) {
        match node.ask(&probe.command).await {
            Err(NodeError::Redis { code, detail }) if code == "NOPERM" => {
                let right = refused(&probe, &detail);
                if !missing.contains(&right) {
                    missing.push(right);
                }
            }
            Ok(_) | Err(NodeError::Redis { .. } | NodeError::NotAllowed { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

/// The name of the connection's user; `None` where it may not ask.
pub async fn user(node: &mut Node) -> Option<String> {
    let mut whoami = redis::cmd("ACL");
    whoami.arg("WHOAMI");
    read("ACL", node.ask(&whoami).await.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_about_a_command_a_key_or_a_channel() {
        let probes = probes(b"a*:", 7);
        let probe = |name: &str| probes.iter().find(|probe| probe.name == name).expect("a probe");
        for (name, detail, right) in [
            ("zadd", "this user has no permissions to run the 'zadd' command", "+zadd"),
            ("zadd", "User key has no permissions to run the 'zadd' command", "+zadd"),
            (
                "zadd",
                "this user has no permissions to access one of the keys used as arguments",
                "~quorlock:queue:a\\*:*",
            ),
            ("zadd", "No permissions to access a key", "~quorlock:queue:a\\*:*"),
            ("psetex", "No permissions to access a key", "~quorlock:ballot:a\\*:*"),
            ("set", "No permissions to access a key", "~a\\*:*"),
            ("publish", "No permissions to access a channel", "&quorlock:call:*"),
            (
                "subscribe",
                "this user has no permissions to access one of the channels used as arguments",
                "&quorlock:call:*",
            ),
            ("ping", "in other words", "+ping"),
        ] {
            assert_eq!(refused(probe(name), detail), right, "{name}: {detail}");
        }
    }
}
