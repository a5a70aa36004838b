//! Which owner has, or is acquiring, which resource in this process: where re-entry finds its lease.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::lease::Lease;
use crate::owner::Owner;
use crate::protocol::Phase;
use crate::resource::Resource;
use crate::sync::locked;

#[derive(Default)]
pub(super) struct Registry(Mutex<HashMap<Resource, Owners>>);

/// What the owners of this process have of one resource.
#[derive(Default)]
struct Owners {
    held: ByOwner<Arc<Lease>>,
    /// A request of the owner is acquiring it. Another request of the owner waits until that has ended, and then re-enters.
    acquiring: ByOwner<Arc<Notify>>,
    /// A request of the owner waits for it by turns, also between its tries. Another one waits until that has ended, and then
    /// re-enters: with tickets of their own, each would take the other's turn.
    waiting: ByOwner<Arc<Notify>>,
}

/// One value for each owner, by its number. The first one takes no allocation: most resources have one owner.
struct ByOwner<T> {
    first: Option<(u128, T)>,
    others: HashMap<u128, T>,
}

impl<T> Default for ByOwner<T> {
    fn default() -> Self {
        Self { first: None, others: HashMap::new() }
    }
}

impl<T> ByOwner<T> {
    fn get(&self, owner: u128) -> Option<&T> {
        match &self.first {
            Some((number, value)) if *number == owner => Some(value),
            _ => self.others.get(&owner),
        }
    }

    /// The owner has no value yet.
    fn add(&mut self, owner: u128, value: T) {
        match &self.first {
            None => self.first = Some((owner, value)),
            Some(_) => drop(self.others.insert(owner, value)),
        }
    }

    fn remove(&mut self, owner: u128) {
        match &self.first {
            Some((number, _)) if *number == owner => self.first = None,
            _ => drop(self.others.remove(&owner)),
        }
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.first.iter().map(|(_, value)| value).chain(self.others.values())
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }
}

/// Changes the owners of a resource. Removes the entry of the resource when none is left.
fn change(all: &mut HashMap<Resource, Owners>, resource: &Resource, with: impl FnOnce(&mut Owners)) {
    if let Some(owners) = all.get_mut(resource) {
        with(owners);
        if owners.held.is_empty() && owners.acquiring.is_empty() && owners.waiting.is_empty() {
            all.remove(resource);
        }
    }
}

impl Registry {
    /// Finds the leases of `resources`, and reserves the resources that are not held yet, all at once. If another request of the
    /// owner is acquiring one of them, returns what to wait for before the next call instead.
    pub(super) fn reserve(self: &Arc<Self>, owner: &Owner, resources: &[Resource]) -> Result<Reserved, OwnedNotified> {
        let (mut all, owner) = (locked(&self.0), owner.number());
        let mut held = Vec::with_capacity(resources.len());
        for resource in resources {
            let owners = all.get(resource);
            if let Some(done) = owners.and_then(|owners| owners.acquiring.get(owner)) {
                return Err(Arc::clone(done).notified_owned());
            }
            held.push(owners.and_then(|owners| owners.held.get(owner)).map(Arc::clone));
        }
        let done = Arc::new(Notify::new());
        let free = resources.iter().zip(&held).filter(|(_, lease)| lease.is_none());
        let free: Vec<Resource> = free.map(|(resource, _)| resource.clone()).collect();
        for resource in &free {
            all.entry(resource.clone()).or_default().acquiring.add(owner, Arc::clone(&done));
        }
        Ok((Reservation { registry: Arc::clone(self), owner, resources: free, done }, held))
    }

    /// Makes this the request of its owner that waits for the resource by turns. If there is one already, returns what to wait for
    /// before the next call instead.
    pub(super) fn wait_for_turns(
        self: &Arc<Self>,
        owner: &Owner,
        resource: &Resource,
    ) -> Result<WaitsForTurns, OwnedNotified> {
        let (mut all, owner) = (locked(&self.0), owner.number());
        let waiting = &mut all.entry(resource.clone()).or_default().waiting;
        if let Some(done) = waiting.get(owner) {
            return Err(Arc::clone(done).notified_owned());
        }
        let done = Arc::new(Notify::new());
        waiting.add(owner, Arc::clone(&done));
        Ok(WaitsForTurns { registry: Arc::clone(self), owner, resource: resource.clone(), done })
    }

