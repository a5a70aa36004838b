//! What a connection does while there is none: it tries, and keeps what the node must still get.

use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::select;

use super::super::connect_attempt::Made;
use super::super::inflight::{MOST_IN_FLIGHT, MOST_UNACKNOWLEDGED};
use super::super::pause;
use super::super::request::{Message, ReplyTo, Request};
use super::{Connection, End};
use crate::environment::{random_time, within};
use crate::error::NodeError;

impl Connection {
    /// Notes that there is no connection, and why.
    fn is_down(&mut self, why: NodeError) {
        self.condition.is_down(why.clone());
        self.down = Some(why);
    }

    /// Notes that there is no connection, and answers what waits for one.
    fn is_away(&mut self, why: NodeError) {
        self.is_down(why);
        for request in mem::take(&mut self.unacknowledged).into_iter().chain(self.early.take()) {
            self.turn_away(request);
        }
    }

    /// Tries until there is a connection; `None` when the client is gone and nothing is left to send.
    pub(super) async fn connect(&mut self) -> Option<Made> {
        loop {
            if !self.pause.is_zero() {
                let pause = random_time(self.environment.as_ref(), self.pause / 2..self.pause);
                self.meanwhile(self.environment.sleep(pause)).await?;
            }
            let mut attempt = self.attempt.take().unwrap_or_else(|| self.begin());
            let environment = Arc::clone(&self.environment);
            let soon = within(environment.as_ref(), self.silence_limit(), &mut attempt);
            let made = if let Some(made) = self.meanwhile(soon).await? {
                made
            } else {
                // Nodes that are far away may need longer. No request waits for that.
                if self.down.is_none() {
                    self.is_away(NodeError::Connecting);
                }
                self.meanwhile(attempt).await?
            };
            let refused = match made {
                Ok(made) => return Some(made),
                Err(error) => error,
            };
            if !refused.is_about_list() {
                self.common.unreachable(self.index);
            }
            self.common.waits_for(self.index, Duration::ZERO);
            self.is_away(refused);
            self.pause = pause::longer(self.pause);
        }
    }

    /// Waits for something while there is no connection; `None` when the client is gone and there is no more to be done.
    async fn meanwhile<T>(&mut self, awaited: impl Future<Output = T>) -> Option<T> {
        let mut awaited = pin!(awaited);
        loop {
            let may_send = self.down.is_none() && !(self.unacknowledged.is_empty() && self.early.is_empty());
            if self.closing.is_some() && !may_send {
                return None;
            }
            select! {
                biased;
                () = self.common.life.ended() => return None,
                done = &mut awaited => return Some(done),
                () = self.environment.sleep(self.common.timeout), if self.closing.is_some() => return None,
                message = self.requests.recv(), if self.closing.is_none() => self.while_away(message),
            }
        }
    }

    fn while_away(&mut self, message: Option<Message>) {
        match message {
            // A release is taken although there is no room: the hold that it follows may be among these requests.
            Some(Message::Request(request))
                if self.down.is_none()
                    && (self.early.len() < MOST_IN_FLIGHT || matches!(request.reply_to, ReplyTo::Release(_))) =>
            {
                self.early.push(request, || NodeError::Connecting);
            }
            Some(Message::Request(request)) => self.turn_away(request),
            Some(Message::Then(next)) => next(),
            Some(Message::Close) | None => self.close(),
        }
    }

    /// Answers a request without a connection, unless it is a release that the node must still get.
    pub(super) fn turn_away(&mut self, request: Request) {
        match &request.reply_to {
            ReplyTo::Release(round) if round.may_hold_state(self.index) => self.keep(request),
            ReplyTo::Release(round) => round.nothing_sent(self.index),
            _ => {
                let why = self.down.clone().unwrap_or(NodeError::Connecting);
                request.reply_to.answer(self.index, Err(why));
            }
        }
    }

    fn keep(&mut self, request: Request) {
        if self.unacknowledged.len() == MOST_UNACKNOWLEDGED
            && let Some(oldest) = self.unacknowledged.pop_front()
        {
            oldest.reply_to.answer(self.index, Err(self.down.clone().unwrap_or(NodeError::Connecting)));
        }
        self.unacknowledged.push_back(request);
    }

    /// Takes back what was under way when the connection ended. What is still wanted is sent again on the next connection, if that
    /// is made at once. A message that a node gets twice has the effect of one.
    pub(super) fn take_back(&mut self, request: Request, end: &End) {
        let (now, limit) = (self.environment.now(), self.common.timeout);
        let is_wanted = match &request.reply_to {
            ReplyTo::Release(_) => true,
            ReplyTo::Hold(round) => self.down.is_none() && !round.is_moot() && now.since(round.facts().started) < limit,
            ReplyTo::Look(reply_to) | ReplyTo::Revoke(reply_to) => self.down.is_none() && !reply_to.is_closed(),
            ReplyTo::Loading => false,
        };
        if is_wanted {
            if let ReplyTo::Hold(round) | ReplyTo::Release(round) = &request.reply_to {
                round.mark_resent(self.index);
            }
            return self.keep(request);
        }
        let why = match end {
            // What the next request will be told as well.
            End::Broken(broken @ (NodeError::Replica | NodeError::Nonsense(_) | NodeError::TooLarge { .. })) => {
                broken.clone()
            }
            End::Broken(broken) => NodeError::Disconnected(broken.to_string()),
            End::Done | End::Replaced(_) => NodeError::Disconnected("it was silent".to_owned()),
        };
        request.reply_to.answer(self.index, Err(why));
    }
}
