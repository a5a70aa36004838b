//! One of the run's own servers, and the faults of it.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorlock_testkit::clock::Clock;
use quorlock_testkit::link::Link;
use quorlock_testkit::server::{Server, info_field};

use super::effect::{self, Proof};
use super::fault::Kind;

/// How long a server may take to answer the run itself, when it has no fault.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// How long it may take to execute a fault.
pub const SERVER_LIMIT: Duration = Duration::from_secs(5);

/// A node that was made a replica must be a master again before the run can go on.
const PROMOTION_LIMIT: Duration = Duration::from_secs(20);

/// How much later than planned CLIENT PAUSE ends, so that the server certainly is silent until then. It ends by itself: while
/// it lasts, the server does not execute CLIENT UNPAUSE either.
pub const CLIENT_PAUSE_MORE_MS: u64 = 100;

pub struct Node {
    pub durable: bool,
    /// `None` once the run is over.
    pub server: Mutex<Option<Server>>,
    pub port: u16,
    pub url: String,
    /// The word of its record before it was made a replica.
    pub word: Mutex<Option<String>>,
    pub clock: Option<Mutex<Clock>>,
    /// One for each worker.
    pub links: Vec<Link>,
    /// As each worker reaches it, through its link.
    pub urls: Vec<String>,
    pub commands: Mutex<Commands>,
}

/// The statistics of servers. The commands of a killed server since the last query are not counted, nor those of a new one until
/// its first query, which are those of its log.
#[derive(Default)]
pub struct Commands {
    pub total: u64,
    run_id: String,
    last: u64,
}

