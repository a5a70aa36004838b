//! Extensions that a holder asks for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::Guard;
use crate::coordinator::{Round, hold_one, lock_states, shortest};
use crate::error::ExtendError;
use crate::protocol::VoteResult;

/// The pause between two tries of an extension that found nodes away.
const RETRY_PAUSE: Duration = Duration::from_millis(15);
/// The pause doubles with each try, up to this.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(250);

impl Guard {
    /// Makes sure of at least this much validity: extends when less is left.
    ///
    /// # Errors
    ///
    /// [`ExtendError::Lost`] when the lease is over, [`ExtendError::NoQuorum`] when no majority agreed in time (the lease
    /// runs on), [`ExtendError::TooLong`] when no extension could give that much, [`ExtendError::Client`] when the client can be used no
    /// more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an extension that is under way still counts when it succeeds.
    pub async fn ensure(&self, validity: Duration) -> Result<(), ExtendError> {
        if self.remaining() >= validity && !self.is_lost() {
            return Ok(());
        }
        let lease = shortest(self.leases().iter().map(|lease| lease.state().lease.length));
        if validity >= lease.saturating_sub(self.core().settings.schedule.validity.drift(lease)) {
            return Err(ExtendError::TooLong { asked: validity, lease });
        }
        self.extend().await?;
        match self.remaining() {
            remaining if remaining >= validity => Ok(()),
            // It was granted, but took too long, or the machine slept meanwhile.
            remaining => Err(ExtendError::NoQuorum { remaining, nodes: self.reports() }),
        }
    }

    /// Extends the lease now. Seldom needed: the background does it in time.
    ///
    /// # Errors
    ///
    /// [`ExtendError::Lost`] when the lease is over, [`ExtendError::NoQuorum`] when no majority agreed within the node
    /// timeout (the lease runs on), [`ExtendError::Client`] when the client can be used no more.
    ///
    /// # Cancel safety
    ///
    /// As [`ensure`](Self::ensure).
    pub async fn extend(&self) -> Result<(), ExtendError> {
        let core = self.core();
        let began = core.now();
        let mut pause = RETRY_PAUSE;
        loop {
            core.check()?;
            // One round for each: all or none of them would be too few where each lacks another node.
            let (rounds, limit) = {
                let mut states = lock_states(self.leases());
                let now = core.now();
                let remaining = states.iter().map(|state| state.lease.remaining(now)).min().unwrap_or_default();
                if remaining.is_zero() {
                    drop(states);
                    return Err(self.lost_error().into());
                }
                let length = shortest(states.iter().map(|state| state.lease.length));
                let pairs = self.leases().iter().zip(&mut states);
                let rounds: Vec<Arc<Round>> =
                    pairs.map(|(lease, state)| hold_one(core, lease, state, length)).collect();
                (rounds, core.settings.node_timeout(length).min(remaining))
            };
            let left = limit.saturating_sub(core.now().since(began));
            let verdicts = join_all(rounds.iter().map(|round| round.decided_within(left))).await;
            if self.is_lost() {
                return Err(self.lost_error().into());
            }
            let Some(missing) = verdicts.iter().position(|verdict| *verdict != VoteResult::Won) else { return Ok(()) };
            let round = &rounds[missing];
            // Connections that broke just now are being made again: there is time for that within the same limit.
            let left = limit.saturating_sub(core.now().since(began));
            if left <= pause {
                core.check()?;
                let waited = (verdicts[missing] == VoteResult::Pending).then_some(limit);
                return Err(ExtendError::NoQuorum { remaining: self.remaining(), nodes: round.reports(waited) });
            }
            core.sleep(pause).await;
            pause = (2 * pause).min(LONGEST_RETRY_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join;
    use tokio::time::{Instant, sleep};

    use super::super::tests::{HONOURED, LEASE, Test, held_on_three, suspend};
    use super::*;
    use crate::error::Answer;
    use crate::owner::Owner;

    #[tokio::test(start_paused = true)]
    async fn ensure_refuses_what_no_extension_can_give() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let refused = guard.ensure(LEASE).await;
        assert!(matches!(refused, Err(ExtendError::TooLong { asked: LEASE, lease: LEASE })), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn ensure_fails_when_an_extension_leaves_less_than_was_asked_for() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let asked = Duration::from_millis(9800);
        assert!(guard.ensure(guard.remaining()).await.is_ok(), "there is as much without an extension");
        sleep(Duration::from_millis(200)).await;
        let (extended, ()) = join(guard.ensure(asked), async {
            sleep(Duration::from_millis(200)).await;
            test.reply(HONOURED).await;
        })
        .await;
        let Err(error) = extended else { panic!("less is left: {:?}", guard.remaining()) };
        assert!(matches!(error, ExtendError::NoQuorum { remaining, .. } if remaining < asked), "{error:?}");
        assert!(error.is_retryable() && error.kind() == crate::ErrorKind::NoQuorum, "{error}");
        let (extended, ()) = join(guard.ensure(asked), test.reply(HONOURED)).await;
        assert_eq!(test.locks.stats().extensions.extended, 2);
        assert!(extended.is_ok() && guard.remaining() >= asked, "{extended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_extension_reports_no_node_as_silent_that_was_not_waited_for() {
        let (_locks, mut nodes, guard) = held_on_three().await;
        let (extended, ()) = join(guard.extend(), nodes.fail_two()).await;
        let Err(ExtendError::NoQuorum { nodes, .. }) = &extended else { panic!("two nodes fail: {extended:?}") };
        assert_eq!(nodes.0.last().map(|node| &node.answer), Some(&Answer::Up), "{nodes}");
    }

    #[tokio::test(start_paused = true)]
    async fn ensure_of_nothing_fails_for_a_lost_lease() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        assert!(guard.ensure(Duration::ZERO).await.is_ok());
        suspend().await;
        let lost = guard.ensure(Duration::ZERO).await;
        assert!(matches!(lost, Err(ExtendError::Lost(_))), "{lost:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_without_an_answer_fails_within_the_node_timeout() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let began = Instant::now();
        let failed = guard.extend().await;
        assert!(matches!(failed, Err(ExtendError::NoQuorum { .. })), "{failed:?}");
        assert!(began.elapsed() <= Duration::from_millis(500), "{:?}", began.elapsed());
        assert!(!guard.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_that_is_under_way_is_not_sent_again() {
        let mut test = Test::with(|builder| builder.node_timeout(LEASE / 4)).await;
        let guard = test.held(&Owner::new()).await;
        assert_eq!(test.script().await, test.hold, "the extension");
        assert!(test.is_idle_for(LEASE / 5).await, "the node has time to answer");
        drop(guard);
    }
}
