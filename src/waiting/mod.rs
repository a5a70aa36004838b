//! How requests of one client wait: for their turn in this process, for a call of the nodes, for a majority that answers.

mod hearing;
mod local_queue;
mod reachability;
mod ticket;

pub(crate) use hearing::Hearing;
pub(crate) use local_queue::{Turn, Turns};
pub(crate) use reachability::Reachability;
pub(crate) use ticket::{Ticket, Tickets, channel};
