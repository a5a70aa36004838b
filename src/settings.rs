//! The settings of a client, checked.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::ConfigError;
use crate::protocol::{LONGEST_LEASE, Outage, Schedule};

const NODE_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
const LONGEST_DEFAULT_NODE_TIMEOUT: Duration = Duration::from_millis(500);

/// Checked settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) quorum: usize,
    pub(crate) lease: Duration,
    pub(crate) longest_lease: Duration,
    /// How long requests wait that say nothing else; `None` for ever.
    pub(crate) wait: Option<Duration>,
    pub(crate) outage: Outage,
    pub(crate) prefix: Vec<u8>,
    pub(crate) fixed_node_timeout: Option<Duration>,
    pub(crate) ballot_ttl: Duration,
    pub(crate) schedule: Schedule,
}

impl Settings {
    /// How long a round for this lease waits for nodes.
    pub(crate) fn node_timeout(&self, lease: Duration) -> Duration {
        self.fixed_node_timeout.unwrap_or_else(|| (lease / 4).min(LONGEST_DEFAULT_NODE_TIMEOUT))
    }

    /// Checks that a lease of this length can work.
    pub(crate) fn check_lease(&self, lease: Duration) -> Result<(), ConfigError> {
        if lease > LONGEST_LEASE {
            return Err(ConfigError::LeaseTooLong { lease, longest: LONGEST_LEASE });
        }
        let drift = self.schedule.validity.drift(lease);
        let node_timeout = self.node_timeout(lease);
        if let Some(timeout) = self.fixed_node_timeout.filter(|timeout| !NODE_TIMEOUTS.contains(timeout)) {
            let (shortest, longest) = NODE_TIMEOUTS.into_inner();
            return Err(ConfigError::NodeTimeout { timeout, shortest, longest });
        }
        if lease <= drift + node_timeout {
            return Err(ConfigError::LeaseTooShort { lease, drift, node_timeout });
        }
        let longest = lease.saturating_sub(drift + Schedule::extend_after(lease));
        if let Some(before) = self.schedule.warn_before.filter(|before| *before > longest) {
            return Err(ConfigError::WarningTooEarly { before, lease, longest });
        }
        Ok(())
    }
}
