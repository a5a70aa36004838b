//! Many tasks on several threads, in an order that no test decides: what must hold at every moment in any order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorlock::environment::{Connecting, Environment, Moment};
use quorlock::{AcquireError, Guard, Owner, Quorlock, ReleaseError};
use quorlock_testkit::{Cluster, eventually};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use redis::ConnectionAddr;

use crate::clocks::Ahead;

const SECOND: Duration = Duration::from_secs(1);
const NODES: usize = 3;
const NAMES: [&str; 3] = ["a", "b", "c"];
const HELD: &str = "held";
const TASKS: usize = 12;
const STEPS: usize = 250;

/// The owner inside each resource, by name, with its number of guards.
type Inside = Arc<Mutex<HashMap<String, (String, usize)>>>;

/// A task inside the section that the lock protects.
struct Visit {
    inside: Inside,
    name: String,
}

impl Visit {
    fn new(inside: &Inside, name: &str, owner: &Owner) -> Self {
        let mut all = inside.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, guards) = all.entry(name.to_owned()).or_insert_with(|| (owner.id(), 0));
        assert_eq!(*id, owner.id(), "two owners have {name:?} at once");
        *guards += 1;
        Self { inside: Arc::clone(inside), name: name.to_owned() }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut all = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, guards) = all.get_mut(&self.name).expect("it was entered");
        *guards -= 1;
        if *guards == 0 {
            all.remove(&self.name);
        }
    }
}

/// A client, and the prefix of its share words on the nodes: each lease has its own share.
struct Client {
    locks: Quorlock,
    shares: String,
}

impl Client {
    async fn new(cluster: &Cluster) -> Self {
        let builder = cluster.builder().environment(Arc::new(Dawdling::default())).lease(60 * SECOND);
        let locks = builder.node_timeout(10 * SECOND).connect().await.expect("settings that work");
        locks.flush().await;
        let guard = locks.lock("share").acquire().await.expect("a free lock");
        locks.flush().await;
        let key: Option<String> =
            redis::cmd("GET").arg(Cluster::lock_key("share")).query(&mut cluster.redis(0)).expect("an answer");
        let share = key.expect("every node granted it").rsplit(' ').next().expect("one word").to_owned();
        let client = share.split('/').next().expect("before the lease");
        guard.release().await.expect("a release");
        Self { locks, shares: format!(" {client}/") }
    }
}

/// A thread that reads the time may be delayed, as on an overloaded machine. The library reads the time at most of the places
/// where two threads could conflict.
#[derive(Debug, Default)]
struct Dawdling(Ahead);

impl Dawdling {
    fn dawdle() {
        if rand::random_ratio(1, 8) {
            std::thread::sleep(Duration::from_micros(rand::random_range(0..2000)));
        }
    }
}

impl Environment for Dawdling {
    fn now(&self) -> Moment {
        Self::dawdle();
        self.0.now()
    }

    fn wall(&self) -> Duration {
        Self::dawdle();
        self.0.wall()
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        self.0.connect(address)
    }
}

struct World {
    nodes: Vec<redis::Client>,
    clients: [Client; 2],
    owners: [Owner; 3],
    inside: Inside,
    taken: AtomicUsize,
    shown: AtomicUsize,
}

impl World {
    /// Sends a random request: some are cancelled at any moment, some are for several names, most meet others.
    async fn step(&self, rng: &mut SmallRng) {
        if rng.random_ratio(1, 50) {
            self.flush_scripts();
        }
        let client = self.clients.choose(rng).expect("there are some");
        let owner = if rng.random_ratio(1, 2) { Owner::new() } else { self.owners.choose(rng).expect("some").clone() };
        let count = if rng.random_ratio(1, 5) { 2 } else { 1 };
        let names: Vec<&str> = NAMES.sample(rng, count).copied().collect();
        let request = client.locks.lock_all(&names).owner(&owner).wait(20 * SECOND);
        let waits = rng.random_ratio(3, 4);
        let asked = async { if waits { request.acquire().await } else { request.try_acquire().await } };
        let patience =
            Duration::from_micros(if rng.random_ratio(1, 4) { rng.random_range(0..2000) } else { 30_000_000 });
        let Ok(asked) = tokio::time::timeout(patience, asked).await else { return };
        let guard = match asked {
            Ok(guard) => guard,
            Err(error) => return assert!(is_expected(&error), "{error:?}"),
        };
        self.taken.fetch_add(1, Ordering::Relaxed);
        let visits: Vec<Visit> = names.iter().map(|name| Visit::new(&self.inside, name, &owner)).collect();
        if rng.random_ratio(1, 8) {
            self.check(client, &names, &guard);
        }
        if rng.random_ratio(1, 4) {
            tokio::task::yield_now().await;
        }
        let joined = if rng.random_ratio(1, 4) { self.join(rng, &guard).await } else { None };
        assert!(!guard.is_lost(), "{guard:?}");
        if let Some((client, joined)) = &joined {
            drop(guard);
            self.check(client, &names, joined);
            return drop(visits);
        }
        drop(visits);
        if rng.random_ratio(1, 2) {
            give_back(guard).await;
        }
    }

