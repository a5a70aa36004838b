//! The holds of one guard. They exist before the first message is sent.

use std::mem;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::core::Core;
use super::handle::Handle;
use super::lease::{Lease, State, lock_states};
use super::round::Round;
use super::send::{Bid, send_hold, send_release};
use crate::error::Reports;
use crate::protocol::{Phase, Token};
use crate::resource::Resource;

/// One hold on each of some leases. Dropping it gives them back without waiting.
pub(crate) struct Holds {
    handle: Arc<Handle>,
    /// Sorted by id. Empty only once the holds were given back.
    leases: Vec<Arc<Lease>>,
    /// The resource that was named first.
    first: Resource,
}

impl Holds {
    /// Takes one more hold on each lease, whose states the caller has locked.
    pub(super) fn enter(
        handle: Arc<Handle>,
        leases: Vec<Arc<Lease>>,
        states: &mut [MutexGuard<'_, State>],
        first: Resource,
    ) -> Self {
        for state in states {
            state.lease.holds += 1;
        }
        Self { handle, leases, first }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    pub(crate) fn leases(&self) -> &[Arc<Lease>] {
        &self.leases
    }

    /// Returns the lease of the resource that was named first.
    pub(crate) fn first(&self) -> &Lease {
        // `first` is one of the resources of the leases, of which there is at least one until the guard is consumed.
        self.leases.iter().find(|lease| lease.resource == self.first).unwrap_or(&self.leases[0])
    }

    /// Returns the fencing token of one of several resources.
    pub(crate) fn token_of(&self, name: &[u8]) -> Option<Token> {
        let lease = self.leases.iter().find(|lease| lease.resource.name() == name)?;
        Some(lease.state().lease.token)
    }

    /// Returns how long all leases can still be relied on.
    pub(crate) fn remaining(&self) -> Duration {
        let remaining = |lease: &Arc<Lease>| {
            let (state, now) = lease.state_now();
            state.lease.remaining(now)
        };
        self.leases.iter().map(remaining).min().unwrap_or_default()
    }

    /// Returns the token of the first lease, and how many nodes honour the lease that the fewest do.
    pub(super) fn granted(&self) -> (Token, usize) {
        let votes = self.leases.iter().map(|lease| lease.state().lease.votes()).min();
        (self.first().state().lease.token, votes.unwrap_or_default())
    }

    /// Moves the hold on this resource out. `None` when there is none, or no other beside it. Sends nothing: each lease is extended
    /// and released for itself.
    pub(crate) fn split(&mut self, name: &[u8]) -> Option<Self> {
        let index = self.leases.iter().position(|lease| lease.resource.name() == name)?;
        if self.leases.len() == 1 {
            return None;
        }
        let lease = self.leases.remove(index);
        let first = lease.resource.clone();
        if self.first == first {
            self.first = self.leases[0].resource.clone();
        }
        Some(Self { handle: Arc::clone(&self.handle), leases: vec![lease], first })
    }

    /// Takes the holds back and sends what that changes. Never waits.
    pub(crate) fn give_back(&mut self) -> PendingRelease {
        let leases = mem::take(&mut self.leases);
        let core = &self.handle.core;
        let mut states = lock_states(&leases);
        let now = core.now();
        let lease = shortest(states.iter().map(|state| state.lease.length));
        let mut pending_release = PendingRelease {
            release: None,
            lower: Vec::new(),
            lowered: Vec::new(),
            lost: None,
            said: Reports(Vec::new()),
            lease,
            holds: 0,
        };
        let (mut released, mut released_states) = (Vec::new(), Vec::new());
        let mut turns = Vec::new();
        for (lease, state) in leases.iter().zip(&mut states) {
            let phase = state.lease.phase(now);
            state.lease.holds -= 1;
            if phase == Phase::Lost && pending_release.lost.is_none() {
                (pending_release.lost, pending_release.said) = (Some(lease.resource.to_string()), lease.reports(state));
            }
            if lease.resource == self.first {
                pending_release.holds = state.lease.holds;
            }
            if state.lease.holds == 0 {
                turns.extend(state.turn.take());
                // What was lost was released on the nodes when that was noticed.
                if state.lease.released(now) {
                    lease.reschedule(state);
                    released.push(Arc::clone(lease));
                    released_states.push(&mut **state);
                }
            } else if matches!(phase, Phase::Held | Phase::Endangered) {
                let length = state.lease.length;
                pending_release.lower.push(hold_one(core, lease, state, length));
                pending_release.lowered.push(Arc::clone(lease));
            }
        }
        if !released.is_empty() {
            pending_release.release = Some(send_release(core, &released, &mut released_states));
        }
        // Only now can a request of the same owner acquire anew, so its message leaves behind the release. Until here it finds
        // this lease, and waits for its state.
        for (lease, _) in leases.iter().zip(&states).filter(|(_, state)| state.lease.holds == 0) {
            self.handle.registry.remove(lease);
        }
        drop(states);
        drop(turns);
        core.driver.send_last();
        for lease in &released {
            lease.report_end(now);
        }
        pending_release
    }
}

/// Sends a round that says how many holds this client has in one lease.
pub(crate) fn hold_one(core: &Arc<Core>, lease: &Arc<Lease>, state: &mut State, length: Duration) -> Arc<Round> {
    send_hold(core, std::slice::from_ref(lease), &mut [state], length, &Bid::default())
}

/// Returns the shortest of these lengths. Leases are renewed together for no longer, so none outlives what was asked for.
pub(crate) fn shortest(leases: impl Iterator<Item = Duration>) -> Duration {
    leases.min().unwrap_or_default()
}

/// The rounds that giving holds back has sent, and what was lost before.
pub(crate) struct PendingRelease {
    pub(crate) release: Option<Arc<Round>>,
    pub(crate) lower: Vec<Arc<Round>>,
    /// The leases of those rounds.
    pub(crate) lowered: Vec<Arc<Lease>>,
    /// A resource whose lease had been lost before.
    pub(crate) lost: Option<String>,
    /// What the nodes answered about it.
    pub(crate) said: Reports,
    pub(crate) lease: Duration,
    pub(crate) holds: u32,
}

impl Drop for Holds {
    fn drop(&mut self) {
        if !self.leases.is_empty() && self.core().common.life.is_copy() {
            mem::forget(mem::take(&mut self.leases)); // They are the parent's, and a thread of the parent may have them locked.
        }
        if !self.leases.is_empty() {
            self.give_back();
            self.core().driver.send_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{LEASE, confirm, core, lease, resource};
    use super::*;
    use crate::error::ClientError;
    use crate::owner::Owner;

    struct Test {
        handle: Arc<Handle>,
        owner: Owner,
        leases: Vec<Arc<Lease>>,
        _streams: tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>,
    }

    /// A client that holds `a` and `b`.
    fn test() -> Test {
        let (core, streams) = core(3);
        let (handle, owner) = (Handle::new(core), Owner::new());
        let resources = ["a", "b"].map(resource);
        let leases: Vec<_> = resources.iter().map(|resource| lease(&handle.core, resource, &owner)).collect();
        let Ok((reservation, _)) = handle.registry.reserve(&owner, &resources) else { panic!("it is free") };
        reservation.fulfil(leases.iter());
        leases.iter().for_each(confirm);
        Test { handle, owner, leases, _streams: streams }
    }

    impl Test {
        /// A guard of both, of which `b` was named first.
        fn enter(&self) -> Holds {
            let mut states = lock_states(&self.leases);
            Holds::enter(Arc::clone(&self.handle), self.leases.clone(), &mut states, resource("b"))
        }

        /// The names that re-entry finds.
        fn held(&self) -> Vec<String> {
            let resources = ["a", "b"].map(resource);
            let Ok((_, held)) = self.handle.registry.reserve(&self.owner, &resources) else { panic!("none acquires") };
            held.into_iter().flatten().map(|lease| lease.resource.to_string()).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_of_several_knows_each_by_its_name() {
        let test = test();
        let holds = test.enter();
        let token = |lease: &Lease| lease.state().lease.token;
        assert_eq!(holds.first().id, test.leases[1].id);
        assert_eq!(holds.token_of(b"a"), Some(token(&test.leases[0])));
        assert_eq!(holds.token_of(b"b"), Some(token(&test.leases[1])));
        assert_ne!(holds.token_of(b"a"), holds.token_of(b"b"));
        assert_eq!(holds.token_of(b"c"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_that_is_split_off_is_given_back_by_itself() {
        let test = test();
        let mut both = test.enter();
        assert!(both.split(b"c").is_none());
        let b = both.split(b"b").expect("one of two");
        assert_eq!((both.first().id, b.first().id), (test.leases[0].id, test.leases[1].id));
        assert!(both.split(b"a").is_none(), "it is the last one");
        drop(b);
        assert_eq!((test.held(), test.leases[1].phase()), (vec!["a".to_owned()], Phase::Released));
        assert_eq!(test.leases[0].phase(), Phase::Held);
        drop(both);
        assert_eq!(test.held(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_of_several_guards_releases() {
        let test = test();
        let (mut first, second) = (test.enter(), test.enter());
        let pending = first.give_back();
        assert_eq!((pending.release.is_some(), pending.lower.len(), pending.holds), (false, 2, 1));
        assert_eq!(test.held(), ["a", "b"]);
        drop(second);
        assert!(test.leases.iter().all(|lease| lease.phase() == Phase::Released));
        assert_eq!(test.held(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_named_when_its_guard_is_released() {
        let test = test();
        let mut holds = test.enter();
        assert!(test.leases[1].state().lease.refused());
        let pending = holds.give_back();
        assert_eq!((pending.lost.as_deref(), pending.lease), (Some("b"), LEASE));
        assert!(pending.release.is_some(), "the other one is in force");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_last_reference_closes_the_client() {
        let (core, _streams) = core(3);
        let handle = Handle::new(Arc::clone(&core));
        drop(handle);
        core.sleep(Duration::from_millis(1)).await;
        assert_eq!(core.check(), Err(ClientError::RuntimeEnded));
    }

    #[tokio::test(start_paused = true)]
    async fn the_holds_that_are_left_are_those_of_the_resource_that_was_named_first() {
        let test = test();
        let mut both = test.enter();
        let a = Holds::enter(
            Arc::clone(&test.handle),
            vec![Arc::clone(&test.leases[0])],
            &mut lock_states(&test.leases[..1]),
            resource("a"),
        );
        let pending = both.give_back();
        assert_eq!((pending.holds, pending.lower.len(), pending.release.is_some()), (0, 1, true));
        assert_eq!(test.held(), ["a"]);
        drop(a);
    }
}
