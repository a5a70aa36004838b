//! What `line.lua` does, once more and in Rust: the line of those who wait for a resource.

use super::node::{Data, Store};

const KEPT_FOR_US: u64 = 100_000;
const LIVES_MS: u64 = 5000;
const FULL: usize = 12_000;

/// `qw1 UNTIL=CALLED TICKET TICKET …`
pub struct Line {
    key: Vec<u8>,
    existed: bool,
    changed: bool,
    until: u64,
    called: Vec<u8>,
    tickets: Vec<Vec<u8>>,
}

const NOBODY: &[u8] = b"-";

fn number(ticket: &[u8]) -> u64 {
    let digits = ticket.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

impl Line {
    /// `None` for a key that is not ours.
    pub fn at(key: &[u8], value: Option<&[u8]>) -> Option<Self> {
        let (mut until, mut called, mut tickets) = (0, NOBODY.to_vec(), Vec::new());
        if let Some(value) = value {
            let mut words = value.strip_prefix(b"qw1 ")?.split(|byte| *byte == b' ');
            let head = words.next()?;
            let equals = head.iter().position(|byte| *byte == b'=')?;
            let digits = std::str::from_utf8(&head[..equals]).ok()?;
            until = digits.parse().ok()?;
            called = head[equals + 1..].to_vec();
            tickets = words.map(<[u8]>::to_vec).collect();
        }
        Some(Self { key: key.to_vec(), existed: value.is_some(), changed: false, until, called, tickets })
    }

    /// How long, in ms, the resource is kept for somebody else than `me`.
    pub fn kept_from(&self, me: &[u8], now: u64) -> u64 {
        let left = self.until.saturating_sub(now);
        let is_kept = self.called != NOBODY && self.called != me && left > 0 && left <= KEPT_FOR_US;
        if is_kept { left.div_ceil(1000) } else { 0 }
    }

    pub fn enter(&mut self, me: &[u8]) {
        if self.tickets.iter().map(|ticket| ticket.len() + 1).sum::<usize>() > FULL {
            return;
        }
        self.changed = true;
        if !self.tickets.iter().any(|ticket| ticket == me) {
            let at = self.tickets.iter().position(|ticket| number(ticket) > number(me));
            self.tickets.insert(at.unwrap_or(self.tickets.len()), me.to_vec());
        }
    }

    pub fn leave(&mut self, me: &[u8]) {
        if self.called == me {
            (self.until, self.called, self.changed) = (0, NOBODY.to_vec(), true);
        }
        if let Some(at) = self.tickets.iter().position(|ticket| ticket == me) {
            self.tickets.remove(at);
            self.changed = true;
        }
    }

    /// `publish` says how many heard the number on the channel.
    pub fn call(&mut self, now: u64, publish: &mut dyn FnMut(&[u8], &[u8]) -> usize) {
        (self.until, self.called, self.changed) = (0, NOBODY.to_vec(), true);
        while self.called == NOBODY && !self.tickets.is_empty() {
            let ticket = self.tickets.remove(0);
            let colon = ticket.iter().position(|byte| *byte == b':').unwrap_or(ticket.len() - 1);
            let channel = [b"quorlock:call:", &ticket[colon + 1..]].concat();
            if publish(&channel, &ticket[..colon]) > 0 {
                (self.until, self.called) = (now + KEPT_FOR_US, ticket);
            }
        }
    }

    pub fn write(self, store: &mut Store, now: u64) {
        if !self.changed {
            return;
        }
        if self.tickets.is_empty() && self.called == NOBODY {
            if self.existed {
                store.remove(&self.key);
            }
            return;
        }
        // SET … NX: a key of another type is left alone.
        if !self.existed && store.data(&self.key, now).is_some() {
            return;
        }
        let head = [b"qw1 ", self.until.to_string().as_bytes(), b"=", &self.called].concat();
        let text = [vec![head], self.tickets].concat().join(&b' ');
        store.put(&self.key, Data::Text(text), Some(LIVES_MS), now);
    }
}