    /// Joins the held lease, while other tasks of the same client join and release it.
    async fn come_and_go(&self, export: &str, rng: &mut SmallRng) {
        let client = &self.clients[1];
        match client.locks.join(export).await {
            Ok(joined) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                if rng.random_ratio(1, 4) {
                    // Held for a moment, which a late message must not end. No result depends on the duration.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    self.check(client, &[HELD], &joined);
                }
                give_back(joined).await;
            }
            Err(error) => assert!(is_expected(&error), "{error:?}"),
        }
    }

    /// Hands the lease to either client, which may have another request of this owner in progress.
    async fn join(&self, rng: &mut SmallRng, guard: &Guard) -> Option<(&Client, Guard)> {
        let client = self.clients.choose(rng).expect("there are some");
        match client.locks.join(&guard.export()).await {
            Ok(joined) => Some((client, joined)),
            Err(error) => {
                assert!(is_expected(&error), "{error:?}");
                None
            }
        }
    }

    /// Removes the scripts from the nodes, so that some requests are repeated and others overtake them.
    fn flush_scripts(&self) {
        for node in &self.nodes {
            let mut node = node.get_connection().expect("a connection");
            redis::cmd("SCRIPT").arg("FLUSH").exec(&mut node).expect("an answer");
        }
    }

    /// A majority of the nodes must store the lease that this client was granted.
    fn check(&self, client: &Client, names: &[&str], guard: &Guard) {
        for name in names {
            let key = redis::cmd("GET").arg(Cluster::lock_key(name)).clone();
            let look = |node: &redis::Client| key.query(&mut node.get_connection()?);
            let keys = self.nodes.iter().map(look).collect::<Result<Vec<Option<String>>, redis::RedisError>>();
            let keys = keys.expect("answers");
            let start = format!("ql1 {} {} ", guard.token_of(name).expect("one of its names"), guard.owner().id());
            let has = |key: &&String| key.starts_with(&start) && key.contains(&client.shares);
            let honoured = keys.iter().flatten().filter(has).count();
            assert!(honoured > NODES / 2, "{name:?} of {guard:?} as the nodes have it: {keys:?}");
            self.shown.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Another owner holds the lock or requests it, or nodes lost their scripts during the request.
fn is_expected(error: &AcquireError) -> bool {
    error.is_held() || error.is_no_quorum() || matches!(error, AcquireError::Contended { .. })
}

async fn give_back(guard: Guard) {
    match guard.release().await {
        Ok(_) | Err(ReleaseError::Unconfirmed { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn nodes_honour_every_granted_guard_in_any_order() {
    let cluster = Cluster::start(NODES);
    let clients = [Client::new(&cluster).await, Client::new(&cluster).await];
    let nodes = cluster.urls().into_iter().map(|url| redis::Client::open(url).expect("a URL")).collect();
    let world = Arc::new(World {
        nodes,
        clients,
        owners: [Owner::new(), Owner::new(), Owner::new()],
        inside: Inside::default(),
        taken: AtomicUsize::new(0),
        shown: AtomicUsize::new(0),
    });
    // This lock is held throughout, so that tasks can join and leave its lease.
    let held = world.clients[0].locks.lock(HELD).acquire().await.expect("a free lock");
    let export: Arc<str> = held.export().into();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (world, export) = (Arc::clone(&world), Arc::clone(&export));
        tasks.spawn(async move {
            let mut rng: SmallRng = rand::make_rng();
            for _ in 0..STEPS {
                if task % 2 == 0 {
                    world.come_and_go(&export, &mut rng).await;
                } else {
                    world.step(&mut rng).await;
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("a task");
    }
    held.release().await.expect("a release");
    for client in &world.clients {
        client.locks.flush().await;
    }
    assert!(world.taken.load(Ordering::Relaxed) > TASKS * STEPS / 4, "{:?} were granted", world.taken);
    assert!(world.shown.load(Ordering::Relaxed) > 0);
    for name in NAMES.into_iter().chain([HELD]) {
        // The release may need the next connection.
        eventually(20 * SECOND, name, || cluster.count_keys(&Cluster::lock_key(name)) == 0).await;
        eventually(20 * SECOND, name, || cluster.count_waiting(name) == 0).await;
    }
}
