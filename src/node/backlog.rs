//! The requests that wait until there is room for them, or a connection.

use std::collections::{HashSet, VecDeque};
use std::mem;

use super::request::{ReplyTo, Request};
use crate::error::NodeError;

/// At this many requests, those that are not worth sending any more are dropped.
const THIN_AT_REQUESTS: usize = 1024;

/// Requests in order. When they become many, those that are not worth sending any more are dropped, together with their
/// releases. Every release of what was sent stays.
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

    /// Adds a request. `why` gives the error for requests that are dropped.
    pub(super) fn push(&mut self, request: Request, why: impl FnOnce() -> NodeError) {
        self.requests.push_back(request);
        if self.requests.len() >= self.thin_at {
            self.thin(&why());
            self.thin_at = THIN_AT_REQUESTS.max(2 * self.requests.len());
        }
    }

    /// Takes the next request. Passes over holds whose leases are all over, with the error that `why` gives.
    pub(super) fn pop(&mut self, why: impl Fn() -> NodeError) -> Option<Request> {
        loop {
            let request = self.requests.pop_front()?;
            match &request.reply_to {
                ReplyTo::Hold(round) if round.is_moot() => request.reply_to.answer(self.index, Err(why())),
                _ => return Some(request),
            }
        }
    }

    /// Takes all requests, also those that are not worth sending.
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
                ReplyTo::Release(_) | ReplyTo::Look(_) | ReplyTo::Revoke(_) | ReplyTo::Loading => {}
            }
            self.requests.push_back(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::super::fake::{Event, FakeExchange};
    use super::*;
    use crate::environment::Moment;

    fn exchange(lease: u64) -> Arc<FakeExchange> {
        FakeExchange::new(Moment::new(Duration::ZERO), lease)
    }

    fn push(backlog: &mut Backlog, request: Request) {
        backlog.push(request, || NodeError::Forgot);
    }

    fn pop(backlog: &mut Backlog) -> Option<Request> {
        backlog.pop(|| NodeError::Forgot)
    }

    const REFUSED: [Event; 1] = [Event::Answered(Err(NodeError::Forgot))];

    /// Holds that are still wanted, so many that the backlog is thinned.
    fn fill(backlog: &mut Backlog) {
        for lease in 1000..1000 + THIN_AT_REQUESTS as u64 {
            push(backlog, exchange(lease).hold());
        }
    }

    #[test]
    fn requests_leave_in_order_without_the_holds_that_are_moot() {
        let mut backlog = Backlog::new(0);
        let [first, second, third] = [1, 2, 3].map(exchange);
        push(&mut backlog, first.hold());
        assert!(!backlog.is_empty());
        push(&mut backlog, second.hold());
        push(&mut backlog, second.release());
        push(&mut backlog, third.hold());
        second.is_moot.store(true, Ordering::Relaxed);
        assert!(matches!(pop(&mut backlog), Some(Request { reply_to: ReplyTo::Hold(_), .. })));
        assert!(matches!(pop(&mut backlog), Some(Request { reply_to: ReplyTo::Release(_), .. })));
        assert_eq!(second.events(), REFUSED);
        assert!(matches!(pop(&mut backlog), Some(Request { reply_to: ReplyTo::Hold(_), .. })));
        assert!(pop(&mut backlog).is_none() && backlog.is_empty());
        assert_eq!((first.events(), third.events()), (vec![], vec![]));
    }

    #[test]
    fn a_short_backlog_keeps_everything() {
        let mut backlog = Backlog::new(0);
        let decided = exchange(1);
        decided.is_decided.store(true, Ordering::Relaxed);
        push(&mut backlog, decided.hold());
        push(&mut backlog, decided.release());
        assert_eq!((backlog.len(), decided.events()), (2, vec![]));
    }

    #[test]
    fn a_long_backlog_drops_decided_holds_with_their_releases() {
        let mut backlog = Backlog::new(0);
        let [decided, moot, wanted, sent] = [1, 2, 3, 4].map(exchange);
        decided.is_decided.store(true, Ordering::Relaxed);
        moot.is_moot.store(true, Ordering::Relaxed);
        sent.may_hold_state.store(true, Ordering::Relaxed);
        for exchange in [&decided, &moot, &wanted] {
            push(&mut backlog, exchange.hold());
            push(&mut backlog, exchange.release());
        }
        push(&mut backlog, sent.release());
        fill(&mut backlog);
        assert_eq!(decided.events(), [Event::Answered(Err(NodeError::Forgot)), Event::NothingSent]);
        assert_eq!(moot.events(), [Event::Answered(Err(NodeError::Forgot)), Event::NothingSent]);
        assert_eq!(wanted.events(), vec![], "its release stays behind the hold");
        assert_eq!(sent.events(), vec![], "the node may hold what it takes away");
        assert_eq!(backlog.len(), THIN_AT_REQUESTS + 3);
    }

    #[test]
    fn a_backlog_that_stays_long_is_thinned_again_when_it_has_doubled() {
        let mut backlog = Backlog::new(0);
        fill(&mut backlog);
        let decided = exchange(1);
        decided.is_decided.store(true, Ordering::Relaxed);
        (1..THIN_AT_REQUESTS).for_each(|_| push(&mut backlog, decided.hold()));
        assert_eq!(decided.events(), []);
        push(&mut backlog, decided.hold());
        assert_eq!((decided.events().len(), backlog.len()), (THIN_AT_REQUESTS, THIN_AT_REQUESTS));
    }

    #[test]
    fn what_is_taken_over_from_the_last_connection_comes_first() {
        let mut backlog = Backlog::new(0);
        let [old, new] = [1, 2].map(exchange);
        backlog.append(VecDeque::from([old.release()]));
        push(&mut backlog, new.hold());
        assert!(matches!(pop(&mut backlog), Some(Request { reply_to: ReplyTo::Release(_), .. })));
        assert_eq!(backlog.take().len(), 1);
        assert!(backlog.is_empty());
    }
}
