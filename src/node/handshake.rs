//! How a connection begins: a stream, a few questions in one go, and what is due in the node's record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, ConnectionAddr, RedisConnectionInfo, RedisError, Value};

use super::address::NodeAddress;
use super::commands;
use super::common::Common;
use super::health::{self, Health};
use super::known::Known;
use super::places::Listing;
use super::server_error::{is_passing, node_error, said};
use super::stream::RespStream;
use crate::environment::{Environment, within};
use crate::error::NodeError;
use crate::protocol::{Change, Record};
use crate::secrets::quotes;
use crate::text::Rounded;
use crate::waiting::channel;

/// How often what is due in a record is written at most, when other clients write there at the same time.
pub(super) const MOST_WRITES: usize = 4;

/// Connects, greets the server, and leaves its record and list as they are to be, all within `limit`.
pub(super) async fn handshake(
    environment: &dyn Environment,
    address: &NodeAddress,
    common: &Common,
    index: usize,
    name: &Arc<str>,
    limit: Duration,
) -> Result<(RespStream, Known), NodeError> {
    let is_open = AtomicBool::new(false);
    let attempt = settle(environment, address, common, index, name, &is_open);
    let made = within(environment, limit, attempt).await;
    made.unwrap_or_else(|| Err(not_in_time(address, limit, is_open.load(Ordering::Relaxed))))
}

/// Makes the attempt of [`handshake`], without a limit. `is_open` becomes true when there is a stream.
async fn settle(
    environment: &dyn Environment,
    address: &NodeAddress,
    common: &Common,
    index: usize,
    name: &Arc<str>,
    is_open: &AtomicBool,
) -> Result<(RespStream, Known), NodeError> {
    let (mut stream, mut health) = establish(environment, address, common, is_open).await?;
    common.sees_clock(index, Some(health.clock));
    for _ in 0..MOST_WRITES {
        let nodes = match common.reached(index, name, &health)? {
            Listing::Known => None,
            Listing::Write(nodes) => Some(nodes),
        };
        // Not of a server that has no part in the list: what is learnt there would be written to all nodes, and stay.
        if let Some((_, record)) = &health.record {
            common.learn_lease(record.longest);
            common.learn_window(record.window);
        }
        let seen = health.record.as_ref();
        // A record that came with another node's data says nothing of this one.
        let own = seen.map(|(_, record)| record).filter(|_| !common.is_copy(index, &health));
        let change = Record::due(own, &health.process, &common.newcomer(index));
        if let (None, None, Some((text, _))) = (nodes, &change, seen) {
            let unreadable = || NodeError::Nonsense("a node record that cannot be read".to_owned());
            let ahead = common.ahead_of_monotonic(health.clock);
            return Ok((stream, Known::new(text, ahead).ok_or_else(unreadable)?));
        }
        let seen = seen.map(|(text, _)| text.as_str());
        (health.record, health.listed) = write(&mut stream, &common.list_key, seen, change.as_ref(), nodes).await?;
    }
    Err(NodeError::Connect("other clients write the record of this node all the time".to_owned()))
}

/// Returns the error of a connection that was not made in time.
pub(super) fn not_in_time(address: &NodeAddress, limit: Duration, is_open: bool) -> NodeError {
    match address.info.addr() {
        _ if is_open => NodeError::NoAnswer(limit),
        ConnectionAddr::TcpTls { .. } => {
            let waited = Rounded(limit);
            NodeError::Connect(format!(
                "no TLS handshake within {waited} (the server hangs; or a port without TLS needs the scheme redis)"
            ))
        }
        _ => NodeError::Connect(format!("no connection within {}", Rounded(limit))),
    }
}

/// Connects, greets the server, subscribes to the calls, and asks what a client must know of it.
async fn establish(
    environment: &dyn Environment,
    address: &NodeAddress,
    common: &Common,
    is_open: &AtomicBool,
) -> Result<(RespStream, Health), NodeError> {
    // The questions about the server, and the channel on which it calls.
    let mut subscribe = redis::cmd("SUBSCRIBE");
    subscribe.arg(channel(common.client));
    let [info, stored, time] = health::questions(&common.list_key);
    let questions = [info, stored, time, subscribe];
    let (stream, [info, stored, time, subscribed]) = greet(environment, address, questions, is_open).await?;
    // A server that forbids it calls no waiting request: it looks again by its timer.
    drop(subscribed);
    Ok((stream, health::judge([info, stored, time], address.info.redis_settings().db())?))
}

