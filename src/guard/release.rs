//! The release whose outcome the caller waits for.

use std::sync::Arc;

use futures::future::{join, join_all};

use super::Guard;
use crate::coordinator::Round;
use crate::error::{ClientError, ReleaseError};
use crate::protocol::{Phase, VoteResult};
use crate::released::Released;

impl Guard {
    /// Gives the hold back and returns the outcome. It is on its way to every node before this first waits; it returns
    /// when a majority has confirmed.
    ///
    /// # Errors
    ///
    /// [`ReleaseError::NotHeld`] when the lease had been lost before: another owner may have worked on what the lock protected.
    /// [`ReleaseError::Unconfirmed`] when no majority has answered within the node timeout.
    /// [`ReleaseError::Client`] when the client can be used no more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the release is sent when the future is first polled, or when it is dropped before that.
    pub async fn release(mut self) -> Result<Released, ReleaseError> {
        if let Err(why @ ClientError::Forked { .. }) = self.core().check() {
            return Err(why.into());
        }
        let pending_release = self.holds.give_back();
        let limit = self.core().settings.node_timeout(pending_release.lease);
        let decided = |round: Option<Arc<Round>>| async move {
            let round = round?;
            let verdict = round.decided_within(limit).await;
            Some((round, verdict))
        };
        let lowered = join_all(pending_release.lower.into_iter().map(|round| decided(Some(round))));
        let (released, lowered) = join(decided(pending_release.release), lowered).await;
        if let Some(resource) = pending_release.lost {
            return Err(ReleaseError::NotHeld { resource, nodes: pending_release.said });
        }
        if let Some((round, VoteResult::Lost)) = &released {
            return Err(ReleaseError::NotHeld { resource: round.first_over(), nodes: round.reports(None) });
        }
        if let Some(lease) = pending_release.lowered.iter().find(|lease| lease.phase() == Phase::Lost) {
            let (resource, nodes) = (lease.resource.to_string(), lease.reports(&lease.state()));
            return Err(ReleaseError::NotHeld { resource, nodes });
        }
        let mut pending = Vec::new();
        for (round, verdict) in [released].into_iter().chain(lowered).flatten() {
            if verdict != VoteResult::Won {
                self.core().check()?;
                let waited = (verdict == VoteResult::Pending).then_some(limit);
                return Err(ReleaseError::Unconfirmed { nodes: round.reports(waited) });
            }
            pending.extend(round.pending());
        }
        pending.sort_unstable();
        pending.dedup();
        Ok(Released { pending, holds: pending_release.holds })
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::super::tests::{GONE, HONOURED, LEASE, Test, held_on_three, suspend};
    use super::*;
    use crate::error::{Answer, ExtendError};
    use crate::owner::Owner;

    #[tokio::test(start_paused = true)]
    async fn a_release_without_an_answer_is_unconfirmed() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let released = guard.release().await;
        assert!(matches!(released, Err(ReleaseError::Unconfirmed { .. })), "{released:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unconfirmed_release_reports_no_node_as_silent_that_was_not_waited_for() {
        let (locks, mut nodes, guard) = held_on_three().await;
        let inner = join(locks.lock("a").owner(guard.owner()).acquire(), nodes.honour()).await.0;
        let (released, ()) = join(inner.expect("all nodes agree").release(), nodes.fail_two()).await;
        let Err(ReleaseError::Unconfirmed { nodes }) = &released else { panic!("two nodes fail: {released:?}") };
        assert_eq!(nodes.0.last().map(|node| &node.answer), Some(&Answer::Up), "{nodes}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_after_the_end_of_the_lease_is_not_held() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        suspend().await;
        let (released, ()) = join(guard.release(), test.reply(HONOURED)).await;
        assert!(matches!(&released, Err(ReleaseError::NotHeld { resource, .. }) if resource == "a"), "{released:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_inner_release_that_a_majority_refuses_is_not_held() {
        let mut test = Test::new().await;
        let owner = Owner::new();
        let outer = test.held(&owner).await;
        let inner = test.held(&owner).await;
        assert_eq!((outer.hold_count(), outer.token()), (2, inner.token()));
        let (released, ()) = join(inner.release(), test.reply(GONE)).await;
        assert!(matches!(&released, Err(ReleaseError::NotHeld { resource, .. }) if resource == "a"), "{released:?}");
        assert!(outer.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_released_and_passes_its_turn_on_while_its_guard_lives() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let waiting = test.locks.lock("a");
        let waiting = tokio::spawn(async move { waiting.acquire().await });
        yield_now().await;
        let (extended, ()) = join(guard.extend(), test.reply(GONE)).await;
        assert!(matches!(extended, Err(ExtendError::Lost(_))), "{extended:?}");
        let stats = test.locks.stats();
        assert_eq!((stats.losses.refused, stats.extensions.refused, stats.held), (1, 1, 0));
        assert_ne!(test.script().await, test.hold, "the release of the lost lease");
        assert_eq!(test.script().await, test.hold, "the next acquisition");
        test.server.reply(&HONOURED.repeat(2)).await;
        let next = timeout(LEASE, waiting).await.expect("it is its turn").expect("no panic").expect("the node agrees");
        assert!(guard.is_lost() && !next.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_lease_passes_its_turn_on_before_the_release_is_answered() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let waiting = test.locks.lock("a");
        let waiting = tokio::spawn(async move { waiting.acquire().await });
        yield_now().await;
        drop(guard);
        assert_ne!(test.script().await, test.hold, "the release");
        assert_eq!(test.script().await, test.hold, "the next acquisition");
        test.server.reply(&HONOURED.repeat(2)).await;
        assert!(waiting.await.expect("no panic").is_ok());
    }
}
