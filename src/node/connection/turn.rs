//! One poll of a connection in use: requests are taken and sent, and answers that are overdue are noticed.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::super::backlog::Backlog;
use super::super::connect_attempt::Made;
use super::super::inflight::Inflight;
use super::super::request::{Message, ReplyTo, Request};
use super::{Connection, End};
use crate::error::{ClientError, NodeError};

/// How many requests are taken in one poll: callers that keep one node busy must not starve the others.
pub(super) const MOST_TAKEN: usize = 256;

impl Connection {
    /// Does what there is to do now: takes requests, sends, delivers.
    pub(super) fn turn(&mut self, inflight: &mut Inflight, waiting: &mut Backlog, cx: &mut Context<'_>) -> Poll<End> {
        let is_last = self.common.life.has_ended();
        if is_last {
            for (release, _) in inflight.take_postponed() {
                waiting.push(release, || inflight.overdue(self.environment.now()));
            }
        } else {
            inflight.begin(cx);
            self.repeat_postponed(inflight, waiting, cx);
        }
        let mut taken = 0;
        loop {
            // In the end nothing may be left behind for want of room.
            while (self.closing.is_some() || is_last || inflight.has_room())
                && let Some(request) = waiting.pop(|| inflight.overdue(self.environment.now()))
            {
                self.accept(inflight, request);
            }
            self.take_requests(inflight, waiting, &mut taken, cx);
            if self.closing.is_some() {
                inflight.closes(cx);
            }
            if is_last {
                return self.send_last(inflight, cx).map(End::Broken);
            }
            if inflight.is_stale {
                return Poll::Ready(End::Broken(NodeError::Forgot));
            }
            let written = inflight.poll_write(cx);
            // Also when that failed: what was answered before counts.
            let settled = match self.settle(inflight, cx).and_then(|settled| written.map(|()| settled)) {
                Ok(settled) => settled,
                Err(broken) => return Poll::Ready(End::Broken(broken)),
            };
            if self.has_seen_all_through(inflight, waiting) {
                return Poll::Ready(End::Done);
            }
            if settled == 0 {
                match self.watch(inflight, waiting.is_empty(), cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(end)) => return Poll::Ready(end),
                    Poll::Ready(None) => {}
                }
            }
        }
    }

    /// Returns whether the client is gone, and the node has done what it was asked. What it cannot do now is repeated for as long as it
    /// may take to answer.
    fn has_seen_all_through(&self, inflight: &Inflight, waiting: &Backlog) -> bool {
        let Some(since) = self.closing else { return false };
        let is_late = self.environment.now().since(since) >= self.common.timeout;
        inflight.unanswered.is_empty() && waiting.is_empty() && (is_late || !inflight.has_postponed())
    }

    /// Takes requests from the queue. Their number is bounded, except in the last turn.
    fn take_requests(
        &mut self,
        inflight: &mut Inflight,
        waiting: &mut Backlog,
        taken: &mut usize,
        cx: &mut Context<'_>,
    ) {
        let is_last = self.common.life.has_ended();
        while self.closing.is_none() {
            if *taken == MOST_TAKEN && !is_last {
                cx.waker().wake_by_ref();
                break;
            }
            *taken += 1;
            match self.requests.poll_recv(cx) {
                Poll::Ready(Some(Message::Request(request))) if is_last || inflight.has_room() => {
                    self.accept(inflight, request);
                }
                Poll::Ready(Some(Message::Request(request))) => {
                    waiting.push(request, || inflight.overdue(self.environment.now()));
                }
                Poll::Ready(Some(Message::Then(next))) => next(),
                Poll::Ready(Some(Message::Close) | None) => self.close(),
                Poll::Pending => break,
            }
        }
    }

    /// Sends once more what the node could not do before, unless that is over by itself.
    fn repeat_postponed(&self, inflight: &mut Inflight, waiting: &mut Backlog, cx: &mut Context<'_>) {
        let now = self.environment.now();
        for (release, why) in inflight.poll_postponed(cx) {
            match &release.reply_to {
                ReplyTo::Release(round) if round.is_expired(now) => release.reply_to.answer(self.index, Err(why)),
                _ => waiting.push(release, || inflight.overdue(now)),
            }
        }
    }

    /// Checks whether a reply is overdue. `None` when it is to check again.
    ///
    /// A connection that is silent for longer than usual may have been forgotten by what lies between, without a word. So
    /// another one is made beside it. That takes over if it works while the reply on this one is still due.
    fn watch(&mut self, inflight: &mut Inflight, nothing_waits: bool, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if let Some(attempt) = &mut self.attempt {
            match Pin::new(attempt).poll(cx) {
                Poll::Ready(made) => {
                    if let Ok(made) = made {
                        self.attempt = None;
                        return Poll::Ready(Some(End::Replaced(Box::new(Made { replaces: true, ..made }))));
                    }
                    self.abandon();
                }
                Poll::Pending => {}
            }
        }
        let Poll::Ready(outstanding) = inflight.watch(self.common.timeout, cx) else {
            return Poll::Pending;
        };
        self.condition.is_silent(inflight.silent_since());
        if outstanding >= self.silence_limit() {
            return Poll::Ready(Some(End::Broken(NodeError::NoAnswer(outstanding))));
        }
        // Not before what was gathered has left.
        if self.closing.is_some() && !inflight.gathers && outstanding >= self.common.timeout && nothing_waits {
            return Poll::Ready(Some(End::Done));
        }
        if self.attempt.is_none() && inflight.is_doubtful(self.environment.now()) {
            self.attempt = Some(self.begin());
        }
        Poll::Ready(None)
    }

    /// The runtime has ended: the releases leave, as far as the socket takes them, and no answer is read any more.
    fn send_last(&self, inflight: &mut Inflight, cx: &mut Context<'_>) -> Poll<NodeError> {
        inflight.gathers = false;
        let written = inflight.poll_write(cx);
        for sent in inflight.unanswered.drain(..) {
            sent.request.reply_to.answer(self.index, Err(ClientError::RuntimeEnded.into()));
        }
        written.map_or_else(Poll::Ready, |()| Poll::Pending)
    }

    /// Sends a request, or answers it if it is not to be sent.
    fn accept(&mut self, inflight: &mut Inflight, request: Request) {
        let index = self.index;
        let now = self.environment.now();
        match &request.reply_to {
            ReplyTo::Hold(_) | ReplyTo::Look(_) | ReplyTo::Revoke(_) if self.common.life.has_ended() => {
                request.reply_to.answer(index, Err(ClientError::RuntimeEnded.into()));
            }
            ReplyTo::Hold(_) | ReplyTo::Look(_) | ReplyTo::Revoke(_)
                if inflight.silent || request.reply_to.is_late(now, self.common.timeout) =>
            {
                request.reply_to.answer(index, Err(inflight.overdue(now)));
            }
            ReplyTo::Release(round) if !round.may_hold_state(index) => round.nothing_sent(index),
            ReplyTo::Hold(round) => {
                if let Some(conflict) = self.common.conflict(index).filter(|_| round.facts().acquires) {
                    // The nodes may have changed since they were asked: an idle client would not learn of that otherwise.
                    inflight.is_stale |= inflight.conflicts < self.common.conflicts();
                    request.reply_to.answer(index, Err(conflict));
                } else {
                    round.mark_sent(index);
                    inflight.push(request, now, &self.common, &self.wait);
                }
            }
            ReplyTo::Release(round) => {
                round.mark_sent(index);
                inflight.push(request, now, &self.common, &self.wait);
            }
            ReplyTo::Revoke(_) => match self.common.conflict(index) {
                Some(conflict) => {
                    inflight.is_stale |= inflight.conflicts < self.common.conflicts();
                    request.reply_to.answer(index, Err(conflict));
                }
                None => inflight.push(request, now, &self.common, &self.wait),
            },
            ReplyTo::Look(_) | ReplyTo::Loading => inflight.push(request, now, &self.common, &self.wait),
        }
    }
}
