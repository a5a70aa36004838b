//! The pauses between the tries of one request.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use crate::environment::Moment;
use crate::error::{AcquireError, Answer, NodeError};
use crate::protocol::{Outage, RetryAdvice, RetryPolicy};
use crate::waiting::Ticket;

/// How a request goes on after a try that failed, and what it says when it does not.
pub(crate) struct Retry {
    pub(super) policy: RetryPolicy,
    limit: Option<Duration>,
    outage: Outage,
    unanswered_since: Option<Moment>,
    /// When a majority was last known to answer other requests, since then.
    others_answered: Option<Moment>,
    /// What was in the way last, as far as nodes or this process could say.
    met: Option<AcquireError>,
}

impl Retry {
    /// Tries until the time to wait is over; `None` for ever.
    pub(crate) fn until(now: Moment, wait: Option<Duration>, outage: Outage) -> Self {
        Self {
            policy: RetryPolicy::until(now, wait),
            limit: wait,
            outage,
            unanswered_since: None,
            others_answered: None,
            met: None,
        }
    }

    /// Tries once, and again only with another ballot.
    pub(crate) fn once(now: Moment) -> Self {
        let (policy, limit, outage) = (RetryPolicy::once(now), Some(Duration::ZERO), Outage::Fail);
        Self { policy, limit, outage, unanswered_since: None, others_answered: None, met: None }
    }

    /// Returns how long the request waits at most; `None` for ever.
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Notes what was in the way.
    pub(super) fn has_met(&mut self, error: AcquireError) {
        self.met = Some(error);
    }

    /// Waits until it is time for the next try. Returns whether that may wait for its turn: not while no majority is known to
    /// answer.
    ///
    /// # Errors
    ///
    /// The error that ends the request.
    pub(super) async fn wait_after(
        &mut self,
        core: &Core,
        lease: Duration,
        error: AcquireError,
        advice: RetryAdvice,
        ticket: Option<&Arc<Ticket>>,
    ) -> Result<bool, AcquireError> {
        if let RetryAdvice::WhenAnswered = advice {
            return self.until_answered(core, lease, error).await;
        }
        (self.unanswered_since, self.others_answered) = (None, None);
        let Some(pause) = self.policy.pause(advice, |range| core.random_time(range)) else { return Err(error) };
        let now = core.now();
        let end = self.policy.end();
        let left = end.map(|end| end.since(now));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(self.over(now, error));
        }
        let rest = left.map_or(pause, |left| pause.min(left));
        let is_called = core.within(rest, called(core, ticket, self.policy.calls_pause())).await.is_some();
        self.policy.paused(is_called);
        // A try without time for an answer would fail for that alone, and hide why this one failed.
        let is_cut_short = left.is_some_and(|left| !is_called && pause >= left);
        if is_cut_short || end.is_some_and(|end| end <= core.now()) {
            return Err(self.over(core.now(), error));
        }
        if end.is_some() {
            self.met = Some(error);
        }
        Ok(true)
    }

    /// Waits until it is worth while to ask again, although no majority has answered. Calls do not show that: they come from
    /// the few nodes that answer, also after this request's own release.
    async fn until_answered(
        &mut self,
        core: &Core,
        lease: Duration,
        error: AcquireError,
    ) -> Result<bool, AcquireError> {
        let now = core.now();
        // It has waited for its turn meanwhile: this is another outage. A request that fails again soon is in the same one, although
        // others are answered.
        if self.others_answered.take().is_some_and(|answered| now.since(answered) >= lease / 2) {
            self.unanswered_since = None;
        }
        let since = *self.unanswered_since.get_or_insert(now);
        let end = self.policy.end();
        if self.outage == Outage::Fail && end.is_none_or(|end| end > now) {
            return Err(error);
        }
        let ends_by_itself = only_quarantined(&error);
        let until = self.outage.until(since, end, lease, ends_by_itself);
        let next_try = core.next_try();
        let answered = match until.map(|until| until.since(now)) {
            None => Some(next_try.await),
            Some(Duration::ZERO) => None,
            Some(left) => core.within(left, next_try).await,
        };
        if ends_by_itself {
            self.unanswered_since = None;
        }
        self.others_answered = (answered == Some(true)).then(|| core.now());
        match (answered, end) {
            (Some(answered), None) => Ok(answered),
            (Some(answered), Some(until)) if until > core.now() => {
                self.met = Some(error);
                Ok(answered)
            }
            (None, None) => Err(error),
            (None, Some(until)) if until <= now => {
                // This try was cut short by the end of the time: the error of the one before says what was waited for.
                let before = matches!(error, AcquireError::NoQuorum { .. }).then(|| self.met.take()).flatten();
                Err(self.over(now, before.unwrap_or(error)))
            }
            (_, Some(_)) => Err(self.over(core.now(), error)),
        }
    }

    fn over(&self, now: Moment, last: AcquireError) -> AcquireError {
        match last {
            // No lock is in the way: the error names what is.
            AcquireError::NoQuorum { .. } => last,
            last => AcquireError::TimedOut { waited: self.policy.waited(now), last: Box::new(last) },
        }
    }
}

