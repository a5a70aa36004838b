//! The broken clients. Their changes are in `breaks.rs` of the testkit.

/// A way to break the client.
pub struct Control {
    pub name: &'static str,
    /// One of these invariants must be violated; a violation of something else proves nothing. Empty when it is out of reach.
    pub by: &'static [&'static str],
    /// Why no run can be expected to catch it.
    pub beyond: Option<&'static str>,
}

const SHIPPED: &str = "nothing: the shipped client";

impl Control {
    /// Returns the name of the change, which is empty for the shipped client.
    pub fn variant(&self) -> &'static str {
        if self.name == SHIPPED { "" } else { self.name }
    }
}

const fn caught(name: &'static str, by: &'static [&'static str]) -> Control {
    Control { name, by, beyond: None }
}

const fn beyond(name: &'static str, why: &'static str) -> Control {
    Control { name, by: &[], beyond: Some(why) }
}

pub const ALL: &[Control] = &[
    caught(SHIPPED, &[]),
    // Votes and tokens.
    caught("quorum too small", &["MutualExclusion", "NoFalseGrant"]),
    caught("waiting for every node", &["ReentryIsPrompt"]),
    caught("owner reused without a fresh ballot", &["TokenUnique", "TokenMonotonic"]),
    caught("extension under a new token", &["TokenStable"]),
    caught("re-entry under a new token", &["TokenStable"]),
    caught("a re-entry is refused", &["ReentryIsGranted"]),
    caught("token() is constant", &["TokenUnique", "TokenMonotonic"]),
    caught(
        "late reply credited to another round",
        &["NoFalseGrant", "MutualExclusion", "NoResurrection", "MarginIsTrue"],
    ),
    // Leases.
    caught("extensions are never sent", &["KeepsWhileWell"]),
    caught("extension confirmed below quorum", &["NoFalseGrant", "MutualExclusion"]),
    beyond(
        "extension after expiry",
        "a client leaves a silent connection long before the answer to an extension could come after the end of its lease",
    ),
    caught("validity ignoring elapsed", &["RemainingIsTrue", "MutualExclusion"]),
    caught("validity ignoring drift", &["RemainingIsTrue", "MutualExclusion"]),
    caught("validity set, not raised", &["LeaseNeverShrinks"]),
    beyond(
        "validity not checked last",
        "a client gives a round up long before its lease is over; only a process that was stopped meanwhile is granted late",
    ),
    caught("keys that outlive the lease", &["FreeAfterTtl"]),
    // What a guard shows and signals.
    caught("remaining() is too long", &["RemainingIsTrue"]),
    caught("remaining() ends early", &["RemainingIsTrue", "LossOnTime"]),
    caught("margin() is always 0", &["MarginIsTrue"]),
    caught("margin() counts every node", &["MarginIsTrue"]),
    caught("hold_count() is always 1", &["ReentrantDepth"]),
    caught("no watch over the deadline", &["LossOnTime"]),
    caught("lost() wakes 500 ms late", &["LossOnTime"]),
    caught("lost() never resolves", &["LossOnTime"]),
    caught("is_lost() is late", &["LossOnTime"]),
    caught("protect() ignores the loss", &["LossOnTime"]),
    caught("endangered() never resolves", &["WarnsBeforeLoss"]),
    caught("is_endangered() is never true", &["WarnsBeforeLoss"]),
    // Releases.
    caught("a release does nothing and says Ok", &["ReleaseTakesEffect"]),
    caught("a release is not sent and says Ok", &["ReleaseTakesEffect"]),
    caught("a release says that nothing was held", &["ReleaseIsConfirmed"]),
    beyond(
        "a release deletes the lock of anyone",
        "it reaches only nodes that may have granted; what the ballot key remembers keeps others out until the next extension",
    ),
    caught("release says yes after a loss", &["ReleaseSafe"]),
    beyond(
        "release carries what is known",
        "only a message that arrives after its own release could leave a key, and that ends with its lease before the last look",
    ),
    caught("an inner release ends the lease", &["MutualExclusion", "LossOnTime"]),
    caught("a dropped guard releases nothing", &["ReleaseTakesEffect"]),
    caught("dropped request not released", &["ReleaseTakesEffect"]),
    beyond(
        "a release under way on a broken connection is forgotten",
        "connections of a minority break, so a majority has the release; the rest keep the lock for a lease",
    ),
    beyond("one word for all shares of a client", "no worker joins a lease again after it has released it"),
    // Nodes and connections.
    caught("a broken connection is not made again", &["MinorityFaultLive"]),
    beyond(
        "run id not compared",
        "a server here comes back with all of its writes or with none, and not with older ones",
    ),
    caught("a yes of a young node counts", &["QuarantineHolds", "MutualExclusion"]),
    beyond("the longest lease of others is not learnt", "all workers know the longest lease of the run"),
    beyond("a refusal teaches no longer lease", "all workers know the longest lease of the run"),
    // Waiting.
    caught("requests that no majority answers ask again at once", &["NoStorm"]),
    caught("a waiter looks again at once", &["NoStorm"]),
    beyond("a waiter hears no call", "locks are granted later, but are granted: a matter of speed"),
];
