//! What a node's answers do.

use std::task::Context;
use std::time::Duration;

use redis::{ErrorKind, PushKind, ServerErrorKind, Value};

use super::Connection;
use crate::error::NodeError;
use crate::node::Asker;
use crate::node::introduce::{is_passing, is_replica, is_unable, node_error, said};
use crate::node::known::{Standing, shown_clock, standing};
use crate::node::line::{Line, Sent};
use crate::text::excerpt;

/// So many answers are taken from a node before the others have their turn.
const MOST_ANSWERS: usize = 256;

/// The same for calls of waiters: nothing else bounds what a node sends unasked.
const MOST_CALLS: usize = 64;

impl Connection {
    /// Delivers what has been answered, oldest first. Says how many that were, or why the connection is broken.
    pub(super) fn settle(&mut self, line: &mut Line, cx: &mut Context<'_>) -> Result<usize, NodeError> {
        let (mut heard, mut called, mut settled, mut since) = (0, 0, 0, None);
        while heard < MOST_ANSWERS
            && called < MOST_CALLS
            && let Some(value) = line.poll_read(cx)?
        {
            heard += 1;
            if let Value::Push { kind, data } = &value {
                self.called(kind, data)?;
                called += 1;
                continue;
            }
            let result = said(value);
            if let Err(error) = &result
                && (is_replica(error) || (is_passing(error) && line.awaits_release()))
            {
                // Another process must be asked, or the same one later. A release is sent again on the next connection.
                return Err(node_error(error));
            }
            let Some(sent) = line.settle() else {
                return Err(NodeError::Nonsense(excerpt(&format!("an answer to nothing: {result:?}"))));
            };
            if line.silent {
                self.condition.is_silent(None);
            }
            line.silent = false;
            settled += 1;
            since.get_or_insert(sent.since);
            match result {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.repeat(line, sent, &error)?;
                }
                Err(error) if is_unable(&error) && matches!(sent.request.asker, Asker::Release(_)) => {
                    self.postpone(line, sent, &error, cx);
                }
                result => self.deliver(line, sent, result.map_err(|error| node_error(&error)))?,
            }
        }
        if let Some(since) = since {
            line.heard(since, self.environment.now());
            self.common.waits_for(self.index, line.last_wait());
            self.abandon();
        }
        if called >= MOST_CALLS {
            line.rest(cx);
        } else if heard == MOST_ANSWERS {
            cx.waker().wake_by_ref();
        }
        Ok(settled)
    }

    /// The node cannot do a release now.
    fn postpone(&self, line: &mut Line, sent: Sent, error: &redis::RedisError, cx: &mut Context<'_>) {
        if let Some((release, why)) = line.postpone(sent.request, node_error(error), cx) {
            release.asker.answer(self.index, Err(why));
        }
    }

    /// Takes what the node says unasked: a call of a waiter, or nothing that it may say.
    fn called(&self, kind: &PushKind, data: &[Value]) -> Result<(), NodeError> {
        if self.common.tickets.heard(self.index, kind, data) {
            return Ok(());
        }
        let unasked = format!("a message of the kind {kind:?} that was not asked for");
        Err(NodeError::Nonsense(excerpt(&unasked)))
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
            if result.is_ok() && matches!(sent.request.asker, Asker::Release(_)) {
                line.has_done();
            }
            sent.request.asker.answer(self.index, result);
            return Ok(());
        };
        self.common.sees_clock(self.index, shown_clock(value));
        match standing(value) {
            Standing::Unchanged => {}
            Standing::Record(text) => {
                if !line.known.learn(text) {
                    let nonsense = NodeError::Nonsense("a node record that cannot be read".to_owned());
                    sent.request.asker.answer(self.index, Err(nonsense.clone()));
                    return Err(nonsense);
                }
                self.common.learn_lease(line.known.longest());
                self.condition.is_quarantined(self.environment.now(), Duration::ZERO);
            }
            Standing::Young(left) => {
                line.known.begin_wait(&mut self.wait, self.environment.now());
                self.condition.is_quarantined(self.environment.now(), left);
                sent.request.asker.answer(self.index, Err(NodeError::Quarantined { left }));
                return Ok(());
            }
            Standing::Forgot => {
                sent.request.asker.answer(self.index, Err(NodeError::Forgot));
                return Err(NodeError::Forgot);
            }
        }
        line.has_done();
        sent.request.asker.answer(self.index, result);
        Ok(())
    }
}
