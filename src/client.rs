use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;

use crate::config::{Builder, Settings};
use crate::environment::{Environment, Moment, random_time, within};
use crate::error::{AcquireError, Answer, ClientError, ConfigError, ExportError, NodeError, NodeReport, Reports};
use crate::guard::Guard;
use crate::inspect::Inspection;
use crate::keeper::Keeper;
use crate::lock::LockRequest;
use crate::node::NodeAddress;
use crate::node::{self, Common, Driver, Node, ReplyTo, Request, parse_inspect};
use crate::owner::Owner;
use crate::protocol::{self, Ballot, Room};
use crate::resource::{LIST, Resource};
use crate::table::Table;
use crate::text::readable;
use crate::waiting::Ticket;
use crate::waiting::Turns;

/// How far ahead of this machine's clock a ballot may pull the client's own proposals: what NTP leaves between clocks.
const TRUSTED_LEAD: Duration = Duration::from_secs(60);

/// How long a flush waits at least for nodes that are slower than a majority.
const LAST_LOOK: Duration = Duration::from_millis(5);

/// How many `PING`s a flush sends to each node at most. A node that has lost its scripts refuses a request, which then leaves again
/// behind the first `PING`, with the scripts.
const MOST_PINGS: usize = 2;

/// A runtime that does nothing for a shorter time may just be busy.
const STALLED: Duration = Duration::from_millis(100);

/// Replaces a number, and gives the old one.
fn raise(line: &AtomicU64, next: impl Fn(u64) -> u64) -> u64 {
    line.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))).unwrap_or_else(|last| last)
}

/// A client: connections to all nodes, and the leases held through them.
///
/// Cheap to clone; clones share everything. The tokio runtime in which it connected has its connections and extends its leases.
/// It can be used from other runtimes, and from threads without one, as long as that runtime runs; when it has ended, requests
/// fail with [`ClientError::RuntimeEnded`](crate::ClientError::RuntimeEnded). When the last clone and
/// the last [`Guard`] are gone its tasks end, after they have seen through what was already being sent (a release, say),
/// which takes them the node timeout at most.
#[derive(Clone)]
pub struct Quorlock(Arc<Handle>);

/// What users hold. Its end is the client's end.
pub(crate) struct Handle(pub(crate) Arc<Core>);

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.common.life.is_copy() {
            return; // Another thread may have had a lock when the process was copied, and is not in the copy.
        }
        self.0.keeper.close();
        for node in &self.0.nodes {
            node.close();
        }
    }
}

/// What leases, rounds and tasks share.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) nodes: Vec<Node>,
    /// Of all connections.
    pub(crate) driver: Arc<Driver>,
    pub(crate) common: Arc<Common>,
    pub(crate) keeper: Keeper,
    pub(crate) table: Arc<Table>,
    pub(crate) turns: Arc<Turns>,
    environment: Arc<dyn Environment>,
    label: Arc<str>,
    ids: AtomicU64,
    last_ballot: AtomicU64,
    last_ticket: AtomicU64,
    /// How far this machine's wall clock is ahead of the nodes', in µs, when it is further than ballots may be.
    lead: AtomicU64,
}

impl Core {
    pub(crate) fn now(&self) -> Moment {
        self.environment.now()
    }

    pub(crate) fn random_time(&self, range: Range<Duration>) -> Duration {
        random_time(self.environment.as_ref(), range)
    }

