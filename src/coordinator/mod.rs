//! What joins the rules with the nodes: the leases of one client, the rounds about them, and the requests that wait.
//!
//! Each file imports only files to its right: attempt → holds → handle → registry, waiter, follow → send → round → lease, retry
//! → core → watchdog, reasons.

mod attempt;
mod core;
#[cfg(test)]
mod fake;
mod follow;
mod handle;
mod holds;
mod lease;
mod reasons;
mod registry;
mod retry;
mod round;
mod send;
mod waiter;
mod watchdog;

pub(crate) use attempt::Attempt;
pub(crate) use core::Core;
pub(crate) use handle::Handle;
pub(crate) use holds::{Holds, hold_one, shortest};
pub(crate) use lease::{Lease, lock_states};
pub(crate) use retry::Retry;
pub(crate) use round::Round;
