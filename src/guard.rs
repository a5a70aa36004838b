//! The guard of a lock that is held.

mod extend;
mod loss;
mod release;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::coordinator::{Core, Holds, Lease};
use crate::export::{Export, ExportedLease};
use crate::owner::Owner;
use crate::protocol::Token;

/// One hold on one resource, or on several that were acquired together.
///
/// While it lives, the lease behind it is extended in the background. Dropping it gives the hold back without waiting;
/// [`release`](Self::release) does the same and returns the outcome, and [`LockRequest::run`](crate::LockRequest::run) awaits it
/// unless the lock was lost. A drop writes the release to the sockets itself, as far as they take it at once, unless the client's task
/// is at it. When the last hold of an owner on a resource in this process goes, so does this process's share in the lease.
///
/// A guard over several resources answers for the weakest of them.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    holds: Holds,
}

impl Guard {
    pub(crate) fn new(holds: Holds) -> Self {
        Self { holds }
    }

    fn core(&self) -> &Arc<Core> {
        self.holds.core()
    }

    fn leases(&self) -> &[Arc<Lease>] {
        self.holds.leases()
    }

    /// The fencing token of the resource that was named first. After an acquisition without re-entry all resources of a
    /// guard have the same token; otherwise see [`token_of`](Self::token_of).
    #[must_use]
    pub fn token(&self) -> Token {
        self.holds.first().state().lease.token
    }

    /// The fencing token of one of several resources.
    #[must_use]
    pub fn token_of(&self, name: impl AsRef<[u8]>) -> Option<Token> {
        self.holds.token_of(name.as_ref())
    }

    /// Returns the names of the resources that it holds, in alphabetical order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut names: Vec<&[u8]> = self.leases().iter().map(|lease| lease.resource.name()).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// Moves the hold on one of several resources into a guard of its own, to release it before the others. Returns `None` if this
    /// guard does not hold the resource, or holds no other. It sends nothing.
    ///
    /// ```
    /// # async fn doc(locks: quorlock::Quorlock) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut guard = locks.lock_all(["draft", "archive"]).acquire().await?;
    /// if let Some(draft) = guard.split("draft") {
    ///     draft.release().await?; // "archive" is still held
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// If the resource that was named first is split off, [`token`](Self::token) and [`hold_count`](Self::hold_count) are about one of
    /// the others from then on.
    #[must_use = "dropping the guard that was split off releases its resource"]
    pub fn split(&mut self, name: impl AsRef<[u8]>) -> Option<Self> {
        self.holds.split(name.as_ref()).map(Self::new)
    }