/// Resolves when the ticket is called, not before this pause is over.
async fn called(core: &Core, ticket: Option<&Arc<Ticket>>, pause: Duration) {
    let Some(ticket) = ticket else { return future::pending().await };
    if !pause.is_zero() {
        core.sleep(pause).await;
    }
    ticket.called().await;
}

/// Returns whether the quorum is missing only because nodes are in quarantine, which ends by itself.
fn only_quarantined(error: &AcquireError) -> bool {
    let AcquireError::NoQuorum { needed, nodes } = error else { return false };
    let gone = nodes.0.iter().filter(|report| match &report.answer {
        Answer::Failed(NodeError::Quarantined { .. }) => false,
        Answer::Failed(_) | Answer::ClockBehind => true,
        _ => false,
    });
    nodes.0.len() - gone.count() >= *needed
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::super::fake::{LEASE, core};
    use super::*;

    fn unanswered(core: &Core) -> AcquireError {
        AcquireError::NoQuorum { needed: core.settings.quorum, nodes: core.reports(|_| None) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_end_fails_when_no_majority_answers_for_half_its_lease() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), None, Outage::default());
        let began = Instant::now();
        while retry.wait_after(&core, LEASE, unanswered(&core), RetryAdvice::WhenAnswered, None).await.is_ok() {
            assert!(began.elapsed() < LEASE);
        }
        assert_eq!(began.elapsed(), LEASE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_through_an_outage_goes_on_until_its_limit() {
        for (limit, least) in [(None, 10 * LEASE), (Some(3 * LEASE), 3 * LEASE)] {
            let (core, _streams) = core(3);
            let mut retry = Retry::until(core.now(), limit, Outage::Wait);
            let began = Instant::now();
            let mut wait =
                async || retry.wait_after(&core, LEASE, unanswered(&core), RetryAdvice::WhenAnswered, None).await;
            while began.elapsed() < 10 * LEASE && wait().await.is_ok() {}
            assert!(began.elapsed() >= least && began.elapsed() < least + LEASE, "{limit:?}: {:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_fails_in_an_outage_fails_at_once() {
        for limit in [None, Some(LEASE)] {
            let (core, _streams) = core(3);
            let mut retry = Retry::until(core.now(), limit, Outage::Fail);
            let began = Instant::now();
            for error in [unanswered(&core), said([quarantined(), quarantined(), silent()])] {
                let failed = retry.wait_after(&core, LEASE, error.clone(), RetryAdvice::WhenAnswered, None).await;
                assert_eq!((failed, began.elapsed()), (Err(error), Duration::ZERO));
            }
            let goes_on = retry.wait_after(&core, LEASE, contended(), RetryAdvice::WhenCalled(KEPT), None).await;
            assert!(matches!(goes_on, Ok(true)), "a holder is waited for: {goes_on:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_fails_in_an_outage_hides_no_lock_that_was_in_the_way() {
        for late in [Duration::ZERO, MS] {
            let (core, _streams) = core(3);
            let mut retry = Retry::until(core.now(), Some(LEASE), Outage::Fail);
            retry.has_met(contended());
            advance(LEASE + late).await;
            let failed = retry.wait_after(&core, LEASE, said([silent()]), RetryAdvice::WhenAnswered, None).await;
            assert!(failed.as_ref().is_err_and(is_over_by_contention), "{failed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_of_a_request_is_kept_for_its_report() {
        let (core, _streams) = core(3);
        let limit = |limit| Retry::until(core.now(), limit, Outage::Wait).limit();
        assert_eq!([limit(None), limit(Some(LEASE))], [None, Some(LEASE)]);
        assert_eq!(Retry::once(core.now()).limit(), Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_outage_has_its_own_half_lease() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), None, Outage::default());
        let wait =
            async |retry: &mut Retry, advice| retry.wait_after(&core, LEASE, unanswered(&core), advice, None).await;
        assert!(wait(&mut retry, RetryAdvice::WhenAnswered).await.is_ok());
        advance(LEASE).await;
        assert!(wait(&mut retry, RetryAdvice::Later).await.is_ok(), "a majority has answered");
        assert!(wait(&mut retry, RetryAdvice::WhenAnswered).await.is_ok());
        advance(LEASE).await;
        assert!(wait(&mut retry, RetryAdvice::WhenAnswered).await.is_err(), "none has answered since");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_begins_anew_when_a_majority_has_answered_another_request_or_was_quarantined() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), None, Outage::default());
        let wait = async |retry: &mut Retry, error| {
            retry.wait_after(&core, LEASE, error, RetryAdvice::WhenAnswered, None).await
        };
        let silence = || said([silent(), silent(), silent()]);
        let answers = async {
            core.sleep(MS).await;
            core.common.reachability.majority_answered();
        };
        let (waited, ()) = futures::future::join(wait(&mut retry, silence()), answers).await;
        assert!(matches!(waited, Ok(true)), "{waited:?}");
        advance(LEASE / 2).await;
        assert!(wait(&mut retry, silence()).await.is_ok(), "a majority has answered another request, long ago");
        advance(LEASE).await;
        assert!(wait(&mut retry, said([quarantined(), quarantined(), silent()])).await.is_ok());
        advance(LEASE).await;
        assert!(wait(&mut retry, silence()).await.is_ok(), "two nodes have answered, from their quarantine");
        advance(LEASE).await;
        assert!(wait(&mut retry, silence()).await.is_err(), "none has answered since");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_goes_on_failing_ends_although_a_majority_answers_others() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), None, Outage::default());
        let others = async {
            loop {
                core.sleep(100 * MS).await;
                core.common.reachability.majority_answered();
            }
        };
        let fails = async {
            let began = Instant::now();
            let error = || said([silent(), silent(), silent()]);
            while retry.wait_after(&core, LEASE, error(), RetryAdvice::WhenAnswered, None).await.is_ok() {
                core.sleep(100 * MS).await;
                assert!(began.elapsed() < LEASE);
            }
        };
        futures::future::select(Box::pin(fails), Box::pin(others)).await;
    }

    /// No majority: each node said this.
    fn said<const N: usize>(answers: [Answer; N]) -> AcquireError {
        let report = |answer| crate::error::NodeReport { node: "node".to_owned(), answer };
        AcquireError::NoQuorum { needed: 2, nodes: crate::error::Reports(answers.map(report).into()) }
    }

    fn quarantined() -> Answer {
        Answer::Failed(NodeError::Quarantined { left: LEASE })
    }

    fn silent() -> Answer {
        Answer::Failed(NodeError::NoAnswer(LEASE))
    }

    /// How long a request without an end goes on after such answers; at most ten leases.
    async fn goes_on(answers: [Answer; 3]) -> Duration {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), None, Outage::default());
        let began = Instant::now();
        let error = || said(answers.clone());
        while began.elapsed() < 10 * LEASE
            && retry.wait_after(&core, LEASE, error(), RetryAdvice::WhenAnswered, None).await.is_ok()
        {}
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_end_waits_for_the_end_of_quarantines() {
        for answers in [
            [quarantined(), quarantined(), silent()],
            [quarantined(), Answer::Up, silent()],
            [quarantined(), Answer::Up, Answer::ClockBehind],
            [quarantined(), quarantined(), quarantined()],
        ] {
            assert!(goes_on(answers).await >= 10 * LEASE);
        }
        for answers in [[quarantined(), silent(), silent()], [quarantined(), Answer::ClockBehind, silent()]] {
            assert_eq!(goes_on(answers).await, LEASE / 2);
        }
    }

    fn contended() -> AcquireError {
        AcquireError::Contended { resource: "a".to_owned(), nodes: crate::error::Reports(Vec::new()) }
    }

    fn is_over_by_contention(error: &AcquireError) -> bool {
        matches!(error, AcquireError::TimedOut { last, .. } if matches!(**last, AcquireError::Contended { .. }))
    }

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_try_that_the_end_cut_short_fails_with_what_was_in_the_way_before() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), Some(LEASE), Outage::default());
        retry.has_met(contended());
        advance(LEASE).await;
        let error =
            retry.wait_after(&core, LEASE, said([silent()]), RetryAdvice::WhenAnswered, None).await.unwrap_err();
        assert!(is_over_by_contention(&error), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_the_end_cut_short_hides_no_outage_before_it() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), Some(LEASE), Outage::default());
        let mut fail = async |answer| {
            retry.wait_after(&core, LEASE, said([answer]), RetryAdvice::WhenAnswered, None).await.map_err(Box::new)
        };
        assert_eq!(fail(quarantined()).await, Ok(false));
        advance(LEASE).await;
        assert_eq!(fail(Answer::Up).await, Err(Box::new(said([quarantined()]))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_lasts_until_the_end_is_the_error() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), Some(10 * MS), Outage::default());
        retry.has_met(contended());
        let began = Instant::now();
        let error =
            retry.wait_after(&core, LEASE, said([silent()]), RetryAdvice::WhenAnswered, None).await.unwrap_err();
        assert!(matches!(error, AcquireError::NoQuorum { .. }), "{error:?}");
        assert!(began.elapsed() >= 10 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_with_time_left_is_asked_about_again() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), Some(LEASE), Outage::default());
        let asked = retry.wait_after(&core, LEASE, said([silent()]), RetryAdvice::WhenAnswered, None).await;
        assert!(matches!(asked, Ok(false)), "no majority has answered meanwhile: {asked:?}");
    }

    /// What `WhenCalled` waits for at least.
    const KEPT: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_ends_in_time_is_followed_by_a_try() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), Some(LEASE), Outage::default());
        let began = Instant::now();
        let next = retry.wait_after(&core, LEASE, contended(), RetryAdvice::WhenCalled(KEPT), None).await;
        assert!(matches!(next, Ok(true)), "{next:?}");
        assert!(began.elapsed() >= KEPT);
        let error = retry.wait_after(&core, LEASE, said([silent()]), RetryAdvice::Never, None).await.unwrap_err();
        assert!(matches!(error, AcquireError::NoQuorum { .. }), "it waits no more: {error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_until_the_end_is_followed_by_no_try() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), Some(KEPT / 2), Outage::default());
        let began = Instant::now();
        let error = retry.wait_after(&core, LEASE, contended(), RetryAdvice::WhenCalled(KEPT), None).await.unwrap_err();
        assert!(is_over_by_contention(&error), "{error:?}");
        assert!(KEPT / 2 <= began.elapsed() && began.elapsed() < KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_the_pause_and_the_more_calls_were_vain_the_later() {
        let (core, _streams) = core(3);
        let mut retry = Retry::until(core.now(), None, Outage::default());
        let ticket = core.ticket_since(None);
        let number = ticket.text().split(':').next().expect("a number").to_owned();
        let text = |text: &str| redis::Value::BulkString(text.as_bytes().to_vec());
        let mut took = Vec::new();
        for _ in 0..20 {
            ticket.begin_try();
            for node in 0..3 {
                let data = [text("channel"), text(&number)];
                assert!(core.common.tickets.on_push(node, &redis::PushKind::Message, &data));
            }
            let began = Instant::now();
            let advice = RetryAdvice::WhenCalled(LEASE);
            assert!(retry.wait_after(&core, LEASE, contended(), advice, Some(&ticket)).await.is_ok());
            took.push(began.elapsed());
        }
        assert_eq!(took[0], Duration::ZERO);
        assert!(took.is_sorted() && took[19] > Duration::ZERO, "{took:?}");
    }
}
