//! How a connection begins: a stream, redis-rs on top of it, and a few questions.

use std::pin::Pin;
use std::sync::Arc;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisError};
use tokio::select;

use super::connection::MOST_IN_FLIGHT;
use super::health::{Health, examine};
use super::{Common, script};
use crate::config::NodeAddress;
use crate::environment::Environment;
use crate::error::NodeError;
use crate::ticket::channel;

/// redis-rs queues behind our own bound, never in front of it: the room must cover releases, which are always taken.
const REDIS_QUEUE: usize = 4 * MOST_IN_FLIGHT;

pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Connects, introduces itself, makes sure that the node knows the scripts, and asks how it is.
pub(super) async fn establish(
    environment: &dyn Environment,
    address: &NodeAddress,
    index: usize,
    common: &Common,
) -> Result<(MultiplexedConnection, Driver, Health), NodeError> {
    let connect = |error: std::io::Error| NodeError::Connect(error.to_string());
    let stream = environment.connect(address.info.addr()).await.map_err(connect)?;
    let tickets = Arc::clone(&common.tickets);
    let calls = move |push: PushInfo| -> Result<(), SendError> {
        tickets.heard(index, &push);
        Ok(())
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None) // Rounds keep the time; an answer that comes late is still wanted.
        .set_pipeline_buffer_size(REDIS_QUEUE)
        .set_push_sender(calls);
    // The third version of the protocol lets a node call a waiter on the very connection that everything else uses.
    let settings = address.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(&settings, stream, config).await.map_err(|error| node_error(&error))?;
    let mut driver: Driver = Box::pin(driver);
    let introduce = async {
        let health = examine(&mut connection).await?;
        for command in script::load() {
            command.query_async::<()>(&mut connection).await?;
        }
        // A server that forbids it calls nobody: whoever waits looks again now and then.
        if let Err(error) = connection.subscribe(channel(common.session)).await
            && !is_from_server(&error)
        {
            return Err(error);
        }
        Ok((connection, health))
    };
    select! {
        biased;
        introduced = introduce => {
            let (connection, health) = introduced.map_err(|error| node_error(&error))?;
            Ok((connection, driver, health))
        }
        () = &mut driver => Err(NodeError::Disconnected("closed by the server".to_owned())),
    }
}

/// Did the server say this, and not the connection?
pub(super) fn is_from_server(error: &RedisError) -> bool {
    error.code().is_some() && !error.is_unrecoverable_error()
}

pub(super) fn node_error(error: &RedisError) -> NodeError {
    match error.code() {
        Some(code) => NodeError::Redis { code: code.to_owned(), detail: error.detail().unwrap_or_default().to_owned() },
        None => NodeError::Connect(error.to_string()),
    }
}
