use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;

use crate::client::Quorlock;
use crate::coordinator::{Core, Handle};
use crate::environment::{Environment, System};
#[cfg(feature = "tls")]
use crate::environment::{Tls, TlsClient};
use crate::error::ConfigError;
use crate::node::{NodeAddress, NodeConfig};
use crate::protocol::{Outage, Schedule, Validity, quorum};
use crate::settings::Settings;
#[cfg(feature = "metrics")]
use crate::telemetry::Class;
use crate::telemetry::{Listeners, Observer};

/// The default of [`Builder::lease`].
pub const DEFAULT_LEASE: Duration = Duration::from_secs(10);
/// The default of [`Builder::prefix`].
pub const DEFAULT_PREFIX: &str = "quorlock:lock:";

const DEFAULT_BALLOT_TTL: Duration = Duration::from_secs(10 * 60);
const SHORTEST_BALLOT_TTL: Duration = Duration::from_secs(60);
const LONGEST_BALLOT_TTL: Duration = Duration::from_secs(2 * 7 * 24 * 3600);
const DEFAULT_DRIFT_FACTOR: f64 = 0.01;

/// Settings of a client; start with [`Quorlock::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until connect()"]
pub struct Builder {
    nodes: Vec<NodeConfig>,
    lease: Duration,
    longest_lease: Option<Duration>,
    wait: Option<Duration>,
    outage: Outage,
    prefix: Vec<u8>,
    node_timeout: Option<Duration>,
    drift_factor: f64,
    ballot_ttl: Option<Duration>,
    extends: bool,
    warn_before_expiry: Option<Duration>,
    label: String,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
    /// In place of this machine's.
    environment: Option<Arc<dyn Environment>>,
    listeners: Listeners,
}