    /// Forgets a lease that this process does not hold any more.
    pub(super) fn remove(&self, lease: &Arc<Lease>) {
        let owner = lease.owner.number();
        change(&mut locked(&self.0), &lease.resource, |owners| {
            if owners.held.get(owner).is_some_and(|held| Arc::ptr_eq(held, lease)) {
                owners.held.remove(owner);
            }
        });
    }

    /// Returns the lease on this resource that is in force in this process, of any owner.
    pub(super) fn in_force(&self, resource: &Resource) -> Option<Arc<Lease>> {
        // Where both are locked, the states of leases are locked before the registry.
        let held: Vec<Arc<Lease>> = locked(&self.0).get(resource)?.held.values().map(Arc::clone).collect();
        held.into_iter().find(|lease| matches!(lease.phase(), Phase::Held | Phase::Endangered))
    }
}

/// The right to acquire what is not held, and the leases of what is, in the order of the resources.
pub(super) type Reserved = (Reservation, Vec<Option<Arc<Lease>>>);

/// The right to acquire some resources for an owner. Dropping it lets the next request of the same owner try.
pub(super) struct Reservation {
    registry: Arc<Registry>,
    owner: u128,
    resources: Vec<Resource>,
    done: Arc<Notify>,
}

impl Reservation {
    /// Enters the leases of the reserved resources, where re-entry finds them.
    pub(super) fn fulfil<'a>(mut self, leases: impl Iterator<Item = &'a Arc<Lease>>) {
        let resources = mem::take(&mut self.resources);
        let mut all = locked(&self.registry.0);
        for lease in leases.filter(|lease| resources.contains(&lease.resource)) {
            let owners = all.entry(lease.resource.clone()).or_default();
            owners.acquiring.remove(self.owner);
            owners.held.add(self.owner, Arc::clone(lease));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.resources.is_empty() {
            let mut all = locked(&self.registry.0);
            for resource in &self.resources {
                change(&mut all, resource, |owners| owners.acquiring.remove(self.owner));
            }
        }
        self.done.notify_waiters();
    }
}

/// The right to wait for a resource by turns for an owner. Dropping it lets the next request of the same owner do so.
pub(super) struct WaitsForTurns {
    registry: Arc<Registry>,
    owner: u128,
    resource: Resource,
    done: Arc<Notify>,
}

