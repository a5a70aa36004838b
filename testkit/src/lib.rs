//! Tests of programs that lock with [`quorlock`]: what does a service do when it loses the lock, when a second instance takes over,
//! when a majority of the nodes is down?
//!
//! # Without a server
//!
//! A [`MemoryCluster`] has nodes in memory. The shipped client connects to them through [`quorlock::environment`], and a test breaks
//! them by calls: [`lose`](MemoryCluster::lose), [`stop`](MemoryCluster::stop), [`cut`](MemoryCluster::cut),
//! [`forget`](MemoryCluster::forget), [`step_clock`](MemoryCluster::step_clock). On tokio's paused time a lease of ten seconds runs
//! out in no real time. The nodes do what a Redis server does with the scripts of quorlock; a test of quorlock compares the two.
//!
//! A service that loses its lock stops its work. In a test, write `#[tokio::test(start_paused = true)]` over the function.
//!
//! ```
//! use std::time::Duration;
//! use quorlock::{Quorlock, RunError};
//! use quorlock_testkit::MemoryCluster;
//!
//! async fn serve(locks: Quorlock) -> Result<(), RunError> {
//!     locks.lock("report").run(async |_| std::future::pending().await).await
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let cluster = MemoryCluster::new(3);
//! let service = tokio::spawn(serve(cluster.client(Duration::from_secs(10)).await));
//! tokio::time::sleep(Duration::from_secs(60)).await;
//! assert!(!service.is_finished());
//! cluster.lose("report");
//! assert!(matches!(service.await.unwrap(), Err(RunError::Lost(_))));
//! # }
//! ```
//!
//! A [`Host`] is one of several machines. When it is cut off from the nodes, its instance notices before another one takes over.
//!
//! ```
//! # use std::time::Duration;
//! # use quorlock_testkit::MemoryCluster;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), quorlock::AcquireError> {
//! let (cluster, lease) = (MemoryCluster::new(3), Duration::from_secs(10));
//! let (first, second) = (cluster.host(), cluster.host());
//! let leader = first.client(lease).await.lock("leader").acquire().await?;
//! let standby = second.client(lease).await;
//! let next = tokio::spawn(async move { standby.lock("leader").acquire().await });
//! first.cut_all();
//! leader.lost().await;
//! assert!(!next.is_finished());
//! assert!(next.await.unwrap()?.token() > leader.token());
//! # Ok(()) }
//! ```
//!
//! A job that needs a majority reports that there is none.
//!
//! ```
//! # use std::time::Duration;
//! # use quorlock::AcquireError;
//! # use quorlock_testkit::MemoryCluster;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let cluster = MemoryCluster::new(3);
//! let locks = cluster.client(Duration::from_secs(10)).await;
//! cluster.stop(0);
//! cluster.stop(1);
//! let refused = locks.lock("job").acquire().await;
//! assert!(matches!(refused, Err(AcquireError::NoQuorum { .. })));
//! cluster.start(0);
//! assert!(locks.lock("job").wait(Duration::from_secs(5)).acquire().await.is_ok());
//! # }
//! ```
//!
//! # Real servers
//!
//! With the feature `servers`, a `Cluster` starts independent `redis-server` processes on free loopback ports, in a temporary folder,
//! and stops them when it is dropped. A test kills, pauses and restarts its nodes. The server program is `redis-server`, or what
//! `QUORLOCK_TEST_SERVER` names.
#![cfg_attr(
    feature = "servers",
    doc = "
The example is compiled and not run, as it starts servers:

```no_run
use std::time::Duration;
use quorlock_testkit::Cluster;

# async fn test() {
let mut cluster = Cluster::start(3);
let locks = cluster.client(Duration::from_secs(2)).await;
cluster.kill(0);
let guard = locks.lock(\"job\").acquire().await.expect(\"two of three nodes are a majority\");
# guard.release().await.expect(\"a release\");
# }
```
"
)]
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

#[cfg(feature = "internal")]
#[doc(hidden)]
pub mod breaks;
#[cfg(feature = "servers")]
#[doc(hidden)]
pub mod clock;
#[cfg(feature = "servers")]
mod cluster;
#[cfg(feature = "internal")]
#[doc(hidden)]
pub mod hostile;
#[cfg(feature = "internal")]
#[doc(hidden)]
pub mod link;
mod memory;
#[doc(hidden)]
#[allow(clippy::pedantic, reason = "it computes as the scripts do, in doubles")]
pub mod node;
#[cfg(feature = "servers")]
#[doc(hidden)]
pub mod program;
#[cfg(feature = "internal")]
#[doc(hidden)]
pub mod proxy;
#[doc(hidden)]
pub mod rng;
#[cfg(feature = "servers")]
#[doc(hidden)]
pub mod server;
#[cfg(feature = "internal")]
mod stopwatch;
#[cfg(feature = "internal")]
#[doc(hidden)]
pub mod tls;
#[cfg(feature = "internal")]
#[doc(hidden)]
pub mod worker;

#[cfg(feature = "servers")]
#[doc(hidden)]
pub use cluster::{CUT_OFF, eventually, monotonic_micros, within};
#[cfg(feature = "servers")]
pub use cluster::{Cluster, Setup};
pub use memory::{Host, MemoryCluster};
#[cfg(feature = "internal")]
#[doc(hidden)]
pub use stopwatch::Stopwatch;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
