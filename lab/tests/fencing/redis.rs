use quorlock_testkit::server::Server;
use redis::{Connection, RedisResult};

use crate::checks::{Fenced, Refusal};

/// A connection, and the script.
pub struct Script {
    connection: Connection,
    script: redis::Script,
}

impl Script {
    pub fn open(server: &Server, script: &str) -> Self {
        let connection = server.try_redis().expect("a connection");
        Self { connection, script: redis::Script::new(script) }
    }

    fn invoke(&mut self, resource: &str, token: &str, value: Option<i64>) -> Result<Option<i64>, Refusal> {
        let mut call = self.script.key(format!("{{{resource}}}:fence"));
        call.key(format!("{{{resource}}}")).arg(token.trim_matches('\''));
        let reply: RedisResult<redis::Value> = match value {
            Some(value) => call.arg(value).invoke(&mut self.connection),
            None => call.invoke(&mut self.connection),
        };
        match reply {
            Ok(value) => Ok(redis::from_redis_value(value).ok()),
            Err(error) if error.code() == Some("STALE") => Err(Refusal::Stale),
            Err(error) => Err(Refusal::Other(error.to_string())),
        }
    }
}

impl Fenced for Script {
    fn create(&mut self, resource: &str) {
        let created: RedisResult<()> =
            redis::cmd("SET").arg(format!("{{{resource}}}")).arg(0).query(&mut self.connection);
        created.expect("a new key");
    }

    fn read(&mut self, resource: &str, token: &str) -> Result<i64, Refusal> {
        let value = self.invoke(resource, token, None)?;
        value.ok_or_else(|| Refusal::Other("no number".to_owned()))
    }

    fn write(&mut self, resource: &str, token: &str, value: i64) -> Result<(), Refusal> {
        self.invoke(resource, token, Some(value)).map(drop)
    }
}
