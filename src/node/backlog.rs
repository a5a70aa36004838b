//! What waits until there is room for it, or a connection.

use std::collections::{HashSet, VecDeque};
use std::mem;

use super::request::{ReplyTo, Request};
use crate::error::NodeError;

/// When there are so many, it is time to look which of them are still worth sending.
const THIN_AT_REQUESTS: usize = 1024;

/// Requests in order. A node that falls behind is not sent what has become pointless meanwhile, nor the releases of that;
/// every release of what was sent stays.
pub(super) struct Backlog {
    /// Of the node.
    index: usize,
    requests: VecDeque<Request>,
    thin_at: usize,
}

impl Backlog {
    pub(super) fn new(index: usize) -> Self {
        Self { index, requests: VecDeque::new(), thin_at: THIN_AT_REQUESTS }
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// `why` is what those hear that are not worth sending any more.
    pub(super) fn push(&mut self, request: Request, why: impl FnOnce() -> NodeError) {
        self.requests.push_back(request);
        if self.requests.len() >= self.thin_at {
            self.thin(&why());
            self.thin_at = THIN_AT_REQUESTS.max(2 * self.requests.len());
        }
    }

    pub(super) fn pop(&mut self, why: impl Fn() -> NodeError) -> Option<Request> {
        loop {
            let request = self.requests.pop_front()?;
            match &request.reply_to {
                ReplyTo::Hold(round) if round.is_moot() => request.reply_to.answer(self.index, Err(why())),
                _ => return Some(request),
            }
        }
    }

    /// All of them, however little they are worth.
    pub(super) fn take(&mut self) -> VecDeque<Request> {
        mem::take(&mut self.requests)
    }

    pub(super) fn append(&mut self, mut requests: VecDeque<Request>) {
        self.requests.append(&mut requests);
    }

    fn thin(&mut self, why: &NodeError) {
        let mut kept = HashSet::new();
        for request in self.take() {
            match &request.reply_to {
                ReplyTo::Hold(round) if round.is_decided() || round.is_moot() => {
                    request.reply_to.answer(self.index, Err(why.clone()));
                    continue;
                }
                ReplyTo::Hold(round) => round.add_lease_ids(&mut kept),
                ReplyTo::Release(round) if !round.may_hold_state(self.index) && !round.concerns(&kept) => {
                    round.nothing_sent(self.index);
                    continue;
                }
                ReplyTo::Release(_) | ReplyTo::Look(_) | ReplyTo::Loading => {}
            }
            self.requests.push_back(request);
        }
    }
}