impl Commands {
    pub fn add(&mut self, (run_id, counted): (String, u64)) {
        if run_id != self.run_id {
            (self.run_id, self.last) = (run_id, counted);
        }
        // The answers to two queries may come in either order.
        self.total += counted.saturating_sub(self.last);
        self.last = self.last.max(counted);
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An action on a node.
#[derive(Clone)]
pub struct Act {
    pub kind: Kind,
    pub amount: i64,
    pub lasts: u64,
    /// The port of the node that is copied.
    pub source: u16,
    pub silent: Vec<usize>,
}

impl Node {
    pub fn begin(&self, act: &Act, i: usize) -> io::Result<Proof> {
        match act.kind {
            Kind::Pause => self.on_server(Server::pause),
            Kind::Restart | Kind::Forget => self.kill(),
            Kind::Promote => {
                self.remember_word()?;
                self.kill()
            }
            Kind::Replace => {
                let before = self.ask(effect::run_id)?;
                self.on_server(|server| server.restart(true))?;
                let is_other = self.ask(effect::run_id)? != before;
                Ok(if is_other { Proof::Seen } else { Proof::Failed("it is the same server".to_owned()) })
            }
            Kind::Replica => {
                self.remember_word()?;
                Ok(self.prove(|redis| effect::follow(redis, act.source)))
            }
            Kind::Flush => Ok(self.prove(effect::flush)),
            Kind::Swap => Ok(self.prove(effect::swap)),
            Kind::ClientPause => {
                let lasts = act.lasts + CLIENT_PAUSE_MORE_MS;
                self.ask(|redis| redis::cmd("CLIENT").arg("PAUSE").arg(lasts).arg("ALL").query::<()>(redis))?;
                Ok(Proof::Seen)
            }
            Kind::Step | Kind::Leap => self.set_clock(act, i, |clock| clock.step(act.amount * 1000)),
            Kind::ClockRate => self.set_clock(act, i, |clock| clock.run_at(act.amount)),
            _ => Ok(Proof::Seen),
        }
    }

    pub fn end(&self, act: &Act, i: usize) -> io::Result<Proof> {
        match act.kind {
            Kind::Pause => self.on_server(Server::resume),
            Kind::Restart => self.on_server(|server| server.restart(false)),
            Kind::Forget => self.on_server(|server| server.restart(true)),
            Kind::Promote => {
                self.on_server(|server| server.restart_as_replica(act.source))?;
                let copied = self.prove(effect::copied);
                self.promote(copied)
            }
            Kind::Replica => self.promote(Proof::Seen),
            Kind::Step => {
                let stepped = self.set_clock(act, i, |_| Ok(()))?;
                let undone = self.set_clock(act, i, |clock| clock.step(-act.amount * 1000))?;
                Ok(if undone == Proof::Seen { stepped } else { undone })
            }
            Kind::Leap => self.set_clock(act, i, |_| Ok(())),
            Kind::ClockRate => self.set_clock(act, i, |clock| clock.run_at(0)),
            _ => Ok(Proof::Seen),
        }
    }

    fn kill(&self) -> io::Result<Proof> {
        self.on_server(|server| {
            server.kill();
            Ok(())
        })
    }

    fn on_server(&self, act: impl FnOnce(&mut Server) -> io::Result<()>) -> io::Result<Proof> {
        lock(&self.server).as_mut().map_or(Ok(()), act)?;
        Ok(Proof::Seen)
    }

    fn remember_word(&self) -> io::Result<()> {
        *lock(&self.word) = self.ask(effect::word)?;
        Ok(())
    }

    /// Makes it a master, whether or not it has copied the other node.
    fn promote(&self, copied: Proof) -> io::Result<Proof> {
        let before = lock(&self.word).take();
        let limit = Instant::now() + PROMOTION_LIMIT;
        let promoted = loop {
            match self.ask(|redis| effect::promote(redis, before.as_deref())) {
                // Another fault may have begun meanwhile.
                Err(_) if Instant::now() < limit && self.is_in_use() => std::thread::sleep(ANSWER_LIMIT),
                promoted => break promoted?,
            }
        };
        Ok(if copied == Proof::Seen { promoted } else { copied })
    }

    fn is_in_use(&self) -> bool {
        lock(&self.server).is_some()
    }

    /// Sets the clock. The node's own TIME must show it.
    fn set_clock(&self, act: &Act, i: usize, set: impl FnOnce(&mut Clock) -> io::Result<()>) -> io::Result<Proof> {
        // Without the library no clock can be set, and the plan has no such fault.
        let Some(clock) = &self.clock else { return Ok(Proof::Unasked) };
        let mut clock = lock(clock);
        set(&mut clock)?;
        if act.silent.contains(&i) {
            return Ok(Proof::Unasked);
        }
        // A node that does not answer may just have been killed or paused.
        let unlike =
            self.connection(ANSWER_LIMIT).and_then(|mut redis| clock.unlike(&mut redis).map_err(io::Error::other));
        Ok(match unlike {
            Ok(None) => Proof::Seen,
            Ok(Some(why)) => Proof::Failed(format!("TIME of node {}: {why}", i + 1)),
            Err(_) => Proof::Unasked,
        })
    }

    /// Queries the effect of a fault. Another fault may prevent an answer.
    fn prove(&self, prove: impl FnOnce(&mut redis::Connection) -> redis::RedisResult<Proof>) -> Proof {
        self.ask(prove).unwrap_or_else(|error| Proof::Failed(error.to_string()))
    }

    /// Connects to the server itself, not through a link.
    fn ask<T>(&self, ask: impl FnOnce(&mut redis::Connection) -> redis::RedisResult<T>) -> io::Result<T> {
        ask(&mut self.connection(SERVER_LIMIT)?).map_err(io::Error::other)
    }

    pub fn connection(&self, limit: Duration) -> io::Result<redis::Connection> {
        let connect = || {
            let connection = redis::Client::open(self.url.as_str())?.get_connection_with_timeout(limit)?;
            connection.set_read_timeout(Some(limit))?;
            Ok(connection)
        };
        connect().map_err(|error: redis::RedisError| io::Error::other(error))
    }

    /// Returns the run id of the server, and how many commands it has executed.
    pub fn counted(&self) -> io::Result<(String, u64)> {
        let mut connection = self.connection(ANSWER_LIMIT)?;
        let info: String = redis::cmd("INFO").arg("everything").query(&mut connection).map_err(io::Error::other)?;
        let counted = info_field(&info, "total_commands_processed:").and_then(|count| count.parse().ok());
        let run_id = info_field(&info, "run_id:").map(str::to_owned);
        run_id.zip(counted).ok_or_else(|| io::Error::other("INFO says nothing of commands"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_server_and_an_old_answer_add_no_commands() {
        let mut commands = Commands::default();
        for (run_id, counted, total) in
            [("a", 40, 0), ("a", 90, 50), ("a", 70, 50), ("a", 91, 51), ("b", 5000, 51), ("b", 5003, 54)]
        {
            commands.add((run_id.to_owned(), counted));
            assert_eq!(commands.total, total, "{run_id} {counted}");
        }
    }
}