impl Drop for WaitsForTurns {
    fn drop(&mut self) {
        change(&mut locked(&self.registry.0), &self.resource, |owners| owners.waiting.remove(self.owner));
        self.done.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::super::core::Core;
    use super::super::fake::{confirm, core, lease, resource};
    use super::*;

    struct Test {
        core: Arc<Core>,
        registry: Arc<Registry>,
        resources: [Resource; 2],
        owner: Owner,
    }

    fn test() -> Test {
        let (core, _) = core(3);
        Test { core, registry: Arc::default(), resources: ["a", "b"].map(resource), owner: Owner::new() }
    }

    impl Test {
        fn reserve(&self, owner: &Owner, resources: &[Resource]) -> Result<Reserved, OwnedNotified> {
            self.registry.reserve(owner, resources)
        }

        fn acquire(&self, owner: &Owner, resources: &[Resource]) -> Vec<Arc<Lease>> {
            let Ok((reservation, held)) = self.reserve(owner, resources) else { panic!("another request acquires it") };
            let free = resources.iter().zip(held).filter(|(_, held)| held.is_none());
            let leases: Vec<Arc<Lease>> = free.map(|(resource, _)| lease(&self.core, resource, owner)).collect();
            reservation.fulfil(leases.iter());
            leases
        }

        fn is_empty(&self) -> bool {
            locked(&self.registry.0).is_empty()
        }
    }

    #[tokio::test]
    async fn re_entry_finds_the_leases_of_its_owner() {
        let test = test();
        let [a, b] = &test.resources;
        let leases = test.acquire(&test.owner, std::slice::from_ref(a));
        let Ok((_reservation, held)) = test.reserve(&test.owner, &[a.clone(), b.clone()]) else { panic!("it is free") };
        assert!(held[0].as_ref().is_some_and(|held| Arc::ptr_eq(held, &leases[0])) && held[1].is_none());
        let Ok((_reservation, held)) = test.reserve(&Owner::new(), &test.resources) else { panic!("another owner") };
        assert!(held.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn a_second_request_of_the_owner_waits_for_the_end_of_the_first() {
        let test = test();
        let [a, b] = &test.resources;
        let Ok((first, _)) = test.reserve(&test.owner, std::slice::from_ref(a)) else { panic!("it is free") };
        let Err(done) = test.reserve(&test.owner, &test.resources) else { panic!("the first one acquires it") };
        assert!(test.reserve(&test.owner, std::slice::from_ref(b)).is_ok(), "nothing was reserved in vain");
        let mut done = pin!(done);
        assert!(poll!(&mut done).is_pending());
        drop(first);
        assert!(poll!(&mut done).is_ready());
        assert!(test.reserve(&test.owner, &test.resources).is_ok() && test.is_empty());
    }

    #[tokio::test]
    async fn one_request_of_an_owner_waits_for_a_resource_by_turns() {
        let test = test();
        let [a, b] = &test.resources;
        let waits = |owner: &Owner, resource: &Resource| test.registry.wait_for_turns(owner, resource);
        let Ok(first) = waits(&test.owner, a) else { panic!("none waits") };
        assert!(waits(&test.owner, b).is_ok() && waits(&Owner::new(), a).is_ok());
        assert!(test.reserve(&test.owner, std::slice::from_ref(a)).is_ok(), "it may be acquired without waiting");
        let Err(done) = waits(&test.owner, a) else { panic!("the first one waits") };
        let mut done = pin!(done);
        assert!(poll!(&mut done).is_pending());
        drop(first);
        assert!(poll!(&mut done).is_ready());
        assert!(waits(&test.owner, a).is_ok() && test.is_empty());
    }

    #[tokio::test]
    async fn only_the_lease_that_is_held_is_forgotten() {
        let test = test();
        let a = std::slice::from_ref(&test.resources[0]);
        let old = test.acquire(&test.owner, a);
        test.registry.remove(&old[0]);
        assert!(test.is_empty());
        let new = test.acquire(&test.owner, a);
        test.registry.remove(&old[0]);
        assert!(!test.is_empty(), "an older lease of the owner");
        let other = test.acquire(&Owner::new(), a);
        test.registry.remove(&new[0]);
        test.registry.remove(&other[0]);
        assert!(test.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_in_force_is_found_among_those_of_all_owners() {
        let test = test();
        let a = &test.resources[0];
        let in_force = || test.registry.in_force(a).map(|lease| lease.id);
        let [first, second] = [(); 2].map(|()| test.acquire(&Owner::new(), std::slice::from_ref(a)).swap_remove(0));
        assert_eq!(in_force(), None, "not confirmed yet");
        confirm(&second);
        assert_eq!(in_force(), Some(second.id));
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        assert_eq!(in_force(), None, "its validity is spent");
        confirm(&first);
        assert_eq!(in_force(), Some(first.id));
    }

    #[tokio::test]
    async fn each_owner_has_its_own_lease_of_a_resource() {
        let test = test();
        let a = std::slice::from_ref(&test.resources[0]);
        let owners = [(); 3].map(|()| Owner::new());
        let leases = owners.each_ref().map(|owner| test.acquire(owner, a).swap_remove(0));
        test.registry.remove(&leases[1]);
        let held = owners.each_ref().map(|owner| {
            let Ok((_, held)) = test.reserve(owner, a) else { panic!("none acquires") };
            held[0].as_ref().map(|lease| lease.id)
        });
        assert_eq!(held, [Some(leases[0].id), None, Some(leases[2].id)]);
    }
}
