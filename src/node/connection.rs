//! What is behind a [`Node`](super::Node), in the one task of all connections: connects, sends in order, delivers answers,
//! reconnects.
//!
//! It has the stream to itself, so a request crosses one task on its way out and one on its way back, whatever the number
//! of requests under way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::{ErrorKind, ServerErrorKind, Value};
use tokio::select;
use tokio::sync::mpsc::UnboundedReceiver;

use super::backlog::Backlog;
use super::introduce::{introduce, is_passing, is_replica, node_error, said};
use super::known::{Known, Standing, Wait, standing};
use super::line::{Line, MOST_IN_FLIGHT, Sent};
use super::wire::Wire;
use super::{Asker, Common, Message, Request};
use crate::config::NodeAddress;
use crate::environment::{Environment, random_time, within};
use crate::error::{ClientError, NodeError};

/// How many requests are taken, and how much is read, in one go: whoever keeps one node busy must not starve the others.
const MOST_AT_ONCE: usize = 256;

/// How many calls of waiters are taken from a node before it has to wait for a moment: nothing bounds what it sends unasked.
const MOST_CALLS_AT_ONCE: usize = 64;

/// How many unacknowledged releases are kept for a node that is away. Older ones are left to the end of their lease.
const MOST_OWED: usize = 4 * MOST_IN_FLIGHT;

/// At least this long may a connection take to be made, or be silent before another is tried.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection that lasted so many times as long as the pause before the next one was worth making.
const WORTH: u32 = 4;

