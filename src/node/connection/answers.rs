//! What the answers of a node bring about.

use std::task::Context;
use std::time::Duration;

use redis::{ErrorKind, PushKind, ServerErrorKind, Value};

use super::super::inflight::{Inflight, Sent};
use super::super::known::{Standing, shown_clock, standing, told_lease};
use super::super::request::ReplyTo;
use super::super::server_error::{is_passing, is_replica, is_unable, node_error, said};
use super::Connection;
use crate::error::NodeError;
use crate::text::excerpt;

/// How many calls of waiters are taken from a node before nothing is read from it for a moment: it sends them unasked. Answers are
/// bounded by what is in flight.
const MOST_CALLS: usize = 64;

impl Connection {
    /// Delivers the answers that have come, oldest first. Returns how many, or why the connection is broken.
    pub(super) fn settle(&mut self, inflight: &mut Inflight, cx: &mut Context<'_>) -> Result<usize, NodeError> {
        let (mut called, mut settled, mut since) = (0, 0, None);
        while called < MOST_CALLS
            && let Some(value) = inflight.poll_read(cx)?
        {
            if let Value::Push { kind, data } = &value {
                self.called(kind, data)?;
                called += 1;
                continue;
            }
            let result = said(value);
            if let Err(error) = &result
                && (is_replica(error) || (is_passing(error) && inflight.awaits_release()))
            {
                // Another process must be asked, or the same one later. A release is sent again on the next connection.
                return Err(node_error(error));
            }
            let Some(sent) = inflight.settle() else {
                return Err(NodeError::Nonsense(excerpt(&format!("an answer to nothing: {result:?}"))));
            };
            if inflight.silent {
                self.condition.is_silent(None);
            }
            inflight.silent = false;
            settled += 1;
            since.get_or_insert(sent.since);
            match result {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.repeat(inflight, sent, &error)?;
                }
                Err(error) if is_unable(&error) && matches!(sent.request.reply_to, ReplyTo::Release(_)) => {
                    self.postpone(inflight, sent, &error, cx);
                }
                result => {
                    let hold = matches!(sent.request.reply_to, ReplyTo::Hold(_)).then_some(sent.since);
                    let delivered = self.deliver(inflight, sent, result.map_err(|error| node_error(&error)));
                    // Only now: what the answer says of longer leases is known.
                    if let Some(since) = hold {
                        self.common.hearing.answered(self.index, since);
                    }
                    delivered?;
                }
            }
        }
        if let Some(since) = since {
            let now = self.environment.now();
            inflight.answered(since, now);
            self.common.telemetry.round_trip(self.index, now.since(since));
            self.common.waits_for(self.index, inflight.last_wait());
            self.abandon();
        }
        if called >= MOST_CALLS {
            inflight.rest(cx);
        }
        Ok(settled)
    }

    /// Keeps a release that the node cannot do now. What the owner sent behind it may be done before it then, and may have replaced the
    /// lease.
    fn postpone(&self, inflight: &mut Inflight, sent: Sent, error: &redis::RedisError, cx: &mut Context<'_>) {
        if let ReplyTo::Release(round) = &sent.request.reply_to {
            round.mark_resent(self.index);
        }
        if let Some((release, why)) = inflight.postpone(sent.request, node_error(error), cx) {
            release.reply_to.answer(self.index, Err(why));
        }
    }

    /// Takes what the node sends unasked. Only a call of a waiter is allowed.
    fn called(&self, kind: &PushKind, data: &[Value]) -> Result<(), NodeError> {
        if self.common.tickets.on_push(self.index, kind, data) {
            return Ok(());
        }
        let unasked = format!("a message of the kind {kind:?} that was not asked for");
        Err(NodeError::Nonsense(excerpt(&unasked)))
    }

    /// Sends a request again to a node that had lost its scripts, or answers it.
    fn repeat(&mut self, inflight: &mut Inflight, sent: Sent, error: &redis::RedisError) -> Result<(), NodeError> {
        let now = self.environment.now();
        let refused = inflight.refused_scripts(now).cloned();
        match (&sent.request.reply_to, refused) {
            // Its release may have been done before it. Sent again, it would enqueue its ticket anew.
            (ReplyTo::Hold(round), _) if round.is_moot() => {
                sent.request.reply_to.answer(self.index, Err(node_error(error)));
            }
            // A release is sent again on the next connection.
            (ReplyTo::Release(_), Some(reason)) => {
                inflight.unanswered.push_front(sent);
                return Err(reason);
            }
            (reply_to, Some(reason)) => {
                if let ReplyTo::Hold(_) = reply_to {
                    self.refuses(inflight, &reason);
                }
                sent.request.reply_to.answer(self.index, Err(reason));
            }
            _ if sent.again => {
                inflight.unanswered.push_front(sent);
                return Err(node_error(error));
            }
            (reply_to, None) => {
                // What the owner sent behind a release may be done before it now, and may have replaced the lease.
                if let ReplyTo::Release(round) = reply_to {
                    round.mark_resent(self.index);
                }
                inflight.reload(sent.request, now, &self.common, &self.wait);
            }
        }
        Ok(())
    }

    /// Takes note of a hold that was answered with an error.
    fn refuses(&self, inflight: &mut Inflight, why: &NodeError) {
        inflight.refuses_holds = true;
        self.condition.refuses(self.environment.now(), why.clone());
    }

    /// Takes note of a hold that was answered properly, whether it was granted or not.
    fn answers(&self, inflight: &mut Inflight) {
        if inflight.refuses_holds {
            inflight.refuses_holds = self.condition.answers(self.environment.now());
        }
    }

    /// Hands an answer to what was waiting for it, and takes note of what it says of the node itself.
    fn deliver(
        &mut self,
        inflight: &mut Inflight,
        sent: Sent,
        result: Result<Value, NodeError>,
    ) -> Result<(), NodeError> {
        if let (ReplyTo::Loading, Err(error)) = (&sent.request.reply_to, &result) {
            inflight.refuses_scripts(error.clone(), self.environment.now());
        }
        if let (ReplyTo::Hold(_) | ReplyTo::Revoke(_), Ok(value)) = (&sent.request.reply_to, &result)
            && let Some(longest) = told_lease(value)
        {
            self.common.learn_lease(longest);
        }
        if let (ReplyTo::Revoke(_), Ok(value)) = (&sent.request.reply_to, &result) {
            let standing = standing(value);
            if let Standing::Young(left) = standing {
                inflight.known.begin_wait(&mut self.wait, self.environment.now());
                self.condition.is_quarantined(self.environment.now(), left);
            }
            let has_forgotten = matches!(standing, Standing::Forgot);
            sent.request.reply_to.answer(self.index, result);
            // The next connection reads the record.
            return if has_forgotten { Err(NodeError::Forgot) } else { Ok(()) };
        }
        let (ReplyTo::Hold(_), Ok(value)) = (&sent.request.reply_to, &result) else {
            match (&sent.request.reply_to, &result) {
                (ReplyTo::Hold(_), Err(why)) => self.refuses(inflight, why),
                (ReplyTo::Release(_), Ok(_)) => inflight.has_done(),
                _ => {}
            }
            sent.request.reply_to.answer(self.index, result);
            return Ok(());
        };
        let now = self.environment.now();
        self.common.sees_clock(self.index, shown_clock(value));
        match standing(value) {
            Standing::Unchanged => {}
            Standing::Record(text) => {
                if !inflight.known.learn(text, now, self.common.wall() / 1000) {
                    let nonsense = NodeError::Nonsense("a node record that cannot be read".to_owned());
                    sent.request.reply_to.answer(self.index, Err(nonsense.clone()));
                    return Err(nonsense);
                }
                self.common.learn_lease(inflight.known.longest());
                self.condition.is_quarantined(self.environment.now(), Duration::ZERO);
            }
            Standing::Young(left) => {
                inflight.known.begin_wait(&mut self.wait, self.environment.now());
                self.condition.is_quarantined(self.environment.now(), left);
                self.answers(inflight);
                sent.request.reply_to.answer(self.index, Err(NodeError::Quarantined { left }));
                return Ok(());
            }
            Standing::Forgot => {
                sent.request.reply_to.answer(self.index, Err(NodeError::Forgot));
                return Err(NodeError::Forgot);
            }
        }
        self.answers(inflight);
        inflight.has_done();
        sent.request.reply_to.answer(self.index, result);
        Ok(())
    }
}