    /// Returns the owner that holds it. Pass it to [`owner`](crate::LockRequest::owner) to enter again.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.holds.first().owner
    }

    /// How deep this owner is nested on the resource in this process: 1 for an outermost hold.
    ///
    /// This is the client's own count. A node may show another one for a while ([`inspect`](crate::Quorlock::inspect)): an
    /// extension that was sent before a re-entry and arrives after it writes the older count there, until the next
    /// message of this client. No rule depends on it.
    #[must_use]
    pub fn hold_count(&self) -> u32 {
        self.holds.first().state().lease.holds
    }

    /// How long the lease can still be relied on. Zero when it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.holds.remaining()
    }

    /// Returns how many nodes may yet fail without costing the lease: the votes beyond the quorum in the latest round that a
    /// majority honoured. It grows for a moment after an acquisition, as the slower nodes answer. A node that has not answered that round
    /// counts as in the round before.
    #[must_use]
    pub fn margin(&self) -> usize {
        let votes = self.leases().iter().map(|lease| lease.state().lease.votes()).min().unwrap_or_default();
        votes.saturating_sub(self.core().settings.quorum)
    }

    /// Returns the runtime in which the client connected.
    #[cfg(feature = "blocking")]
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        self.core().driver.runtime()
    }

    /// The lease as a string that another process (or the same one) can [`join`](crate::Quorlock::join) as long as a guard of
    /// this client holds it. A process that has joined exports the lease anew, for those that are to outlive this client.
    /// Any process that has the string can hold the lock: keep it as secret as a key.
    #[must_use]
    pub fn export(&self) -> String {
        let owner = self.owner();
        let export = |lease: &Arc<Lease>| {
            let state = lease.state();
            let lock_key = lease.resource.lock_key().to_vec();
            ExportedLease { lock_key, token: state.lease.token, known: state.lease.known, share: lease.share() }
        };
        let leases: Vec<ExportedLease> = self.leases().iter().map(export).collect();
        // What the owner has inherited is passed on, or a process two steps down would wait for its own forebear.
        let inherited = owner.inherited().into_iter().flat_map(Export::all);
        let inherited = inherited.filter(|old| leases.iter().all(|lease| lease.lock_key != old.lock_key)).cloned();
        let inherited = inherited.collect();
        Export { owner: owner.number(), label: owner.label().to_owned(), leases, inherited }.to_string()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.leases().iter().map(|lease| lease.resource.to_string()).collect();
        f.debug_struct("Guard").field("names", &names).field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::future::join;
    use futures::poll;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::environment::Fake;
    use crate::error::Holder;
    use crate::node::fake::Server;
    use crate::{AcquireError, Builder, Quorlock};

    pub(super) const LEASE: Duration = Duration::from_secs(10);
    pub(super) const HONOURED: &str = ":1\r\n";
    /// The node has no key of the lease, and a newer owner has been there.
    pub(super) const GONE: &str = "*4\r\n:5\r\n:1790000000000000\r\n:1\r\n:0\r\n";

    /// The node has no key of the lease to release.
    pub(super) const NOT_HELD: &str = "*2\r\n:1790000000000000\r\n:0\r\n";

    /// A client of one node.
    pub(super) struct Test {
        pub(super) locks: Quorlock,
        pub(super) server: Server,
        /// How nodes call the script of the acquisitions.
        pub(super) hold: String,
        _streams: UnboundedReceiver<DuplexStream>,
    }

    impl Test {
        pub(super) async fn new() -> Self {
            Self::with(|builder| builder).await
        }

        pub(super) async fn with(settings: impl FnOnce(Builder) -> Builder) -> Self {
            let (environment, mut streams) = Fake::new();
            let builder = Quorlock::builder().nodes(["redis://node"]).lease(LEASE).environment(Arc::new(environment));
            let builder = settings(builder);
            let locks = builder.connect().await.expect("sound settings");
            let mut server = Server::new(streams.recv().await.expect("it connects"));
            server.greet(1).await;
            Self { locks, server, hold: String::new(), _streams: streams }
        }

        /// Returns the script of the next command.
        pub(super) async fn script(&mut self) -> String {
            self.server.command().await.expect("a command").swap_remove(1)
        }

        /// Answers the next command.
        pub(super) async fn reply(&mut self, reply: &str) {
            self.script().await;
            self.server.reply(reply).await;
        }

        /// Whether no command comes within this time.
        pub(super) async fn is_idle_for(&mut self, time: Duration) -> bool {
            timeout(time, self.server.command()).await.is_err()
        }

        pub(super) async fn held(&mut self, owner: &Owner) -> Guard {
            let request = self.locks.lock("a").owner(owner).acquire();
            let (guard, ()) = join(request, async {
                self.hold = self.server.command().await.expect("a command").swap_remove(1);
                self.server.reply(HONOURED).await;
            })
            .await;
            guard.expect("the node agrees")
        }
    }

    /// Three nodes.
    pub(super) struct Three {
        pub(super) servers: Vec<Server>,
        _streams: UnboundedReceiver<DuplexStream>,
    }

    impl Three {
        /// All nodes agree to the next message.
        pub(super) async fn honour(&mut self) {
            for server in &mut self.servers {
                server.command().await.expect("a message");
                server.reply(HONOURED).await;
            }
        }

        /// Two nodes fail to do what the next message says, and the third does not answer.
        pub(super) async fn fail_two(&mut self) {
            for server in &mut self.servers[..2] {
                server.command().await.expect("a message");
                server.reply("-OOM no memory\r\n").await;
            }
        }
    }

    /// Three nodes that are waited for 10 ms, and a guard that all of them honour.
    pub(super) async fn held_on_three() -> (Quorlock, Three, Guard) {
        let (environment, mut streams) = Fake::new();
        let builder = Quorlock::builder().nodes(["redis://x", "redis://y", "redis://z"]).lease(LEASE);
        let builder = builder.node_timeout(Duration::from_millis(10)).environment(Arc::new(environment));
        let locks = builder.connect().await.expect("sound settings");
        let mut servers = Vec::new();
        for number in 0..3 {
            let mut server = Server::new(streams.recv().await.expect("it connects"));
            server.greet_as(number, 3).await;
            servers.push(server);
        }
        let mut nodes = Three { servers, _streams: streams };
        let (guard, ()) = join(locks.lock("a").acquire(), nodes.honour()).await;
        (locks, nodes, guard.expect("all nodes agree"))
    }

    /// Lets the clock pass the end of the lease before any timer has fired.
    pub(super) async fn suspend() {
        assert!(poll!(pin!(advance(LEASE))).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_whose_request_is_not_polled_is_not_extended() {
        let mut test = Test::new().await;
        let mut request = Box::pin(test.locks.lock("a").try_acquire());
        assert!(poll!(&mut request).is_pending());
        test.reply(HONOURED).await;
        assert!(test.is_idle_for(LEASE * 9 / 10).await);
        test.script().await; // The release at the end.
        assert!(request.await.is_err(), "its lease is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_knows_its_owner_and_the_tokens_of_what_it_holds() {
        let mut test = Test::new().await;
        let owner = Owner::labelled("worker");
        let guard = test.held(&owner).await;
        assert_eq!(guard.owner().id(), owner.id());
        assert_eq!((guard.token_of("a"), guard.token_of("b")), (Some(guard.token()), None));
        assert_eq!(guard.margin(), 0, "one node is all there is");
    }

    #[tokio::test(start_paused = true)]
    async fn an_exported_lease_takes_along_what_its_owner_has_inherited() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let heir = Owner::import(&guard.export()).expect("an export");
        assert_eq!(heir.id(), guard.owner().id());
        let names = |exported: &str| {
            let owner = Owner::import(exported).expect("an export");
            let inherited = owner.inherited().into_iter().flat_map(Export::all);
            let mut keys: Vec<_> =
                inherited.map(|lease| String::from_utf8_lossy(&lease.lock_key).into_owned()).collect();
            keys.sort_unstable();
            keys
        };
        assert_eq!(names(&guard.export()), ["quorlock:lock:a"]);
        let (other, ()) = join(test.locks.lock("b").owner(&heir).acquire(), async {
            test.server.command().await.expect("a command");
            test.server.reply(HONOURED).await;
        })
        .await;
        let other = other.expect("the node agrees");
        assert_eq!(names(&other.export()), ["quorlock:lock:a", "quorlock:lock:b"]);
    }

    /// Re-enters `a`, beside other names, on a node that gives this answer, or none.
    async fn re_entry(names: &[&str], reply: Option<&str>) -> AcquireError {
        let mut test = Test::new().await;
        let owner = Owner::new();
        let _guard = test.held(&owner).await;
        let request = test.locks.lock_all(names).owner(&owner).try_acquire();
        let (error, ()) = join(request, async {
            test.server.command().await.expect("a command");
            if let Some(reply) = reply {
                test.server.reply(reply).await;
            }
        })
        .await;
        error.map(drop).expect_err("it was not granted")
    }

    #[tokio::test(start_paused = true)]
    async fn a_re_entry_fails_for_what_was_in_its_way() {
        let lost = re_entry(&["a"], Some(GONE)).await;
        assert!(matches!(&lost, AcquireError::Lost { resource, .. } if resource == "a"), "{lost:?}");
        let unanswered = re_entry(&["a"], None).await;
        assert!(matches!(unanswered, AcquireError::NoQuorum { .. }), "{unanswered:?}");
        // The second resource is held by something else.
        let held = re_entry(&["a", "b"], Some("*5\r\n:2\r\n:1790000000000000\r\n:2\r\n:1500\r\n$1\r\nx\r\n")).await;
        assert!(matches!(held, AcquireError::Held { by: Holder::Foreign, .. }), "{held:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_re_entry_fails_when_the_lease_ends_before_an_answer() {
        let mut test = Test::new().await;
        let owner = Owner::new();
        let _guard = test.held(&owner).await;
        let (error, ()) = join(test.locks.lock("a").owner(&owner).try_acquire(), async {
            test.server.command().await.expect("a command");
            suspend().await;
        })
        .await;
        assert!(matches!(error, Err(AcquireError::Lost { .. })), "{error:?}");
    }
}
