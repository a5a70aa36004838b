//! The task behind a [`Node`](super::Node): connects, sends in order, delivers answers, reconnects.
//!
//! redis-rs does the talking: its `MultiplexedConnection` is handed a stream, and its driver is polled by this very task,
//! so a request crosses one task on its way out and one on its way back, whatever the number of requests under way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::select;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Sleep, sleep, timeout};

use super::bell::Bell;
use super::health::{Health, keep};
use super::introduce::{Driver, establish, is_from_server, node_error};
use super::reply::{node_time, parse_hold};
use super::trust::Trust;
use super::{Asker, Common, Message, Request, script};
use crate::config::NodeAddress;
use crate::environment::{Environment, Moment, random_time};
use crate::error::NodeError;

/// How much may be under way to a node at once. What comes on top waits in the queue, and is turned away if the node
/// falls silent.
pub(super) const MOST_IN_FLIGHT: usize = 4096;

/// How many unacknowledged releases are kept for a node that is away. Older ones are left to the end of their lease.
const MOST_OWED: usize = 1024;

/// At least this long may a connection take to be made, or be silent before another is tried.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// A server that answers so was asked at a bad moment.
const PASSING: [&str; 4] = ["LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN"];

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Connection {
    index: usize,
    name: Arc<str>,
    address: NodeAddress,
    environment: Arc<dyn Environment>,
    common: Arc<Common>,
    trust: Trust,
    requests: UnboundedReceiver<Message>,
    /// What came before the first connection was made or refused.
    early: VecDeque<Request>,
    /// Releases that the node has not acknowledged, in order.
    owed: VecDeque<Request>,
    /// Why there is no connection; `None` until the first attempt ends.
    down: Option<NodeError>,
    closing: bool,
}

impl Connection {
    pub(super) fn new(
        index: usize,
        name: Arc<str>,
        address: NodeAddress,
        environment: Arc<dyn Environment>,
        common: Arc<Common>,
        requests: UnboundedReceiver<Message>,
    ) -> Self {
        Self {
            index,
            name,
            address,
            environment,
            trust: Trust::new(common.validity),
            common,
            requests,
            early: VecDeque::new(),
            owed: VecDeque::new(),
            down: None,
            closing: false,
        }
    }

    /// Until the client is gone.
    pub(super) async fn run(mut self) {
        while let Some((connection, driver)) = self.connect().await {
            let Some(broken) = self.serve(connection, driver).await else { return };
            self.down = Some(broken);
        }
    }

    fn patience(&self) -> Duration {
        LEAST_PATIENCE.max(2 * self.common.timeout)
    }

