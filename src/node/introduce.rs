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
    let health = health::judge(wire.ask(&health::questions()).await?);
    // A server that forbids it calls nobody: whoever waits looks again now and then.
    let mut subscribe = redis::cmd("SUBSCRIBE");
    subscribe.arg(channel(common.session));
    wire.ask(&[subscribe]).await?;
    Ok((wire, health))
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
