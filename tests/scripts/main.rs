//! The scripts in `cluster/`: what they leave behind when they are interrupted, called wrongly, called twice at once, cannot
//! write their output, or find a damaged state folder or other programs than usual.
//!
//! `QUORLOCK_INTERRUPTIONS=50 cargo test --test scripts` interrupts each of them 50 times instead of 10.

mod calls;
mod interruptions;
mod links;
mod messages;
mod place;
mod programs;
mod servers;