    /// Tries until there is a connection; `None` when the client is gone and nothing is left to send.
    async fn connect(&mut self) -> Option<(MultiplexedConnection, Driver)> {
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = {
                let environment = Arc::clone(&self.environment);
                let address = self.address.clone();
                let (index, common) = (self.index, Arc::clone(&self.common));
                async move { establish(environment.as_ref(), &address, index, &common).await }
            };
            let patience = self.patience();
            let mut attempt = Box::pin(timeout(patience, attempt));
            let made = loop {
                if self.is_finished() {
                    return None;
                }
                select! {
                    biased;
                    made = &mut attempt => break made.unwrap_or(Err(NodeError::NoAnswer(patience))),
                    message = self.requests.recv(), if !self.closing => self.while_away(message),
                }
            };
            let refused = match made.and_then(|(connection, driver, health)| {
                self.admit(&health)?;
                Ok((connection, driver))
            }) {
                Ok(made) => return Some(made),
                Err(error) => error,
            };
            self.down = Some(refused);
            for request in mem::take(&mut self.early) {
                self.turn_away(request);
            }

            let rest = sleep(random_time(self.environment.as_ref(), pause / 2..pause));
            tokio::pin!(rest);
            loop {
                if self.is_finished() {
                    return None;
                }
                select! {
                    biased;
                    () = &mut rest => break,
                    message = self.requests.recv(), if !self.closing => self.while_away(message),
                }
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Takes note of the server that answers, or says why it cannot have a vote at all.
    fn admit(&mut self, health: &Health) -> Result<(), NodeError> {
        if health.is_replica {
            return Err(NodeError::Replica);
        }
        if let Some(policy) = &health.evicts_by {
            return Err(NodeError::MayEvict { policy: policy.clone() });
        }
        if let Some(run_id) = &health.run_id {
            let claimed = self.common.claim(self.index, &self.name, run_id);
            claimed.map_err(|other| NodeError::SameServer(other.to_string()))?;
        }
        let now = self.environment.now();
        self.trust.connected(now, health);
        if health.is_durable && self.trust.quarantine(now, self.common.longest_lease()).is_none() {
            self.early.push_back(Request { command: Arc::new(keep()), asker: Asker::Nobody });
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.closing && (self.down.is_some() || (self.early.is_empty() && self.owed.is_empty()))
    }

    fn while_away(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Request(request)) if self.down.is_none() && self.early.len() < MOST_IN_FLIGHT => {
                self.early.push_back(request);
            }
            Some(Message::Request(request)) => self.turn_away(request),
            Some(Message::Close) | None => self.closing = true,
        }
    }

    /// Answers a request without a connection, unless it is a release that the node must hear of some day.
    fn turn_away(&mut self, request: Request) {
        match &request.asker {
            Asker::Release(round) if round.has_touched(self.index) => self.owe(request),
            Asker::Release(round) => round.untouched(self.index),
            _ => {
                let why = self.down.clone().unwrap_or_else(|| NodeError::Connect("still trying".to_owned()));
                request.asker.answer(self.index, Err(why));
            }
        }
    }

    fn owe(&mut self, request: Request) {
        if self.owed.len() == MOST_OWED {
            self.owed.pop_front();
        }
        self.owed.push_back(request);
    }

    /// Sends and delivers until the connection breaks; `None` when the client is gone and all is done.
    async fn serve(&mut self, connection: MultiplexedConnection, mut driver: Driver) -> Option<NodeError> {
        let mut line = Line { connection, in_flight: VecDeque::new(), silent: false, alarm: None };
        let mut waiting: VecDeque<Request> = mem::take(&mut self.owed);
        waiting.append(&mut self.early);
        self.down = None;

        let bell = Arc::new(Bell::default());
        let inner = Waker::from(Arc::clone(&bell));
        let ended = poll_fn(|outer| {
            bell.attend(outer);
            let mut inner = Context::from_waker(&inner);
            let cx = &mut inner;
            loop {
                while let Some(request) = waiting.pop_front() {
                    self.accept(&mut line, request, cx);
                }
                while !self.closing && line.has_room() {
                    match self.requests.poll_recv(outer) {
                        Poll::Ready(Some(Message::Request(request))) => self.accept(&mut line, request, cx),
                        Poll::Ready(Some(Message::Close) | None) => self.closing = true,
                        Poll::Pending => break,
                    }
                }
                bell.silence();
                let driver_ended = driver.as_mut().poll(cx).is_ready();
                let settled = match self.settle(&mut line, cx) {
                    Ok(settled) => settled,
                    Err(broken) => return Poll::Ready(Some(broken)),
                };
                if driver_ended {
                    return Poll::Ready(Some(NodeError::Disconnected("closed by the server".to_owned())));
                }
                if self.closing && line.in_flight.is_empty() {
                    return Poll::Ready(None);
                }
                if settled == 0 {
                    match line.watch(self.common.timeout, self.environment.as_ref(), outer) {
                        Poll::Pending => {
                            bell.leave();
                            return Poll::Pending;
                        }
                        Poll::Ready(owed) if owed >= self.patience() => {
                            return Poll::Ready(Some(NodeError::NoAnswer(owed)));
                        }
                        Poll::Ready(owed) if self.closing && owed >= self.common.timeout => return Poll::Ready(None),
                        Poll::Ready(_) => {}
                    }
                }
            }
        })
        .await;
        let broken = ended?;
        self.down = Some(broken.clone());
        for sent in line.in_flight {
            match sent.request.asker {
                Asker::Release(_) => self.owe(sent.request),
                asker => asker.answer(self.index, Err(NodeError::Disconnected(broken.to_string()))),
            }
        }
        Some(broken)
    }

    fn accept(&mut self, line: &mut Line, request: Request, cx: &mut Context<'_>) {
        let index = self.index;
        let now = self.environment.now();
        match &request.asker {
            Asker::Hold(_) | Asker::Look(_) if line.silent => {
                let owed = line.owes_for(now);
                request.asker.answer(index, Err(NodeError::Silent(owed)));
            }
            Asker::Release(round) if !round.has_touched(index) => round.untouched(index),
            Asker::Hold(round) => match self.trust.quarantine(now, self.common.longest_lease()) {
                // Whoever holds comes back to a node that forgot; nobody new is let in.
                Some(why) if round.acquires() => request.asker.answer(index, Err(why)),
                uncounted => {
                    round.touch(index);
                    line.push(request, now, uncounted, cx);
                }
            },
            Asker::Release(round) => {
                round.touch(index);
                line.push(request, now, None, cx);
            }
            Asker::Look(_) | Asker::Nobody => line.push(request, now, None, cx),
        }
    }

    /// Delivers what has been answered, oldest first. Says how many that were, or why the connection is broken.
    fn settle(&mut self, line: &mut Line, cx: &mut Context<'_>) -> Result<usize, NodeError> {
        let mut settled = 0;
        while let Some(Poll::Ready(result)) = line.in_flight.front_mut().map(|sent| sent.answer.as_mut().poll(cx)) {
            let result = match result {
                Ok(Value::ServerError(error)) => Err(RedisError::from(error)),
                result => result,
            };
            if let Err(error) = &result
                && !is_from_server(error)
            {
                return Err(NodeError::Disconnected(error.to_string()));
            }
            if let Err(error) = &result
                && let Some(Sent { request: Request { asker: Asker::Release(_), .. }, .. }) = line.in_flight.front()
                && error.code().is_some_and(|code| PASSING.contains(&code))
            {
                return Err(node_error(error)); // A release must be heard: it is sent again on the next connection.
            }
            // The loop's condition saw it at the front.
            let Some(sent) = line.in_flight.pop_front() else { break };
            line.silent = false;
            settled += 1;
            let now = self.environment.now();
            let stamp = match sent.request.asker {
                Asker::Hold(_) | Asker::Release(_) => result.as_ref().ok().and_then(node_time),
                Asker::Look(_) | Asker::Nobody => None,
            };
            self.trust.answered(sent.since, now, stamp, self.common.shortest_lease());
            // This very answer may have shown that the node's clock jumped.
            let uncounted = sent.uncounted.or_else(|| self.trust.quarantine(now, self.common.longest_lease()));
            match (result, uncounted) {
                (Err(error), uncounted) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    line.reload(sent.request, now, uncounted, cx);
                }
                (Ok(value), Some(why))
                    if matches!(sent.request.asker, Asker::Hold(_)) && parse_hold(&value).is_yes() =>
                {
                    sent.request.asker.answer(self.index, Err(why));
                }
                (result, _) => sent.request.asker.answer(self.index, result.map_err(|error| node_error(&error))),
            }
        }
        Ok(settled)
    }
}