    /// Waits for `future`, for at most `limit`, by a timer of the caller.
    pub(crate) async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        within(self.environment.as_ref(), limit, future).await
    }

    /// Waits until a request that no majority has answered is to ask again. Says whether a majority has been heard meanwhile.
    pub(crate) async fn next_try(&self) -> bool {
        self.common.hearing.next_try(self.environment.as_ref()).await
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.environment.sleep(time).await;
    }

    /// # Errors
    ///
    /// Why this client can ask no node.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        self.common.life.check()
    }

    /// A node has not answered within this time. It is to blame unless the client is, whose connections had been polled so often
    /// before.
    pub(crate) fn no_answer(&self, limit: Duration, polls: u64) -> NodeError {
        match self.check() {
            Err(why) => why.into(),
            Ok(()) if limit >= STALLED && polls == self.driver.polls() => ClientError::RuntimeStalled(limit).into(),
            Ok(()) => NodeError::NoAnswer(limit),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// An owner of its own for one acquisition.
    pub(crate) fn anonymous(&self) -> Owner {
        Owner::anonymous(self.environment.as_ref(), &self.label)
    }

    /// A ticket for a request that begins now. Its number is taken from the nodes' clocks: a client whose own clock is behind
    /// has not waited longer than others.
    pub(crate) fn ticket(&self) -> Arc<Ticket> {
        let now = self.common.clocks.median(self.now()).unwrap_or_else(|| self.wall());
        let next = |last: u64| now.max(last + 1);
        let number = next(raise(&self.last_ticket, next));
        self.common.tickets.issue(number, self.common.client, self.settings.quorum)
    }

    /// The wall clock in µs, as it ran on from when the client was made.
    pub(crate) fn wall(&self) -> u64 {
        self.common.wall()
    }

    /// A majority of the nodes is so far behind this machine's wall clock that they take no ballot of it: one of them shows
    /// `clock`, in µs. From now on ballots go by that. (Ends of leases do not.)
    pub(crate) fn set_back(&self, owner: &Owner, clock: u64) {
        self.lead.store(self.wall().saturating_sub(clock), Ordering::Relaxed);
        self.last_ballot.store(clock, Ordering::Relaxed);
        owner.last_ballot().store(clock, Ordering::Relaxed);
    }

    /// A node's clock shows this, in µs. Where this machine's agrees with it again, ballots go by this machine's.
    pub(crate) fn has_met(&self, clock: u64) {
        if self.lead.load(Ordering::Relaxed) > 0
            && u128::from(self.wall().abs_diff(clock)) <= self.common.window.as_micros()
        {
            self.lead.store(0, Ordering::Relaxed);
        }
    }

    /// What a node would take whose clock agrees with this machine's, and that has seen no ballot.
    pub(crate) fn room(&self) -> Room {
        let window = u64::try_from(self.common.window.as_micros()).unwrap_or(u64::MAX);
        Room { floor: Ballot::ZERO, clock: self.wall(), window }
    }

    /// A ballot larger than `floor`, and than every other one of this owner's here: none is ever used twice.
    ///
    /// A floor that is a little ahead of this machine's clock pulls all later proposals of the client along, as a hybrid
    /// logical clock does. One that is far ahead counts for this owner only, or a few broken clocks would pull everybody
    /// to where sound nodes refuse them.
    pub(crate) fn propose_above(&self, owner: &Owner, floor: Ballot) -> Ballot {
        let wall = self.wall().saturating_sub(self.lead.load(Ordering::Relaxed));
        let trusted = wall.saturating_add(u64::try_from(TRUSTED_LEAD.as_micros()).unwrap_or(0));
        let pull = if floor.get() <= trusted { floor.get() } else { 0 };
        let propose = |last: u64| protocol::propose(last.max(pull), wall);
        let proposed = propose(raise(&self.last_ballot, propose));
        let ahead = |last: u64| protocol::propose(last.max(floor.get()), proposed);
        let proposed = ahead(raise(owner.last_ballot(), ahead));
        // Nodes take no ballot that is far ahead of their clocks, so the limit is centuries away.
        Ballot::from_wire(proposed).unwrap_or(floor)
    }

    /// What each node said; of one that has said nothing to the point, what is known of it.
    pub(crate) fn reports(&self, said: impl Fn(usize) -> Option<Answer>) -> Reports {
        let now = self.now();
        let report = |(index, node): (usize, &Node)| {
            let known = || match self.check() {
                // No lock is taken in a fork.
                Err(why @ ClientError::Forked { .. }) => Answer::Failed(why.into()),
                _ => node.trouble(now).map_or(Answer::Up, Answer::Failed),
            };
            NodeReport { node: node.name.to_string(), answer: said(index).unwrap_or_else(known) }
        };
        Reports(self.nodes.iter().enumerate().map(report).collect())
    }

    /// Why a node has not answered for so long. `polls` is how often the connections had been looked after before.
    pub(crate) fn unanswered(&self, node: usize, waited: Duration, polls: u64) -> NodeError {
        match self.no_answer(waited, polls) {
            late @ NodeError::Client(_) => late,
            late => match self.nodes[node].trouble(self.now()) {
                None | Some(NodeError::Quarantined { .. }) => late,
                Some(trouble) => trouble,
            },
        }
    }

    pub(crate) fn resource(&self, name: &[u8]) -> Result<Resource, ConfigError> {
        Resource::new(&self.settings.prefix, name).ok_or_else(|| ConfigError::ReservedName(readable(name)))
    }
}

impl Quorlock {
    /// Starts with the default settings and no nodes.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn start(
        settings: Settings,
        addresses: Vec<NodeAddress>,
        environment: Arc<dyn Environment>,
        label: &str,
    ) -> Self {
        let timeout = settings.node_timeout(settings.lease);
        let list_key = [LIST, &settings.prefix].concat();
        let count = addresses.len();
        let common = Arc::new(Common::new(
            Arc::clone(&environment),
            count,
            list_key,
            timeout,
            settings.memory / 2,
            settings.lease,
        ));
        if settings.longest_lease > settings.lease {
            common.use_lease(settings.longest_lease);
        }
        let start = |(index, address)| Node::new(index, address, Arc::clone(&environment), Arc::clone(&common));
        let (nodes, connections): (Vec<Node>, Vec<_>) = addresses.into_iter().enumerate().map(start).unzip();
        let driver = Arc::new(Driver::new(connections, Arc::clone(&common)));
        tokio::spawn(driver.run());
        let core = Arc::new(Core {
            settings,
            nodes,
            driver,
            common,
            keeper: Keeper::new(),
            table: Arc::default(),
            turns: Arc::default(),
            label: Owner::labelled(label).label().into(),
            ids: AtomicU64::new(0),
            last_ballot: AtomicU64::new(0),
            last_ticket: AtomicU64::new(0),
            lead: AtomicU64::new(0),
            environment,
        });
        let keeping = Arc::clone(&core);
        tokio::spawn(async move { keeping.keeper.run(keeping.environment.as_ref()).await });
        Self(Arc::new(Handle(core)))
    }

    /// Asks for the lock on one resource. A name is any bytes, also none.
    ///
    /// To enter a lock that is held already, pass its [owner](LockRequest::owner) or run inside its
    /// [scope](Owner::scope); anybody else waits, also the very task that holds it.
    pub fn lock(&self, name: impl AsRef<[u8]>) -> LockRequest {
        LockRequest::new(Arc::clone(&self.0), vec![name.as_ref().to_vec()])
    }

    /// Asks for several resources at once: all or none, in one round, so their order never matters and two requests for
    /// overlapping sets cannot deadlock.
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
    /// [`AcquireError::Lost`] when the lease is over, [`AcquireError::NoQuorum`] when no majority can be heard,
    /// [`AcquireError::Export`] when the string is not an exported lease or was exported under another key prefix.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](LockRequest::acquire).
    pub async fn join(&self, exported: &str) -> Result<Guard, AcquireError> {
        let owner = Owner::import(exported)?;
        let prefix = &self.0.0.settings.prefix;
        let keys = owner.inherited().into_iter().flat_map(|export| &export.leases);
        let names = keys.map(|lease| lease.lock_key.strip_prefix(prefix.as_slice()));
        let names: Vec<&[u8]> = names.collect::<Option<_>>().ok_or(ExportError)?;
        self.lock_all(names).owner(&owner).try_acquire().await
    }

    /// Asks every node what it has for this name. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the name's key would lie where ballots are kept. A node that cannot be asked is no error but part
    /// of the answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn inspect(&self, name: impl AsRef<[u8]>) -> Result<Inspection, ConfigError> {
        let resource = self.0.0.resource(name.as_ref())?;
        let sightings = self.ask_all(node::inspect(&resource), parse_inspect).await;
        let mut seen = Inspection::new(resource.name(), sightings);
        for (view, known) in seen.nodes.iter_mut().zip(self.known().0) {
            if let (Ok(state), Answer::Failed(NodeError::Quarantined { left })) = (&mut view.state, known.answer) {
                state.quarantine = Some(left);
            }
        }
        Ok(seen)
    }

    /// Waits until every node has answered all that was sent to it before, releases of dropped guards too, for at most
    /// the node timeout, or twice that where a node had lost its scripts. Call it before [`std::process::exit`]: what is still queued then is never sent, and only the end of the
    /// lease frees the lock. A runtime that ends writes what is queued.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn flush(&self) {
        for _ in 0..MOST_PINGS {
            let resent = self.0.0.common.resent();
            self.ask_all(redis::cmd("PING"), |_| Ok(())).await;
            if resent == self.0.0.common.resent() {
                return;
            }
        }
    }

    /// As [`flush`](Self::flush), but waits for a node that is slower than a majority only as long again as that took, and a
    /// little. What was sent before has left for that node by then, unless it cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    #[doc(hidden)]
    pub async fn flush_majority(&self) {
        for _ in 0..MOST_PINGS {
            let resent = self.0.0.common.resent();
            self.ping_majority().await;
            if resent == self.0.0.common.resent() {
                return;
            }
        }
    }

    async fn ping_majority(&self) {
        let core = &self.0.0;
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
        let (mut heard, mut end, mut decided) = (0, began + limit, None);
        while let Some(Some((index, has_answered))) = core.within(end.since(core.now()), answers.next()).await {
            (heard, waits[index]) = (heard + usize::from(has_answered), Duration::ZERO);
            if heard >= core.settings.quorum {
                let now = *decided.get_or_insert_with(|| core.now());
                let longest = waits.iter().max().copied().unwrap_or_default();
                end = (began + limit).min(now + longest.max(now.since(began) + LAST_LOOK));
            }
        }
    }

    /// Asks every node the same, and waits for all of them for at most the node timeout.
    async fn ask_all<T>(
        &self,
        command: redis::Cmd,
        parse: impl Fn(&redis::Value) -> Result<T, NodeError>,
    ) -> Vec<(String, Result<T, NodeError>)> {
        let core = &self.0.0;
        if let Err(why) = core.check() {
            return core.nodes.iter().map(|node| (node.name.to_string(), Err(why.into()))).collect();
        }
        let limit = core.settings.node_timeout(core.settings.lease);
        let command = node::pack(&command);
        let (parse, polls) = (&parse, core.driver.polls());
        let asked = core.nodes.iter().enumerate().map(|(index, node)| {
            let (reply_to, answer) = oneshot::channel();
            node.send(Request { command: Arc::clone(&command), reply_to: ReplyTo::Look(reply_to) });
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
        self.0.0.reports(|_| None)
    }

    /// The nodes, without users and passwords, in the order given.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.0.0.nodes.iter().map(|node| &*node.name)
    }
}

impl fmt::Debug for Quorlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quorlock").field("nodes", &self.0.0.nodes).finish_non_exhaustive()
    }
}
