//! Which owner has, or is acquiring, which resource in this process: where re-entry finds its lease.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::lease::Lease;
use crate::owner::Owner;
use crate::resource::Resource;
use crate::sync::locked;

type Key = (u128, Resource);

#[derive(Default)]
pub(crate) struct Table(Mutex<HashMap<Key, Slot>>);

enum Slot {
    /// The same owner is acquiring it in another task; whoever comes second waits and then re-enters.
    Acquiring(Arc<Notify>),
    Held(Arc<Lease>),
}

impl Table {
    /// Finds the leases of `resources` and reserves those that are not held yet, all at once. When the same owner is
    /// acquiring one of them right now: what to wait for before asking again.
    pub(crate) fn reserve(self: &Arc<Self>, owner: &Owner, resources: &[Resource]) -> Result<Reserved, OwnedNotified> {
        let mut slots = locked(&self.0);
        let key = |resource: &Resource| (owner.number(), resource.clone());
        let mut held = Vec::with_capacity(resources.len());
        for resource in resources {
            held.push(match slots.get(&key(resource)) {
                None => None,
                Some(Slot::Held(lease)) => Some(Arc::clone(lease)),
                Some(Slot::Acquiring(done)) => return Err(Arc::clone(done).notified_owned()),
            });
        }
        let done = Arc::new(Notify::new());
        let free = resources.iter().zip(&held).filter(|(_, lease)| lease.is_none());
        let keys: Vec<Key> = free.map(|(resource, _)| key(resource)).collect();
        for key in &keys {
            slots.insert(key.clone(), Slot::Acquiring(Arc::clone(&done)));
        }
        Ok((Reservation { table: Arc::clone(self), keys, done }, held))
    }

    /// Forgets a lease that nobody in this process holds any more.
    pub(crate) fn remove(&self, lease: &Arc<Lease>) {
        let mut slots = locked(&self.0);
        let key = (lease.owner.number(), lease.resource.clone());
        if matches!(slots.get(&key), Some(Slot::Held(held)) if Arc::ptr_eq(held, lease)) {
            slots.remove(&key);
        }
    }
}

/// The right to acquire what is not held, and the leases of what is, in the order of the resources.
pub(crate) type Reserved = (Reservation, Vec<Option<Arc<Lease>>>);

/// The right to acquire some resources for an owner. Dropping it lets the next one of the same owner try.
pub(crate) struct Reservation {
    table: Arc<Table>,
    keys: Vec<Key>,
    done: Arc<Notify>,
}

impl Reservation {
    /// The reserved resources are held now: re-entry finds these leases.
    pub(crate) fn fulfil<'a>(mut self, leases: impl Iterator<Item = &'a Arc<Lease>>) {
        let keys = std::mem::take(&mut self.keys);
        let mut slots = locked(&self.table.0);
        for lease in leases {
            let key = (lease.owner.number(), lease.resource.clone());
            if keys.contains(&key) {
                slots.insert(key, Slot::Held(Arc::clone(lease)));
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.keys.is_empty() {
            let mut slots = locked(&self.table.0);
            for key in &self.keys {
                slots.remove(key);
            }
        }
        self.done.notify_waiters();
    }
}
