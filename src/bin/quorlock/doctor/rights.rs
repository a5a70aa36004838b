//! Which rights the Redis user lacks.

use quorlock::NodeError;
use quorlock::admin::Node;
use redis::Cmd;

use crate::nodes::keys::read;

/// For each command that the scripts and the client use, a call that changes nothing: on a key that is not there, as its name has
/// a random part, or with a value that the server refuses after it has checked the rights. The keys are of the kinds that a client
/// uses, so that a user of one prefix may ask for them.
fn probes(prefix: &[u8], random: u64) -> Vec<(&'static str, Cmd)> {
    let lock = [prefix, format!("doctor {random:016x}").as_bytes()].concat();
    let (ballot, queue) = ([b"quorlock:ballot:", &*lock].concat(), [b"quorlock:queue:", &*lock].concat());
    let call = |name: &'static str, args: &[&[u8]]| {
        let mut command = Cmd::new();
        for word in name.split('|').map(str::as_bytes).chain(args.iter().copied()) {
            command.arg(word);
        }
        (name, command)
    };
    vec![
        call("ping", &[]),
        call("info", &[b"server"]),
        call("time", &[]),
        call("mget", &[&lock, &ballot]),
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
        call("publish", &[b"quorlock:call:doctor", b""]),
        call("script|load", &[b"return 1"]),
        call("evalsha", &[b"0000000000000000000000000000000000000000", b"0"]),
    ]
}

/// Returns the rights that the user lacks, as an ACL line writes them.
pub async fn missing(node: &mut Node, prefix: &[u8]) -> Result<Vec<String>, NodeError> {
    let mut missing = Vec::new();
    let random = node.random();
    for (name, command) in probes(prefix, random) {
        match node.ask(&command).await {
            Err(NodeError::Redis { code, .. }) if code == "NOPERM" => missing.push(format!("+{name}")),
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
