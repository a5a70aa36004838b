//! Real Redis servers for tests of [`quorlock`], and ways to break them.
//!
//! A [`Cluster`] starts independent `redis-server` processes on free loopback ports, in a temporary folder, and stops them
//! when it is dropped. A test kills, pauses and restarts its nodes, puts a [`link`] in front of them that delays or loses
//! what passes, or sets their [`clock`]s. The server program is `redis-server`, or what `QUORLOCK_TEST_SERVER` names.
//!
//! The example is compiled and not run, as it starts servers:
//!
//! ```no_run
//! use std::time::Duration;
//! use quorlock_testkit::Cluster;
//!
//! # async fn test() {
//! let mut cluster = Cluster::start(3);
//! let locks = cluster.client(Duration::from_secs(2)).await;
//! cluster.kill(0);
//! let guard = locks.lock("job").acquire().await.expect("two of three nodes are a majority");
//! # guard.release().await.expect("a release");
//! # }
//! ```
//!
//! Functions for the set-up of a test panic on failure: the test cannot continue.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![warn(clippy::pedantic)]
#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "it serves tests"
)]

#[doc(hidden)]
pub mod breaks;
pub mod clock;
mod cluster;
pub mod hostile;
pub mod link;
#[doc(hidden)]
#[allow(
    clippy::pedantic,
    reason = "it computes as the scripts do, in doubles, and the simulation and the conformance test are its only users"
)]
pub mod node;
pub mod proxy;
pub mod rng;
pub mod server;
mod stopwatch;
pub mod tls;
pub mod worker;

pub use cluster::{CUT_OFF, Cluster, Setup, eventually, monotonic_micros, within};
pub use stopwatch::Stopwatch;