/// Connects, greets the server and asks these questions, all in one exchange. An answer may be an error that the server
/// gives for good.
pub(super) async fn greet<const N: usize>(
    environment: &dyn Environment,
    address: &NodeAddress,
    questions: [Cmd; N],
    is_open: &AtomicBool,
) -> Result<(RespStream, [Value; N]), NodeError> {
    let connect = |error: std::io::Error| NodeError::Connect(error.to_string());
    let stream = environment.connect(address.info.addr()).await.map_err(connect)?;
    is_open.store(true, Ordering::Relaxed);
    let mut stream = RespStream::new(stream);
    let mut settings = address.info.redis_settings().clone();
    if let Some(source) = &address.password {
        settings = settings.set_password(source.ask(environment).await.map_err(connect)?);
    }
    let greeting = greeting(&settings);
    let greetings = greeting.len();
    let commands: Vec<Cmd> = greeting.into_iter().chain(questions).collect();
    let password = settings.password();
    let mut answers = stream.ask(&commands).await.map_err(|error| match error {
        NodeError::Disconnected(why) if matches!(address.info.addr(), ConnectionAddr::Tcp(..)) => {
            NodeError::Disconnected(format!("{why} (a port for TLS does that: it needs the scheme rediss)"))
        }
        error => without_quotes(error, password),
    })?;
    let rest = answers.split_off(greetings);
    let mut greeted = answers.into_iter().map(said);
    if let Some(Err(error)) = greeted.next() {
        return Err(without_quotes(refused(&error), password));
    }
    for answer in greeted {
        answer.map_err(|error| without_quotes(node_error(&error), password))?;
    }
    let answers = <[Value; N]>::try_from(willing(rest)?)
        .map_err(|answers| NodeError::Nonsense(format!("{} answers to {N} questions", answers.len())))?;
    Ok((stream, answers))
}

/// Writes what is due in the node's record and list. Gives both as they are then.
pub(super) async fn write(
    stream: &mut RespStream,
    list_key: &[u8],
    seen: Option<&str>,
    change: Option<&Change>,
    nodes: Option<usize>,
) -> Result<(Option<(String, Record)>, Option<usize>), NodeError> {
    let commands = commands::record(list_key, seen, change, nodes);
    let mut answers = stream.ask(&commands).await?.into_iter();
    for _ in 1..commands.len() {
        answers.next().map(said).transpose().map_err(|error| node_error(&error))?;
    }
    let written = said(answers.next().unwrap_or(Value::Nil)).map_err(|error| node_error(&error))?;
    let nonsense = || NodeError::Nonsense("an answer to record.lua that cannot be read".to_owned());
    let (record, nodes): (String, String) = redis::from_redis_value(written).map_err(|_| nonsense())?;
    let read = Record::parse(&record).ok_or_else(nonsense)?;
    Ok((Some((record, read)), nodes.parse().ok()))
}

/// Fails if the server cannot answer a question just now: the answer would be missing for as long as the connection lasts. What a
/// server refuses for good stays among the answers.
fn willing(answers: Vec<Value>) -> Result<Vec<Value>, NodeError> {
    let errors = answers.iter().cloned().filter_map(|answer| said(answer).err());
    match errors.into_iter().find(is_passing) {
        Some(error) => Err(node_error(&error)),
        None => Ok(answers),
    }
}

/// Returns the commands that begin a connection. RESP3 lets a node call a waiter on the connection that everything else uses.
fn greeting(settings: &RedisConnectionInfo) -> Vec<Cmd> {
    let mut hello = redis::cmd("HELLO");
    hello.arg(3);
    if let Some(password) = settings.password() {
        hello.arg("AUTH").arg(settings.username().unwrap_or("default")).arg(password);
    }
    let mut commands = vec![hello];
    if settings.db() != 0 {
        let mut select = redis::cmd("SELECT");
        select.arg(settings.db());
        commands.push(select);
    }
    commands
}

