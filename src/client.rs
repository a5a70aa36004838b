use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;

use crate::coordinator::{Core, Handle};
use crate::error::{AcquireError, Answer, ConfigError, ExportError, NodeError, ReadyError, Reports};
use crate::guard::Guard;
use crate::inspect::Inspection;
use crate::node::{self, Node, Packed, ReplyTo, Request, parse_inspect};
use crate::owner::Owner;
use crate::request::LockRequest;
use crate::telemetry::Stats;

/// How long a flush waits at least for nodes that are slower than a majority.
const LAST_LOOK: Duration = Duration::from_millis(5);

/// How many `PING`s a flush sends to each node at most. A node that has lost its scripts refuses a request, which then leaves again
/// behind the first `PING`, with the scripts.
const MOST_PINGS: usize = 2;

/// A client: connections to all nodes, and the leases held through them.
///
/// Cheap to clone; clones share everything. The tokio runtime in which it connected has its connections and extends its leases.
/// It can be used from other runtimes, and from threads without one, as long as that runtime runs; when it has ended, requests
/// fail with [`ClientError::RuntimeEnded`](crate::ClientError::RuntimeEnded). When the last clone and
/// the last [`Guard`] are gone its tasks end, after they have seen through what was already being sent (a release, say),
/// which takes them the node timeout at most.
#[derive(Clone)]
pub struct Quorlock(Arc<Handle>);

