//! The rules of the lock, as values.
//!
//! Everything here is a value or a function of values. Time comes in as a [`Moment`], a reply as what it says, and nothing in
//! this folder knows a socket, a task, a clock or a random source. So the rules can be read beside the protocol's description
//! in DESIGN.md, and tested by tables of cases.
#![deny(clippy::disallowed_methods)]

mod ballot;
mod diagnosis;
mod lease;
mod moment;
#[cfg(test)]
mod properties;
mod record;
mod retry;
mod revocation;
mod round;
mod share;
mod tally;
mod validity;
mod wall;

pub(crate) use ballot::{AcceptedBallots, Ballot, propose};
pub use ballot::{ParseTokenError, Token};
pub(crate) use diagnosis::{Diagnosis, FailedRound, MostNamed};
pub(crate) use lease::{Due, LeaseState, Phase};
pub use moment::Moment;
pub(crate) use record::{Change, LONGEST_LEASE, Newcomer, Process, Record};
pub use retry::Outage;
pub(crate) use retry::{ROUND_TRIP, RetryAdvice, RetryPolicy};
pub(crate) use revocation::{Revocation, RevocationReply};
pub(crate) use round::{Effect, Purpose, Reply, RoundState};
pub(crate) use share::Share;
pub(crate) use tally::{Tally, VoteResult, quorum};
pub(crate) use validity::{Schedule, Validity};
pub(crate) use wall::{Wall, difference};
