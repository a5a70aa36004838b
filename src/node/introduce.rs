//! How a connection begins: a stream, and a few questions in one go.

use redis::{Cmd, RedisConnectionInfo, RedisError, Value};

use super::health::{self, Health};
use super::wire::Wire;
use super::{Common, script};
use crate::config::NodeAddress;
use crate::environment::Environment;
use crate::error::NodeError;
use crate::ticket::channel;

/// Connects, introduces itself, makes sure that the node knows the scripts, and asks how it is.
pub(super) async fn establish(
    environment: &dyn Environment,
    address: &NodeAddress,
    common: &Common,
) -> Result<(Wire, Health), NodeError> {
    let connect = |error: std::io::Error| NodeError::Connect(error.to_string());
    let stream = environment.connect(address.info.addr()).await.map_err(connect)?;
    let mut wire = Wire::new(stream);

    // What it must do, what is to be known of it, and what it may refuse.
    let mut musts = greeting(address.info.redis_settings());
    musts.extend(script::load());
    let mut answers = wire.ask(&musts).await?.into_iter().map(said);
    if let Some(Err(error)) = answers.next() {
        return Err(refused(&error, address.info.redis_settings()));
    }
    for answer in answers {
        answer.map_err(|error| node_error(&error))?;
    }
    let health = health::judge(willing(wire.ask(&health::questions()).await?)?);
    // A server that forbids it calls nobody: whoever waits looks again now and then.
    let mut subscribe = redis::cmd("SUBSCRIBE");
    subscribe.arg(channel(common.session));
    willing(wire.ask(&[subscribe]).await?)?;
    Ok((wire, health))
}

/// What a server refuses for good is one thing. What it cannot say just now would be missing as long as the connection lasts.
fn willing(answers: Vec<Value>) -> Result<Vec<Value>, NodeError> {
    let errors = answers.iter().cloned().filter_map(|answer| said(answer).err());
    match errors.into_iter().find(is_passing) {
        Some(error) => Err(node_error(&error)),
        None => Ok(answers),
    }
}

/// A server that answers so was asked at a bad moment.
pub(super) fn is_passing(error: &RedisError) -> bool {
    error.code().is_some_and(|code| ["LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN"].contains(&code))
}

/// The third version of the protocol lets a node call a waiter on the very connection that everything else uses.
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

/// What it means that the greeting is refused. Words that quote the password are not passed on.
fn refused(error: &RedisError, settings: &RedisConnectionInfo) -> NodeError {
    let detail = error.detail().unwrap_or_default();
    let is_secret = settings.password().is_some_and(|password| detail.contains(password));
    match error.code() {
        Some("ERR") if detail.starts_with("unknown command") => NodeError::TooOld,
        Some(code) if is_secret => NodeError::Redis { code: code.to_owned(), detail: String::new() },
        _ => node_error(error),
    }
}

/// An answer, or the error that the server gave in its place.
pub(super) fn said(value: Value) -> Result<Value, RedisError> {
    match value {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

pub(super) fn node_error(error: &RedisError) -> NodeError {
    match error.code() {
        Some(code) => NodeError::Redis { code: code.to_owned(), detail: error.detail().unwrap_or_default().to_owned() },
        None => NodeError::Connect(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_said_just_now_is_asked_again_and_what_is_forbidden_is_not() {
        let answers = |line: &str| vec![redis::parse_redis_value(line.as_bytes()).unwrap()];
        let loading = willing(answers("-LOADING Redis is loading the dataset in memory\r\n"));
        assert!(matches!(loading, Err(NodeError::Redis { code, .. }) if code == "LOADING"));
        assert_eq!(willing(answers("-NOPERM this user has no permissions\r\n")).unwrap().len(), 1);
        assert_eq!(willing(answers(":1\r\n")).unwrap(), [Value::Int(1)]);
    }
}
