//! What the nodes said in one reading.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::time::Instant;

use crate::exit::Failure;
use crate::list::output as list_output;
use crate::list::reading::{self as list_reading, Locks};
use crate::place::Place;
use crate::status::output as status_output;
use crate::status::reading::{self as status_reading, Status};

/// The order of the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Waiters,
    Held,
    Name,
}

impl Order {
    pub fn next(self) -> Self {
        match self {
            Self::Waiters => Self::Held,
            Self::Held => Self::Name,
            Self::Name => Self::Waiters,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Waiters => "most waiters first",
            Self::Held => "held longest first",
            Self::Name => "by name",
        }
    }
}

pub struct Picture {
    pub status: Status,
    pub locks: Locks,
    /// When the nodes were asked. A figure is never older than this.
    pub began: Instant,
}

impl Picture {
    /// Asks all nodes at once. It takes as long as the slowest node, or as the limit for an answer.
    pub async fn read(place: &Place) -> Result<Self, Failure> {
        let began = Instant::now();
        let (status, locks) = tokio::join!(status_reading::read(place), list_reading::read(place));
        let mut picture = Self { status: status?, locks: locks?, began };
        picture.sort(Order::Waiters);
        Ok(picture)
    }

    pub fn sort(&mut self, order: Order) {
        let locks = &mut self.locks.locks;
        locks.sort_by(|a, b| a.name.cmp(&b.name));
        match order {
            Order::Waiters => locks.sort_by_key(|lock| Reverse(lock.waiters)),
            Order::Held => locks.sort_by_key(|lock| lock.token().unwrap_or(u64::MAX)),
            Order::Name => {}
        }
    }

    /// Returns how many locks there are, in which order, and what is missing.
    pub fn heading(&self, order: Order, limit: usize) -> String {
        let (found, answered) = (self.locks.locks.len(), self.locks.answered());
        let count = match found {
            1 => "1 lock".to_owned(),
            _ if found > limit => format!("{limit} of {found} locks"),
            _ => format!("{found} locks"),
        };
        let mut heading = format!("{count}, {}", order.words());
        if answered < self.locks.nodes {
            let lack = if answered < self.locks.quorum() { ", too few to know all locks" } else { "" };
            // A String takes everything.
            let _ = write!(heading, "; {answered} of {} nodes have answered{lack}", self.locks.nodes);
        }
        heading
    }

    /// Returns the tables of `status` and `list`, one below the other, and an empty line.
    pub fn text(&mut self, limit: usize) -> String {
        let nodes = status_output::table(&self.status, true, false);
        let heading = self.heading(Order::Waiters, limit);
        self.locks.locks.truncate(limit);
        format!("{nodes}\n{heading}\n{}\n", list_output::table(&self.locks, true))
    }
}