/// Returns the error of a greeting that is refused.
fn refused(error: &RedisError) -> NodeError {
    let is_unknown = error.detail().is_some_and(|detail| detail.starts_with("unknown command"));
    if is_unknown && error.code() == Some("ERR") { NodeError::TooOld } else { node_error(error) }
}

/// Replaces an error whose words quote the greeting, and so perhaps the password.
fn without_quotes(error: NodeError, password: Option<&str>) -> NodeError {
    match error {
        NodeError::Redis { code, detail } if quotes(&detail, password) || quotes(&code, password) => {
            NodeError::Redis { code: "ERR".to_owned(), detail: "(its words quote the password)".to_owned() }
        }
        // A part of the password may be all that was read.
        NodeError::Nonsense(_) if password.is_some() => {
            NodeError::Nonsense("what it answers to a greeting is not Redis' protocol".to_owned())
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_quotes_the_password_is_shown_without_its_words() {
        let redis = |code: &str, detail: &str| NodeError::Redis { code: code.to_owned(), detail: detail.to_owned() };
        let hidden = redis("ERR", "(its words quote the password)");
        for error in [redis("ERR", "unknown command 'HELLO' '3' 'AUTH' 'u' 'pass'"), redis("xpassx", "no")] {
            assert_eq!(without_quotes(error.clone(), Some("pass")), hidden);
            assert_eq!(without_quotes(error.clone(), Some("other")), error);
            assert_eq!(without_quotes(error.clone(), None), error);
        }
        let nonsense = NodeError::Nonsense("+pas".to_owned());
        assert_eq!(without_quotes(nonsense.clone(), None), nonsense);
        let hidden = without_quotes(nonsense, Some("pass"));
        assert!(matches!(&hidden, NodeError::Nonsense(words) if !words.contains("pas")), "{hidden}");
    }

    #[test]
    fn a_loading_node_is_asked_again_and_a_denied_command_is_not() {
        let answers = |line: &str| vec![redis::parse_redis_value(line.as_bytes()).unwrap()];
        let loading = willing(answers("-LOADING Redis is loading the dataset in memory\r\n"));
        assert!(matches!(loading, Err(NodeError::Redis { code, .. }) if code == "LOADING"));
        assert_eq!(willing(answers("-NOPERM this user has no permissions\r\n")).unwrap().len(), 1);
        assert_eq!(willing(answers(":1\r\n")).unwrap(), [Value::Int(1)]);
    }

    fn address(url: &str) -> NodeAddress {
        NodeAddress::parse(url).expect("an address")
    }

    #[test]
    fn a_connection_that_is_not_made_in_time_says_how_far_it_got() {
        let said = |url: &str, is_open| not_in_time(&address(url), Duration::from_secs(4), is_open);
        assert_eq!(said("redis://node", true), NodeError::NoAnswer(Duration::from_secs(4)));
        let words = |url: &str| said(url, false).to_string();
        assert!(words("redis://node").contains("no connection within 4s"), "{}", words("redis://node"));
        if cfg!(feature = "tls") {
            assert!(
                words("rediss://node").contains("(the server hangs; or a port without TLS needs the scheme redis)")
            );
        }
    }

    #[test]
    fn a_greeting_selects_the_database_and_names_the_user() {
        let packed = |url: &str| {
            let commands = greeting(address(url).info.redis_settings());
            commands.iter().map(|command| String::from_utf8(command.get_packed_command()).unwrap()).collect::<String>()
        };
        assert_eq!(packed("redis://node"), "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n");
        let all = packed("redis://me:secret@node/2");
        let words: Vec<&str> = all.lines().filter(|line| !line.starts_with(['*', '$'])).collect();
        assert_eq!(words, ["HELLO", "3", "AUTH", "me", "secret", "SELECT", "2"]);
    }

    #[test]
    fn a_server_without_hello_is_too_old() {
        let refused = |line: &[u8]| refused(&said(redis::parse_redis_value(line).unwrap()).unwrap_err());
        assert_eq!(refused(b"-ERR unknown command 'HELLO'\r\n"), NodeError::TooOld);
        for line in [&b"-ERR no\r\n"[..], b"-NOAUTH unknown command 'HELLO'\r\n"] {
            assert!(matches!(refused(line), NodeError::Redis { .. }));
        }
    }
}
