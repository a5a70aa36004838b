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
use tokio::time::{sleep, timeout};

use super::backlog::Backlog;
use super::health::{Health, keep};
use super::introduce::{establish, is_passing, node_error, said};
use super::line::{Line, MOST_IN_FLIGHT, Sent};
use super::reply::{node_time, parse_hold};
use super::trust::Trust;
use super::wire::Wire;
use super::{Asker, Common, Message, Request, pack};
use crate::config::NodeAddress;
use crate::environment::{Environment, random_time};
use crate::error::NodeError;

/// How many requests are taken, and how much is read, in one go: whoever keeps one node busy must not starve the others.
const MOST_AT_ONCE: usize = 256;

/// How many unacknowledged releases are kept for a node that is away. Older ones are left to the end of their lease.
const MOST_OWED: usize = 4 * MOST_IN_FLIGHT;

/// At least this long may a connection take to be made, or be silent before another is tried.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

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
    early: Backlog,
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
            early: Backlog::new(index),
            owed: VecDeque::new(),
            down: None,
            closing: false,
        }
    }

    /// Until the client is gone.
    pub(super) async fn run(mut self) {
        while let Some(wire) = self.connect().await {
            let Some(broken) = self.serve(wire).await else { return };
            self.down = Some(broken);
        }
    }

    fn patience(&self) -> Duration {
        LEAST_PATIENCE.max(2 * self.common.timeout)
    }

    /// Tries until there is a connection; `None` when the client is gone and nothing is left to send.
    async fn connect(&mut self) -> Option<Wire> {
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = {
                let environment = Arc::clone(&self.environment);
                let address = self.address.clone();
                let common = Arc::clone(&self.common);
                async move { establish(environment.as_ref(), &address, &common).await }
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
            let refused = match made.and_then(|(wire, health)| {
                self.admit(&health)?;
                Ok(wire)
            }) {
                Ok(made) => return Some(made),
                Err(error) => error,
            };
            self.down = Some(refused);
            for request in self.early.take() {
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
            self.early.push(Request { command: pack(&keep()), asker: Asker::Nobody }, still_trying);
        }
        Ok(())
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
    async fn serve(&mut self, wire: Wire) -> Option<NodeError> {
        let mut line = Line::new(wire);
        let mut waiting = Backlog::new(self.index);
        waiting.append(mem::take(&mut self.owed));
        waiting.append(self.early.take());
        self.down = None;

        let ended = poll_fn(|cx| {
            line.gathers = false;
            let mut taken = 0;
            loop {
                // In the end nothing may be left behind for want of room.
                while (self.closing || line.has_room())
                    && let Some(request) = waiting.pop(|| line.overdue(self.environment.now()))
                {
                    self.accept(&mut line, request);
                }
                while !self.closing {
                    if taken == MOST_AT_ONCE {
                        cx.waker().wake_by_ref();
                        break;
                    }
                    taken += 1;
                    match self.requests.poll_recv(cx) {
                        Poll::Ready(Some(Message::Request(request))) if line.has_room() => {
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

    fn accept(&mut self, line: &mut Line, request: Request) {
        let index = self.index;
        let now = self.environment.now();
        match &request.asker {
            Asker::Hold(_) | Asker::Look(_) if line.silent => {
                request.asker.answer(index, Err(line.overdue(now)));
            }
            Asker::Release(round) if !round.has_touched(index) => round.untouched(index),
            Asker::Hold(round) => match self.trust.quarantine(now, self.common.longest_lease()) {
                // Whoever holds comes back to a node that forgot; nobody new is let in.
                Some(why) if round.acquires() => request.asker.answer(index, Err(why)),
                uncounted => {
                    round.touch(index);
                    line.push(request, now, uncounted);
                }
            },
            Asker::Release(round) => {
                round.touch(index);
                line.push(request, now, None);
            }
            Asker::Look(_) | Asker::Loading | Asker::Nobody => line.push(request, now, None),
        }
    }

    /// Delivers what has been answered, oldest first. Says how many that were, or why the connection is broken.
    fn settle(&mut self, line: &mut Line, cx: &mut Context<'_>) -> Result<usize, NodeError> {
        let (mut heard, mut settled) = (0, 0);
        while heard < MOST_AT_ONCE
            && let Some(value) = line.wire.poll_read(cx)?
        {
            heard += 1;
            if let Value::Push { kind, data } = &value {
                self.common.tickets.heard(self.index, kind, data);
                continue;
            }
            let result = said(value);
            if let Err(error) = &result
                && let Some(Sent { request: Request { asker: Asker::Release(_), .. }, .. }) = line.in_flight.front()
                && is_passing(error)
            {
                return Err(node_error(error)); // A release must be heard: it is sent again on the next connection.
            }
            let Some(sent) = line.settle() else {
                return Err(NodeError::Nonsense(
                    format!("an answer to nothing: {result:?}").chars().take(200).collect(),
                ));
            };
            line.silent = false;
            settled += 1;
            let now = self.environment.now();
            let stamp = match sent.request.asker {
                Asker::Hold(_) | Asker::Release(_) => result.as_ref().ok().and_then(node_time),
                Asker::Look(_) | Asker::Loading | Asker::Nobody => None,
            };
            self.trust.answered(sent.since, now, stamp, self.common.shortest_lease());
            // This very answer may have shown that the node's clock jumped.
            let uncounted = sent.uncounted.clone().or_else(|| self.trust.quarantine(now, self.common.longest_lease()));
            match (result, uncounted) {
                (Err(error), uncounted) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    if sent.again {
                        // It does not learn them. What it says of that is heard when the next connection is made.
                        line.in_flight.push_front(sent);
                        return Err(node_error(&error));
                    }
                    match &sent.request.asker {
                        // Its release may have overtaken it, and taken its ticket out.
                        Asker::Hold(round) if round.is_moot() => {
                            sent.request.asker.answer(self.index, Err(node_error(&error)));
                        }
                        _ => line.reload(sent.request, now, uncounted),
                    }
                }
                (Ok(value), uncounted)
                    if matches!(&sent.request.asker, Asker::Hold(round) if uncounted.is_some() || line.is_undone(round))
                        && parse_hold(&value).is_yes() =>
                {
                    sent.request.asker.answer(self.index, Err(uncounted.unwrap_or(NodeError::Repeats)));
                }
                (result, _) => sent.request.asker.answer(self.index, result.map_err(|error| node_error(&error))),
            }
        }
        if heard == MOST_AT_ONCE {
            cx.waker().wake_by_ref();
        }
        Ok(settled)
    }
}

fn still_trying() -> NodeError {
    NodeError::Connect("still trying".to_owned())
}