impl Quorlock {
    /// Starts with the default settings and no nodes.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            nodes: Vec::new(),
            lease: DEFAULT_LEASE,
            longest_lease: None,
            wait: None,
            outage: Outage::default(),
            prefix: DEFAULT_PREFIX.into(),
            node_timeout: None,
            drift_factor: DEFAULT_DRIFT_FACTOR,
            ballot_ttl: None,
            extends: true,
            warn_before_expiry: None,
            label: String::new(),
            #[cfg(feature = "tls")]
            tls: None,
            environment: None,
            listeners: Listeners::default(),
        }
    }

    /// The Redis (or Valkey) masters, as URLs: `redis://`, `redis+unix://`, and with feature `tls` also `rediss://`,
    /// with user, password and database number as the crate `redis` takes them. Independent servers, an odd number.
    /// [`node_configs`](Self::node_configs) takes typed settings instead.
    ///
    /// The certificates that `rediss://` trusts are those of the operating system (`SSL_CERT_FILE` and `SSL_CERT_DIR` name
    /// others), unless `Builder::tls` names others. They are read once for the process.
    ///
    /// Defaults to none, which is refused. At most 63.
    pub fn nodes<I>(mut self, urls: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.nodes = urls.into_iter().map(NodeConfig::url).collect();
        self
    }

    /// The Redis (or Valkey) masters, as typed settings: for passwords that are asked for at each connection, and without escapes.
    /// It replaces [`nodes`](Self::nodes).
    ///
    /// Defaults to none, which is refused.
    pub fn node_configs(mut self, nodes: impl IntoIterator<Item = NodeConfig>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// How `rediss://` nodes are verified, and which client certificate they are shown. It has no effect with an
    /// [`environment`](Self::environment) of one's own, which opens the streams.
    ///
    /// Defaults to the certificates of the operating system, and no client certificate.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long a lock outlives a holder that dies. A live holder extends it by itself.
    ///
    /// Defaults to 10 s. At most 7 days, and more than the drift allowance and the node timeout together.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The longest lease that *any* client of these nodes uses. A node that may have forgotten leases grants nothing for this
    /// long. The nodes remember the longest that was used, and a client learns it from them, so this is a hint for the case that
    /// the nodes that know are away.
    ///
    /// Defaults to the client's own lease, and grows with longer ones that it asks for.
    pub fn longest_lease(mut self, lease: Duration) -> Self {
        self.longest_lease = Some(lease);
        self
    }

    /// How long each request waits that sets no [limit](crate::LockRequest::wait) of its own. A request that is to wait
    /// without a limit sets `Duration::MAX`.
    ///
    /// Defaults to no limit.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// What each request does while no majority of the nodes answers, unless it [says](crate::LockRequest::outage) otherwise.
    ///
    /// Defaults to [`Outage::Bounded`].
    pub fn outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// What stands before each name in the lock's key. With an empty prefix, quorlock and any other client that locks by
    /// `SET name value NX PX` exclude each other on the same name.
    ///
    /// Defaults to `quorlock:lock:`.
    pub fn prefix(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a round waits for nodes when no majority has answered. It does not slow a round that has its majority.
    ///
    /// Defaults to a quarter of the lease, at most 500 ms. From 1 ms to an hour.
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.node_timeout = Some(timeout);
        self
    }

    /// By what share of a lease two clocks may drift apart while it lasts; taken off its validity, and 2 ms more.
    ///
    /// Defaults to 0.01. From 0 to less than 0.5.
    pub fn drift_factor(mut self, factor: f64) -> Self {
        self.drift_factor = factor;
        self
    }

    /// How long nodes keep a resource's ballot after its lease was released. Half of it is how far a ballot may lie from a node's
    /// clock. The first client of a node decides; the node's record keeps it, and later ones go by that.
    ///
    /// Defaults to ten minutes, or twice the lease if that is longer. From a minute to 14 days.
    pub fn ballot_ttl(mut self, ttl: Duration) -> Self {
        self.ballot_ttl = Some(ttl);
        self
    }

    /// Whether held leases are extended in the background.
    ///
    /// Defaults to `true`.
    pub fn auto_extend(mut self, extend: bool) -> Self {
        self.extends = extend;
        self
    }

    /// How much validity is left when a holder is warned that its lease is [endangered](crate::Guard::endangered).
    ///
    /// Defaults to a third of the lease. At most what is left of the lease after the drift allowance and a third of it.
    pub fn warn_before_expiry(mut self, before: Duration) -> Self {
        self.warn_before_expiry = Some(before);
        self
    }

    /// A name for people. The error of a request that finds a lock held by this client shows it, as `host:pid:name`.
    ///
    /// Defaults to none.
    pub fn label(mut self, name: impl Into<String>) -> Self {
        self.label = name.into();
        self
    }

    /// Calls this for each [`Event`](crate::Event): a request that ends, a lease that is in danger, lost or released, a node that
    /// changes.
    ///
    /// Defaults to none.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.listeners.observer = Some(observer);
        self
    }

    /// Sets the label `class` of the metrics that are about one lock. Names of locks are no labels: there may be any number of them.
    /// Return one of a few words, such as what stands before the first colon of the name.
    ///
    /// The function must not block and must not call the client. If it panics, the class is `unknown`.
    ///
    /// ```
    /// let builder = quorlock::Quorlock::builder().metric_class(|name| {
    ///     if name.starts_with(b"account:") { "account" } else { "other" }
    /// });
    /// ```
    ///
    /// Defaults to none: the metrics have no such label.
    #[cfg(feature = "metrics")]
    pub fn metric_class<C>(mut self, class: impl Fn(&[u8]) -> C + Send + Sync + 'static) -> Self
    where
        C: Into<std::borrow::Cow<'static, str>>,
    {
        self.listeners.class = Some(Class(Arc::new(move |name| class(name).into())));
        self
    }

    /// Replaces clocks, timers, randomness and sockets: for simulation. See [`environment`](crate::environment).
    ///
    /// Defaults to those of the machine.
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Checks the settings and starts connecting to every node in the background. A node that cannot be reached is no
    /// error: it is tried again for as long as the client lives, and its vote is missing meanwhile.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for settings that cannot work, for certificates and keys that cannot be used, and outside of a tokio runtime;
    /// nothing has been sent then.
    ///
    /// # Panics
    ///
    /// In a tokio runtime without its time and network drivers (`enable_all`).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing has been sent before it returns. It waits only for certificates and keys that `Builder::tls` names, a
    /// second at most, while a thread reads them. If that takes longer, the attempts to connect wait for them.
    pub async fn connect(self) -> Result<Quorlock, ConfigError> {
        let (settings, nodes) = self.checked()?;
        runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let machine = self.machine().await?;
        let core = Core::start(settings, nodes, machine, &self.label, self.listeners);
        Ok(Quorlock::new(Handle::new(core)))
    }

    /// The settings and the nodes' addresses, checked.
    pub(crate) fn checked(&self) -> Result<(Settings, Vec<NodeAddress>), ConfigError> {
        Ok((self.settings()?, self.addresses()?))
    }

    /// What is outside of the client, with the timers of this runtime and the settings for TLS, checked.
    #[cfg_attr(not(feature = "tls"), expect(clippy::unused_async, reason = "waits with `tls`"))]
    pub(crate) async fn machine(&self) -> Result<Arc<dyn Environment>, ConfigError> {
        if let Some(environment) = &self.environment {
            return Ok(Arc::clone(environment));
        }
        let system = System::here();
        #[cfg(feature = "tls")]
        if let Some(settings) = &self.tls {
            let tls = TlsClient::new(settings.clone());
            tls.check().await.map_err(|flaw| ConfigError::Tls { what: flaw.what, reason: flaw.reason })?;
            return Ok(Arc::new(system.with_tls(tls)));
        }
        Ok(Arc::new(system))
    }

    fn settings(&self) -> Result<Settings, ConfigError> {
        if !(0.0..0.5).contains(&self.drift_factor) {
            return Err(ConfigError::DriftFactor(self.drift_factor.to_string()));
        }
        let settings = Settings {
            quorum: quorum(self.nodes.len()),
            lease: self.lease,
            longest_lease: self.longest_lease.unwrap_or_default().max(self.lease),
            wait: self.wait,
            outage: self.outage,
            prefix: self.prefix.clone(),
            fixed_node_timeout: self.node_timeout,
            ballot_ttl: self
                .ballot_ttl
                .unwrap_or_else(|| DEFAULT_BALLOT_TTL.max(self.lease.saturating_mul(2)).min(LONGEST_BALLOT_TTL)),
            schedule: Schedule {
                validity: Validity { drift_factor: self.drift_factor },
                extends: self.extends,
                warn_before: self.warn_before_expiry,
            },
        };
        if !(SHORTEST_BALLOT_TTL..=LONGEST_BALLOT_TTL).contains(&settings.ballot_ttl) {
            let (ttl, shortest, longest) = (settings.ballot_ttl, SHORTEST_BALLOT_TTL, LONGEST_BALLOT_TTL);
            return Err(ConfigError::BallotTtl { ttl, shortest, longest });
        }
        settings.check_lease(self.lease)?;
        settings.check_lease(settings.longest_lease)?;
        Ok(settings)
    }

    fn addresses(&self) -> Result<Vec<NodeAddress>, ConfigError> {
        if self.nodes.is_empty() {
            return Err(ConfigError::NoNodes);
        }
        if self.nodes.len() > 63 {
            return Err(ConfigError::TooManyNodes(self.nodes.len()));
        }
        let mut nodes: Vec<NodeAddress> = Vec::with_capacity(self.nodes.len());
        for (i, config) in self.nodes.iter().enumerate() {
            let refused = |reason| ConfigError::NodeUrl { position: i + 1, address: config.hidden(), reason };
            let node = config.address().map_err(refused)?;
            if let Some(first) = nodes.iter().position(|other| other.server == node.server) {
                return Err(ConfigError::DuplicateNode { first: first + 1, second: i + 1, address: node.server });
            }
            nodes.push(node);
        }
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::LONGEST_LEASE;

    fn three() -> Builder {
        Builder::new().nodes(["redis://a", "redis://b", "redis://c"])
    }

    fn refused(builder: &Builder) -> ConfigError {
        let built = builder.settings().and_then(|_| builder.addresses());
        built.expect_err("these settings cannot work")
    }

    #[test]
    fn node_lists_that_cannot_work() {
        assert_eq!(refused(&Builder::new()), ConfigError::NoNodes);
        let many = (0..64).map(|i| format!("redis://host{i}"));
        assert_eq!(refused(&Builder::new().nodes(many)), ConfigError::TooManyNodes(64));
        let twice = Builder::new().nodes(["redis://A:1/0", "redis://b:1", "redis://u:p@a:1/3"]);
        let expected = ConfigError::DuplicateNode { first: 1, second: 3, address: "a:1".to_owned() };
        assert_eq!(refused(&twice), expected);
    }

    #[test]
    fn a_bad_url_is_named_without_its_password() {
        for url in [
            "redis://me:hunter2@host:port",
            "http://me:hunter2@host",
            "me:hunter2@host:1",
            "redis://me:hunter2@",
            "redis://me:hunter2@host/db",
            "redis+unix:relative?pass=hunter2",
            "redis://host:99999?password=hunter2",
            "redis://me:hunter2@@host:x",
            "redis://me:hunter2#x@host",
            "redis://me:hunter2",
            "redis://me:1234?hunter2@host",
            "redis://me:1234/hunter2@host",
            "me:x#hunter2@host",
            "hunter2",
            "redis://hunter2@host",
        ] {
            let builder = Builder::new().nodes([url]);
            let error = refused(&builder);
            assert!(matches!(error, ConfigError::NodeUrl { position: 1, .. }), "{error:?}");
            let said = format!("{error} {error:?} {builder:?}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn a_password_with_special_characters_is_explained() {
        for url in ["redis://me:a#b@host", "redis://me:1?b@host", "redis://me:1/b@host", "redis://me:a@b/c@host"] {
            let error = refused(&Builder::new().nodes([url])).to_string();
            assert!(error.starts_with("node 1 (redis://…)") && error.contains("%23 for #"), "{error}");
        }
        let comma = refused(&Builder::new().nodes("redis://me:a,b@host".split(','))).to_string();
        assert!(comma.contains("%2C for a comma"), "{comma}");
        let fine = "redis://me:a%23%3F%2F%40%2C%25@host";
        assert_eq!(NodeAddress::parse(fine).map(|node| node.name).as_deref(), Ok("host:6379"));
    }

    #[test]
    fn leases_that_cannot_work_name_the_inequality() {
        let text = refused(&three().lease(Duration::ZERO)).to_string();
        assert!(text.contains("must exceed the drift allowance of 2ms plus the node timeout of 0s"), "{text}");
        let short = three().lease(Duration::from_millis(500)).node_timeout(Duration::from_millis(500));
        assert!(matches!(refused(&short), ConfigError::LeaseTooShort { .. }));
        assert!(matches!(refused(&three().lease(Duration::MAX)), ConfigError::LeaseTooLong { .. }));
        assert!(three().lease(Duration::from_millis(10)).settings().is_ok());
        assert!(three().lease(LONGEST_LEASE).settings().is_ok());
    }

    #[test]
    fn ballots_are_kept_for_a_minute_at_least_and_not_for_ever() {
        let ttl = |seconds| three().ballot_ttl(Duration::from_secs(seconds));
        assert!(ttl(60).settings().is_ok());
        for builder in [&ttl(59), &three().ballot_ttl(Duration::MAX)] {
            assert!(matches!(refused(builder), ConfigError::BallotTtl { .. }), "{builder:?}");
        }
        assert!(three().lease(LONGEST_LEASE).settings().is_ok());
    }

    #[test]
    fn node_timeouts_are_a_millisecond_to_an_hour() {
        for timeout in [Duration::ZERO, Duration::from_micros(999), Duration::from_secs(3601), Duration::MAX] {
            assert!(matches!(refused(&three().node_timeout(timeout)), ConfigError::NodeTimeout { .. }), "{timeout:?}");
        }
        assert!(three().node_timeout(Duration::from_millis(1)).settings().is_ok());
        assert!(three().node_timeout(Duration::from_secs(3600)).lease(LONGEST_LEASE).settings().is_ok());
    }

    #[test]
    fn other_settings_that_cannot_work() {
        for factor in [-0.1, 0.5, f64::NAN] {
            assert!(matches!(refused(&three().drift_factor(factor)), ConfigError::DriftFactor(_)));
        }
        let early = three().warn_before_expiry(Duration::from_millis(6566));
        assert!(matches!(refused(&early), ConfigError::WarningTooEarly { .. }));
        assert!(three().warn_before_expiry(Duration::from_millis(6564)).settings().is_ok());
    }
}
