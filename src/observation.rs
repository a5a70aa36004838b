//! Who leads, as one that takes no part in the election sees it.

use std::time::{Duration, SystemTime};

use crate::client::Quorlock;
use crate::environment::Moment;
use crate::error::{ConfigError, Holder};
use crate::inspect::{Inspection, Verdict};
use crate::protocol::{Token, quorum};

const EVERY: Duration = Duration::from_secs(1);

/// Who leads, as a majority of the nodes says it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leadership {
    /// A majority has this leader.
    Led(Leader),
    /// There is no leader: no owner holds the lock, or its lease was [revoked](Quorlock::revoke).
    Vacant,
    /// It is not known: too few nodes answer, or no majority has the same leader.
    Unknown,
}

/// A leader, as a majority of the nodes has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// Its label for people, `host:pid` or `host:pid:name` ([`Builder::label`](crate::Builder::label) sets the name).
    pub label: String,
    /// The [fingerprint](crate::Owner::fingerprint) of its owner, which is another one for each term.
    pub owner: String,
    /// The number of the term, which grows from one term to the next.
    pub token: Token,
    /// When the term began, by the leader's clock. It comes from the token, which may be ahead of that clock.
    pub since: SystemTime,
    /// For how long a majority of the nodes keeps the lease if nothing renews it.
    pub left: Duration,
}

/// A look at who leads, again and again; [`changed`](Self::changed) waits for news. Start with [`Quorlock::observe`].
#[derive(Debug)]
pub struct Observation {
    locks: Quorlock,
    name: Vec<u8>,
    every: Duration,
    last: Option<Leadership>,
    next_look: Option<Moment>,
}

impl Quorlock {
    /// Observes who leads in the [election](Self::elect) of this name, or who holds the lock of this name.
    #[must_use]
    pub fn observe(&self, name: impl AsRef<[u8]>) -> Observation {
        Observation { locks: self.clone(), name: name.as_ref().to_vec(), every: EVERY, last: None, next_look: None }
    }
}

impl Observation {
    /// The time between two looks. Each asks every node once, and writes nothing.
    ///
    /// Defaults to one second. The least is a millisecond.
    #[must_use]
    pub fn every(mut self, time: Duration) -> Self {
        self.every = time.max(Duration::from_millis(1));
        self
    }

    /// Waits until another leader is seen than the one that was returned last, or none, or it is not known any more. Returns at once when
    /// it is first called. A term that is shorter than the time between two looks may go unseen.
    ///
    /// What it returns was so a moment ago: only the token, checked where a leader's work arrives, keeps an older leader out.
    ///
    /// ```
    /// use quorlock::Leadership;
    /// # async fn doc(locks: quorlock::Quorlock) -> Result<(), quorlock::ConfigError> {
    /// let mut leaders = locks.observe("scheduler");
    /// loop {
    ///     match leaders.changed().await? {
    ///         Leadership::Led(leader) => println!("{} leads, term {}", leader.label, leader.token),
    ///         Leadership::Vacant => println!("no candidate leads"),
    ///         _ => println!("it is not known who leads"),
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the name's key would lie where quorlock keeps other things.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned is returned by the next call.
    pub async fn changed(&mut self) -> Result<Leadership, ConfigError> {
        let core = self.locks.core();
        loop {
            if let Some(next_look) = self.next_look {
                core.sleep(next_look.since(core.now())).await;
            }
            let seen = Leadership::of(&self.locks.inspect(&self.name).await?);
            self.next_look = Some(core.now() + self.every);
            if self.last.as_ref().is_none_or(|last| last.term() != seen.term()) {
                self.last = Some(seen.clone());
                return Ok(seen);
            }
        }
    }
}

impl Leadership {
    fn of(seen: &Inspection) -> Self {
        match (seen.verdict, &seen.holder) {
            (Verdict::Held, Some(Holder::Owner { id, label, token })) => {
                let states = seen.nodes.iter().filter_map(|view| view.state.as_ref().ok());
                let of_leader = states.filter(|state| state.holder == seen.holder);
                let mut left: Vec<Duration> = of_leader.map(|state| state.ttl.unwrap_or(Duration::MAX)).collect();
                left.sort_unstable_by(|a, b| b.cmp(a));
                Self::Led(Leader {
                    label: label.clone(),
                    owner: id.to_string(),
                    token: *token,
                    since: SystemTime::UNIX_EPOCH + Duration::from_micros(token.get()),
                    left: left.get(quorum(seen.nodes.len()) - 1).copied().unwrap_or_default(),
                })
            }
            (Verdict::Held | Verdict::Free, _) => Self::Vacant,
            (Verdict::Split | Verdict::Unknown, _) => Self::Unknown,
        }
    }

    /// What is compared: the life of a lease changes at each look.
    fn term(&self) -> (bool, Option<(&str, Token)>) {
        match self {
            Self::Led(leader) => (true, Some((&leader.owner, leader.token))),
            Self::Vacant => (true, None),
            Self::Unknown => (false, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::NodeError;
    use crate::node::InspectReply;

    const SECOND: Duration = Duration::from_secs(1);

    fn token(number: i64) -> Token {
        Token::try_from(number).expect("a token")
    }

    /// What three nodes say: the token of the leader, `0` for none, `-1` for no answer, `-2` for a revoked lease.
    fn leadership(nodes: [i64; 3]) -> Leadership {
        let label = "host:1:name".to_owned();
        let reply = |(index, said): (u32, i64)| {
            let held = match said {
                -1 => return Err(NodeError::NoAnswer(Duration::ZERO)),
                0 => None,
                -2 => Some((Holder::Revoked { label: label.clone(), token: token(5) }, 1)),
                number => Some((Holder::Owner { id: "abc".into(), label: label.clone(), token: token(number) }, 1)),
            };
            Ok(InspectReply { held, raw: Vec::new(), ttl: Some(SECOND * (index + 1)), ballot: None, last: None })
        };
        let replies = (0..).zip(nodes).map(|node| (String::new(), reply(node))).collect();
        Leadership::of(&Inspection::new(b"name", replies))
    }

    #[test]
    fn a_leader_is_one_that_a_majority_has() {
        let leader = |left| {
            let (label, owner, token) = ("host:1:name".to_owned(), "abc".to_owned(), token(7));
            let since = SystemTime::UNIX_EPOCH + Duration::from_micros(7);
            Leadership::Led(Leader { label, owner, token, since, left })
        };
        for (nodes, expected) in [
            ([7, 7, 7], leader(2 * SECOND)),
            ([7, 7, -1], leader(SECOND)),
            ([8, 7, 7], leader(2 * SECOND)),
            ([0, 0, -1], Leadership::Vacant),
            ([-2, -2, 0], Leadership::Vacant),
            ([7, 8, 0], Leadership::Unknown),
            ([7, -1, -1], Leadership::Unknown),
            ([0, -1, -1], Leadership::Unknown),
        ] {
            assert_eq!(leadership(nodes), expected, "{nodes:?}");
        }
    }

    #[test]
    fn only_another_term_is_news() {
        let terms = [[7, 7, 7], [8, 8, 8], [0, 0, 0], [-1, -1, -1]].map(leadership);
        for (index, one) in terms.iter().enumerate() {
            for (other_index, other) in terms.iter().enumerate() {
                assert_eq!(one.term() == other.term(), index == other_index, "{one:?} {other:?}");
            }
        }
        assert_eq!(leadership([7, 7, 7]).term(), leadership([7, 7, 0]).term(), "what is left of a lease is no news");
    }
}