impl Quorlock {
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self(handle)
    }

    /// Asks for the lock on one resource. A name is any bytes, also none.
    ///
    /// To enter a lock that is held already, pass its [owner](LockRequest::owner) or run inside its
    /// [scope](Owner::scope); any other request waits, also one of the very task that holds the lock.
    pub fn lock(&self, name: impl AsRef<[u8]>) -> LockRequest {
        LockRequest::new(Arc::clone(&self.0), vec![name.as_ref().to_vec()])
    }

    /// Asks for several resources at once: all or none, in one round, so their order never matters and two requests for
    /// overlapping sets cannot deadlock. At most 500.
    pub fn lock_all<I>(&self, names: I) -> LockRequest
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        LockRequest::new(Arc::clone(&self.0), names.into_iter().map(|name| name.as_ref().to_vec()).collect())
    }

    /// Enters an [exported](Guard::export) lease, usually of another process: the guard holds it as long as it lives,
    /// beside the holds of others.
    ///
    /// # Errors
    ///
    /// [`AcquireError::Lost`] when the lease is over or its exporter has released it, [`AcquireError::NoQuorum`] when no majority
    /// answers, [`AcquireError::Export`] when the string is not an exported lease or was exported under another key prefix, and
    /// otherwise as [`try_acquire`](LockRequest::try_acquire): [`AcquireError::Contended`] also when another task of this process
    /// is joining the same lease.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](LockRequest::acquire).
    pub async fn join(&self, exported: &str) -> Result<Guard, AcquireError> {
        let owner = Owner::import(exported)?;
        let prefix = &self.0.core.settings.prefix;
        let keys = owner.inherited().into_iter().flat_map(|export| &export.leases);
        let names = keys.map(|lease| lease.lock_key.strip_prefix(prefix.as_slice()));
        let names: Vec<&[u8]> = names.collect::<Option<_>>().ok_or(ExportError)?;
        self.lock_all(names).owner(&owner).try_acquire().await
    }

    /// Asks every node what it has for this name. Takes and changes no lock.
    ///
    /// # Errors
    ///
    /// When the name's key would lie where quorlock keeps other things. A node that cannot be asked is no error but part of the
    /// answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn inspect(&self, name: impl AsRef<[u8]>) -> Result<Inspection, ConfigError> {
        let resource = self.0.core.resource(name.as_ref())?;
        let replies = self.ask_all(&node::inspect(&resource), parse_inspect).await;
        let mut seen = Inspection::new(resource.name(), replies);
        for (view, known) in seen.nodes.iter_mut().zip(self.known().0) {
            if let (Ok(state), Answer::Failed(NodeError::Quarantined { left })) = (&mut view.state, known.answer) {
                state.quarantine = Some(left);
            }
        }
        Ok(seen)
    }

    /// Waits until every node has answered all that was sent to it before, releases of dropped guards too, for at most
    /// the node timeout, or twice that where a node had lost its scripts. Call it before [`std::process::exit`]: what is still
    /// queued then is never sent, and only the end of the lease frees the lock. A runtime that ends writes what is queued.
    /// A release that a node cannot do now (its memory or its disk is full) is repeated later, and not waited for.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn flush(&self) {
        for _ in 0..MOST_PINGS {
            let resent = self.0.core.common.resent();
            self.ask_all(&redis::cmd("PING"), |_| Ok(())).await;
            if resent == self.0.core.common.resent() {
                return;
            }
        }
    }

    /// As [`flush`](Self::flush), but waits for a node that is slower than a majority only as long again as that took, and a
    /// little. What was sent before has left for that node by then, unless it cannot be reached. While so many nodes are known to be
    /// away that no majority can answer, it waits only as long as messages to connected nodes may need to arrive.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    #[doc(hidden)]
    pub async fn flush_majority(&self) {
        for _ in 0..MOST_PINGS {
            let resent = self.0.core.common.resent();
            self.ping_majority().await;
            if resent == self.0.core.common.resent() {
                return;
            }
        }
    }

    async fn ping_majority(&self) {
        let core = &self.0.core;
        if core.check().is_err() {
            return;
        }
        let limit = core.settings.node_timeout(core.settings.lease);
        let began = core.now();
        let ping = node::pack(&redis::cmd("PING"));
        let ask = |(index, node): (usize, &Node)| {
            let (reply_to, answer) = oneshot::channel();
            node.send(Request { command: Arc::clone(&ping), reply_to: ReplyTo::Look(reply_to) });
            answer.map(move |answer| (index, matches!(answer, Ok(Ok(_)))))
        };
        let mut answers: FuturesUnordered<_> = core.nodes.iter().enumerate().map(ask).collect();
        let mut waits: Vec<Duration> = (0..core.nodes.len()).map(|index| core.common.last_wait(index)).collect();
        let (mut answered, mut end, mut decided) = (0, began + limit, None);
        let present = core.nodes.iter().filter(|node| node.absence(began).is_none()).count();
        if present < core.settings.quorum {
            let longest = waits.iter().max().copied().unwrap_or_default();
            end = end.min(began + longest + LAST_LOOK);
        }
        while let Some(Some((index, has_answered))) = core.within(end.since(core.now()), answers.next()).await {
            (answered, waits[index]) = (answered + usize::from(has_answered), Duration::ZERO);
            if answered >= core.settings.quorum {
                let now = *decided.get_or_insert_with(|| core.now());
                let longest = waits.iter().max().copied().unwrap_or_default();
                end = (began + limit).min(now + longest.max(now.since(began) + LAST_LOOK));
            }
        }
    }

    /// Resolves when the client has ended: its last reference is gone, and what was being sent then has been seen through.
    #[cfg(feature = "blocking")]
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let core = Arc::clone(&self.0.core);
        async move { core.common.life.ended().await }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }

    /// Asks every node the same, and waits for all of them for at most the node timeout.
    pub(crate) async fn ask_all<T>(
        &self,
        command: &redis::Cmd,
        parse: impl Fn(&redis::Value) -> Result<T, NodeError>,
    ) -> Vec<(String, Result<T, NodeError>)> {
        self.send_all(&node::pack(command), ReplyTo::Look, parse).await
    }

    /// Sends every node the same, and waits for all of them for at most the node timeout.
    pub(crate) async fn send_all<T>(
        &self,
        command: &Packed,
        reply_to: fn(oneshot::Sender<Result<redis::Value, NodeError>>) -> ReplyTo,
        parse: impl Fn(&redis::Value) -> Result<T, NodeError>,
    ) -> Vec<(String, Result<T, NodeError>)> {
        let core = &self.0.core;
        if let Err(why) = core.check() {
            return core.nodes.iter().map(|node| (node.name.to_string(), Err(why.into()))).collect();
        }
        let limit = core.settings.node_timeout(core.settings.lease);
        let (parse, polls) = (&parse, core.driver.polls());
        let asked = core.nodes.iter().enumerate().map(|(index, node)| {
            let (sender, answer) = oneshot::channel();
            node.send(Request { command: Arc::clone(command), reply_to: reply_to(sender) });
            async move {
                let answer = match core.within(limit, answer).await {
                    Some(Ok(answer)) => answer.and_then(|value| parse(&value)),
                    Some(Err(_)) | None => Err(core.unanswered(index, limit, polls)),
                };
                (node.name.to_string(), answer)
            }
        });
        futures::future::join_all(asked.collect::<Vec<_>>()).await
    }

    /// What is known of each node now: up, or why it cannot be counted on. Asks nothing.
    #[must_use]
    pub fn known(&self) -> Reports {
        self.0.core.reports(|_| None)
    }

    /// Checks that a majority of the nodes has a vote now, for a health check.
    ///
    /// It goes by what the client knows: it sends nothing and never waits. A connection that breaks, a quarantine, a refusal and an
    /// overdue answer are known. A node that answers requests with errors (a right that its user lacks, a full memory) is not
    /// counted until it answers one properly, or for 30 s after the latest error: then only a request can find out. A node that
    /// hangs is known when something that was sent to it is overdue; a held lease sends an extension every few seconds. Directly
    /// after [`connect`](crate::Builder::connect) no node is connected yet, so the client is not ready.
    ///
    /// # Errors
    ///
    /// [`ReadyError::NoQuorum`] when too few nodes can be counted on, with what is known of each. [`ReadyError::Client`] when the
    /// client can be used no more.
    pub fn ready(&self) -> Result<(), ReadyError> {
        self.0.core.ready()
    }

    /// Returns what this client and its clones have done so far, and what they know of each node. It asks nothing and never waits,
    /// so it may be called as often as a page of metrics is read.
    ///
    /// ```
    /// # fn doc(locks: &quorlock::Quorlock) {
    /// let stats = locks.stats();
    /// let lost = stats.losses.expired + stats.losses.refused + stats.losses.revoked;
    /// println!("{} held, {} waiting, {lost} lost", stats.held, stats.waiting);
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.core.stats()
    }

    /// The nodes, without users and passwords, in the order given.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.0.core.nodes.iter().map(|node| &*node.name)
    }
}

impl fmt::Debug for Quorlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quorlock").field("nodes", &self.0.core.nodes).finish_non_exhaustive()
    }
}