pub(super) struct Connection {
    index: usize,
    name: Arc<str>,
    address: NodeAddress,
    environment: Arc<dyn Environment>,
    common: Arc<Common>,
    /// For the end of the node's quarantine.
    wait: Wait,
    requests: UnboundedReceiver<Message>,
    /// What came before the first connection was made or refused.
    early: Backlog,
    /// Releases that the node has not acknowledged, in order.
    owed: VecDeque<Request>,
    /// Why there is no connection; `None` until the first attempt ends.
    down: Option<NodeError>,
    /// How long to wait before the next attempt.
    pause: Duration,
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
            wait: Wait::default(),
            common,
            requests,
            early: Backlog::new(index),
            owed: VecDeque::new(),
            down: None,
            pause: Duration::ZERO,
            closing: false,
        }
    }

    /// Until the client is gone, or its runtime.
    pub(super) async fn run(mut self) {
        while let Some((wire, known)) = self.connect().await {
            let Some(broken) = self.serve(wire, known).await else { return };
            self.down = Some(broken);
        }
        self.requests.close();
        while let Ok(Message::Request(request)) = self.requests.try_recv() {
            self.early.push(request, still_trying);
        }
        for request in self.early.take().into_iter().chain(mem::take(&mut self.owed)) {
            request.asker.answer(self.index, Err(ClientError::RuntimeEnded.into()));
        }
    }

    fn patience(&self) -> Duration {
        LEAST_PATIENCE.max(2 * self.common.timeout)
    }

    /// Tries until there is a connection; `None` when the client is gone and nothing is left to send.
    async fn connect(&mut self) -> Option<(Wire, Known)> {
        loop {
            self.rest().await?;
            let attempt = {
                let environment = Arc::clone(&self.environment);
                let address = self.address.clone();
                let (common, name, index) = (Arc::clone(&self.common), Arc::clone(&self.name), self.index);
                async move { introduce(environment.as_ref(), &address, &common, index, &name).await }
            };
            let (patience, environment) = (self.patience(), Arc::clone(&self.environment));
            let mut attempt = Box::pin(within(environment.as_ref(), patience, attempt));
            let made = loop {
                if self.is_finished() {
                    return None;
                }
                select! {
                    biased;
                    () = self.common.life.ended() => return None,
                    made = &mut attempt => break made.unwrap_or(Err(NodeError::NoAnswer(patience))),
                    message = self.requests.recv(), if !self.closing => self.while_away(message),
                }
            };
            let refused = match made {
                Ok(made) => return Some(made),
                Err(error) => error,
            };
            if !refused.is_about_list() {
                self.common.unclaim(self.index);
            }
            self.down = Some(refused);
            for request in self.early.take() {
                self.turn_away(request);
            }

            self.pause = self.longer_pause();
        }
    }

    /// Lets the pause pass; `None` when the client is gone and nothing is left to send.
    async fn rest(&mut self) -> Option<()> {
        if self.pause.is_zero() {
            return Some(());
        }
        let mut rest = self.environment.sleep(random_time(self.environment.as_ref(), self.pause / 2..self.pause));
        loop {
            if self.is_finished() {
                return None;
            }
            select! {
                biased;
                () = self.common.life.ended() => return None,
                () = &mut rest => return Some(()),
                message = self.requests.recv(), if !self.closing => self.while_away(message),
            }
        }
    }

    fn longer_pause(&self) -> Duration {
        (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE)
    }

    /// A connection has broken. The next one is made at once if this one was of use, or ended without having been asked and was
    /// not short. A node that works only until it is asked, or does not keep to the protocol, is left alone longer and longer.
    fn pause_after(&mut self, line: &Line, broken: &NodeError) {
        let longer = self.longer_pause();
        let lasted = self.environment.now().since(line.made);
        let was_good = line.done > 0 || (line.in_flight.is_empty() && lasted >= WORTH * longer);
        let is_hostile = matches!(broken, NodeError::Nonsense(_) | NodeError::TooLarge { .. });
        self.pause = if was_good && !is_hostile { Duration::ZERO } else { longer };
    }

    fn is_finished(&self) -> bool {
        self.closing && (self.down.is_some() || (self.early.is_empty() && self.owed.is_empty()))
    }

    fn while_away(&mut self, message: Option<Message>) {
        match message {
            // What is to be released may have been asked for just before.
            Some(Message::Request(request))
                if self.down.is_none()
                    && (self.early.len() < MOST_IN_FLIGHT || matches!(request.asker, Asker::Release(_))) =>
            {
                self.early.push(request, still_trying);
            }
            Some(Message::Request(request)) => self.turn_away(request),
            Some(Message::Then(next)) => next(),
            Some(Message::Close) | None => self.closing = true,
        }
    }

    /// Answers a request without a connection, unless it is a release that the node must hear of some day.
    fn turn_away(&mut self, request: Request) {
        match &request.asker {
            Asker::Release(round) if round.has_touched(self.index) => self.owe(request),
            Asker::Release(round) => round.untouched(self.index),
            _ => {
                let why = self.down.clone().unwrap_or_else(still_trying);
                request.asker.answer(self.index, Err(why));
            }
        }
    }

    fn owe(&mut self, request: Request) {
        if self.owed.len() == MOST_OWED
            && let Some(oldest) = self.owed.pop_front()
        {
            oldest.asker.answer(self.index, Err(self.down.clone().unwrap_or_else(still_trying)));
        }
        self.owed.push_back(request);
    }

    /// Sends and delivers until the connection breaks; `None` when the client is gone and all is done.
    async fn serve(&mut self, wire: Wire, known: Known) -> Option<NodeError> {
        let mut line = Line::new(wire, known, self.environment.now(), self.common.conflicts());
        let mut waiting = Backlog::new(self.index);
        waiting.append(mem::take(&mut self.owed));
        waiting.append(self.early.take());
        self.down = None;

        let ended = poll_fn(|cx| {
            let is_last = self.common.life.has_ended();
            if !is_last {
                line.begin(cx);
            }
            let mut taken = 0;
            loop {
                // In the end nothing may be left behind for want of room.
                while (self.closing || is_last || line.has_room())
                    && let Some(request) = waiting.pop(|| line.overdue(self.environment.now()))
                {
                    self.accept(&mut line, request);
                }
                while !self.closing {
                    if taken == MOST_AT_ONCE && !is_last {
                        cx.waker().wake_by_ref();
                        break;
                    }
                    taken += 1;
                    match self.requests.poll_recv(cx) {
                        Poll::Ready(Some(Message::Request(request))) if is_last || line.has_room() => {
                            self.accept(&mut line, request);
                        }
                        Poll::Ready(Some(Message::Request(request))) => {
                            waiting.push(request, || line.overdue(self.environment.now()));
                        }
                        Poll::Ready(Some(Message::Then(next))) => next(),
                        Poll::Ready(Some(Message::Close) | None) => self.closing = true,
                        Poll::Pending => break,
                    }
                }
                if is_last {
                    return self.send_last(&mut line, cx).map(Some);
                }
                if line.is_stale {
                    return Poll::Ready(Some(NodeError::Forgot));
                }
                let written = line.poll_write(cx);
                // Also when that failed: what was answered before counts.
                let settled = match self.settle(&mut line, cx).and_then(|settled| written.map(|()| settled)) {
                    Ok(settled) => settled,
                    Err(broken) => return Poll::Ready(Some(broken)),
                };
                if self.closing && line.in_flight.is_empty() && waiting.is_empty() {
                    return Poll::Ready(None);
                }
                if settled == 0 {
                    match line.watch(self.common.timeout, self.environment.as_ref(), cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(owed) if owed >= self.patience() => {
                            return Poll::Ready(Some(NodeError::NoAnswer(owed)));
                        }
                        // Not before what was gathered has left.
                        Poll::Ready(owed)
                            if self.closing && !line.gathers && owed >= self.common.timeout && waiting.is_empty() =>
                        {
                            return Poll::Ready(None);
                        }
                        Poll::Ready(_) => {}
                    }
                }
            }
        })
        .await;
        let broken = ended?;
        self.down = Some(broken.clone());
        self.pause_after(&line, &broken);
        for sent in line.in_flight {
            match sent.request.asker {
                Asker::Release(_) => self.owe(sent.request),
                asker => asker.answer(self.index, Err(NodeError::Disconnected(broken.to_string()))),
            }
        }
        for request in waiting.take() {
            self.turn_away(request);
        }
        Some(broken)
    }

    /// The runtime has ended: the releases leave, as far as the socket takes them, and no answer is read any more.
    fn send_last(&self, line: &mut Line, cx: &mut Context<'_>) -> Poll<NodeError> {
        line.gathers = false;
        let written = line.poll_write(cx);
        for sent in line.in_flight.drain(..) {
            sent.request.asker.answer(self.index, Err(ClientError::RuntimeEnded.into()));
        }
        written.map_or_else(Poll::Ready, |()| Poll::Pending)
    }

    fn accept(&mut self, line: &mut Line, request: Request) {
        let index = self.index;
        let now = self.environment.now();
        match &request.asker {
            Asker::Hold(_) | Asker::Look(_) if self.common.life.has_ended() => {
                request.asker.answer(index, Err(ClientError::RuntimeEnded.into()));
            }
            Asker::Hold(_) | Asker::Look(_) if line.silent => {
                request.asker.answer(index, Err(line.overdue(now)));
            }
            Asker::Release(round) if !round.has_touched(index) => round.untouched(index),
            Asker::Hold(round) => {
                if let Some(conflict) = self.common.conflict(index).filter(|_| round.acquires()) {
                    // The nodes may have changed since they were asked: an idle client would not learn of that otherwise.
                    line.is_stale |= line.conflicts < self.common.conflicts();
                    request.asker.answer(index, Err(conflict));
                } else {
                    round.touch(index);
                    line.push(request, now, &self.common, &self.wait);
                }
            }
            Asker::Release(round) => {
                round.touch(index);
                line.push(request, now, &self.common, &self.wait);
            }
            Asker::Look(_) | Asker::Loading => line.push(request, now, &self.common, &self.wait),
        }
    }

    /// Delivers what has been answered, oldest first. Says how many that were, or why the connection is broken.
    fn settle(&mut self, line: &mut Line, cx: &mut Context<'_>) -> Result<usize, NodeError> {
        let (mut heard, mut called, mut settled) = (0, 0, 0);
        while heard < MOST_AT_ONCE
            && called < MOST_CALLS_AT_ONCE
            && let Some(value) = line.poll_read(cx)?
        {
            heard += 1;
            if let Value::Push { kind, data } = &value {
                if self.common.tickets.heard(self.index, kind, data) {
                    called += 1;
                    continue;
                }
                return Err(NodeError::Nonsense(format!("a message of the kind {kind:?} that was not asked for")));
            }
            let result = said(value);
            if let Err(error) = &result
                && (is_replica(error) || (is_passing(error) && line.awaits_release()))
            {
                // Another process must be asked, or the same one later. A release is sent again on the next connection.
                return Err(node_error(error));
            }
            let Some(sent) = line.settle() else {
                return Err(NodeError::Nonsense(
                    format!("an answer to nothing: {result:?}").chars().take(200).collect(),
                ));
            };
            line.silent = false;
            settled += 1;
            match result {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.repeat(line, sent, &error)?;
                }
                result => self.deliver(line, sent, result.map_err(|error| node_error(&error)))?,
            }
        }
        if called >= MOST_CALLS_AT_ONCE {
            line.rest(cx);
        } else if heard == MOST_AT_ONCE {
            cx.waker().wake_by_ref();
        }
        Ok(settled)
    }

    /// The node had lost its scripts.
    fn repeat(&mut self, line: &mut Line, sent: Sent, error: &redis::RedisError) -> Result<(), NodeError> {
        let now = self.environment.now();
        let refused = line.refused_scripts(now).cloned();
        match (&sent.request.asker, refused) {
            // Its release may have overtaken it, and taken its ticket out.
            (Asker::Hold(round), _) if round.is_moot() => sent.request.asker.answer(self.index, Err(node_error(error))),
            // A release is sent again on the next connection.
            (Asker::Release(_), Some(reason)) => {
                line.in_flight.push_front(sent);
                return Err(reason);
            }
            (_, Some(reason)) => sent.request.asker.answer(self.index, Err(reason)),
            _ if sent.again => {
                line.in_flight.push_front(sent);
                return Err(node_error(error));
            }
            _ => line.reload(sent.request, now, &self.common, &self.wait),
        }
        Ok(())
    }

    /// Hands an answer to what was waiting for it, and takes note of what it says of the node itself.
    fn deliver(&mut self, line: &mut Line, sent: Sent, result: Result<Value, NodeError>) -> Result<(), NodeError> {
        if let (Asker::Loading, Err(error)) = (&sent.request.asker, &result) {
            line.refuses_scripts(error.clone(), self.environment.now());
        }
        let (Asker::Hold(_), Ok(value)) = (&sent.request.asker, &result) else {
            line.done += usize::from(result.is_ok() && matches!(sent.request.asker, Asker::Release(_)));
            sent.request.asker.answer(self.index, result);
            return Ok(());
        };
        match standing(value) {
            Standing::Unchanged => {}
            Standing::Record(text) => {
                if !line.known.learn(text) {
                    return Err(NodeError::Nonsense("a node record that cannot be read".to_owned()));
                }
                self.common.learn_lease(line.known.longest());
            }
            Standing::Young(left) => {
                line.known.begin_wait(&mut self.wait, self.environment.now());
                sent.request.asker.answer(self.index, Err(NodeError::Quarantined { left }));
                return Ok(());
            }
            Standing::Forgot => {
                sent.request.asker.answer(self.index, Err(NodeError::Forgot));
                return Err(NodeError::Forgot);
            }
        }
        line.done += 1;
        sent.request.asker.answer(self.index, result);
        Ok(())
    }
}

fn still_trying() -> NodeError {
    NodeError::Connect("still trying".to_owned())
}
