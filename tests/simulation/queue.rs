//! The queue of events. Of two events at the same time, the one that was added first comes first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

pub enum Event {
    Request { conn: usize, bytes: Vec<u8> },
    Reply { conn: usize, bytes: Vec<u8> },
    Break { conn: usize },
    Resume { client: usize },
    Restart { node: usize },
    Wake { node: usize },
    Promote { node: usize, of: usize },
    LeapBack { node: usize },
}

struct Entry {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    /// Orders the earliest event as the greatest, as the heap requires.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

#[derive(Default)]
pub struct Queue {
    entries: BinaryHeap<Entry>,
    seq: u64,
}

impl Queue {
    /// `at` in µs.
    pub fn push(&mut self, at: u64, event: Event) {
        self.seq += 1;
        self.entries.push(Entry { at, seq: self.seq, event });
    }

    /// Removes and returns the next event that is due.
    pub fn pop(&mut self, now: u64) -> Option<Event> {
        (self.next()? <= now).then(|| self.entries.pop())?.map(|entry| entry.event)
    }

    /// Returns the time of the next event.
    pub fn next(&self) -> Option<u64> {
        self.entries.peek().map(|entry| entry.at)
    }
}