/// What is under way on one connection.
struct Line {
    connection: MultiplexedConnection,
    in_flight: VecDeque<Sent>,
    /// An answer is overdue: nothing new is sent but releases.
    silent: bool,
    alarm: Option<Pin<Box<Sleep>>>,
}

struct Sent {
    request: Request,
    since: Moment,
    /// Why a yes to it does not count.
    uncounted: Option<NodeError>,
    answer: Pin<Box<dyn Future<Output = RedisResult<Value>> + Send>>,
}

impl Line {
    fn has_room(&self) -> bool {
        self.silent || self.in_flight.len() < MOST_IN_FLIGHT
    }

    fn owes_for(&self, now: Moment) -> Duration {
        self.in_flight.front().map_or(Duration::ZERO, |oldest| now.since(oldest.since))
    }

    fn push(&mut self, request: Request, now: Moment, uncounted: Option<NodeError>, cx: &mut Context<'_>) {
        let mut connection = self.connection.clone();
        let command = Arc::clone(&request.command);
        let mut answer = Box::pin(async move { connection.send_packed_command(&command).await });
        // The first poll puts it into the connection's queue, so the order of calls is the order on the wire. A future
        // that is ready already has failed, and says so again to whoever polls it: keep that for `settle`.
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = match answer.as_mut().poll(cx) {
            Poll::Ready(result) => Box::pin(std::future::ready(result)),
            Poll::Pending => answer,
        };
        self.in_flight.push_back(Sent { request, since: now, uncounted, answer });
    }

    /// The node has lost its scripts (`SCRIPT FLUSH`, a restart behind a proxy): it gets them and the request again.
    /// Other requests may have overtaken this one; the ballots see to it that a late one does no harm.
    fn reload(&mut self, request: Request, now: Moment, uncounted: Option<NodeError>, cx: &mut Context<'_>) {
        for command in script::load() {
            self.push(Request { command: Arc::new(command), asker: Asker::Nobody }, now, None, cx);
        }
        self.push(request, now, uncounted, cx);
    }

    /// Ready, with the age of the oldest unanswered request, when it is time to look at that again.
    fn watch(&mut self, timeout: Duration, environment: &dyn Environment, cx: &mut Context<'_>) -> Poll<Duration> {
        if self.in_flight.is_empty() {
            return Poll::Pending;
        }
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(timeout / 2)));
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.alarm = None;
        let owed = self.owes_for(environment.now());
        self.silent = owed >= timeout;
        Poll::Ready(owed)
    }
}

impl Asker {
    fn answer(self, index: usize, result: Result<Value, NodeError>) {
        match self {
            Self::Hold(round) | Self::Release(round) => round.answered(index, result),
            Self::Look(asker) => drop(asker.send(result)),
            Self::Nobody => {}
        }
    }
}
