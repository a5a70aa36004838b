//! What `mark.lua` does, once more and in Rust: the highest ballot of a resource, and the line of those who wait for it.

use super::node::{Data, Store};
use super::rules::lua_number;

const KEPT_FOR_US: u64 = 100_000;
const LIVES_US: u64 = 5_000_000;
const FULL: usize = 12_000;

/// `BALLOT`, or `BALLOT WRITTEN UNTIL=CALLED TICKET TICKET …`
#[derive(Clone, Debug)]
pub struct Mark {
    key: Vec<u8>,
    existed: bool,
    changed: bool,
    pub highest: f64,
    until: u64,
    called: Vec<u8>,
    tickets: Vec<Vec<u8>>,
}

const NOBODY: &[u8] = b"-";

fn number(ticket: &[u8]) -> u64 {
    let digits = ticket.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

fn is_ticket(text: &[u8]) -> bool {
    let Some(colon) = text.iter().position(|byte| *byte == b':') else { return false };
    let (number, channel) = (&text[..colon], &text[colon + 1..]);
    let are = |text: &[u8], kind: fn(&u8) -> bool| !text.is_empty() && text.iter().all(kind);
    are(number, u8::is_ascii_digit) && are(channel, u8::is_ascii_hexdigit)
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.iter().all(u8::is_ascii_digit) { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

impl Mark {
    /// `None` for a key that is not ours.
    pub fn at(key: &[u8], value: Option<&[u8]>, now: u64) -> Option<Self> {
        let (mut until, mut called, mut tickets) = (0, NOBODY.to_vec(), Vec::new());
        let finite = |value| lua_number(value).filter(|number| *number < f64::INFINITY);
        let highest = match (value, value.map(finite)) {
            (None, _) => 0.0,
            (_, Some(Some(highest))) => highest,
            (Some(value), _) => {
                let mut words = value.split(|byte| *byte == b' ');
                let highest = digits(words.next()?)?;
                let written = digits(words.next()?)?;
                let head = words.next()?;
                let equals = head.iter().position(|byte| *byte == b'=')?;
                until = digits(&head[..equals])?;
                called = head[equals + 1..].to_vec();
                tickets = words.map(<[u8]>::to_vec).collect();
                if called.is_empty() || !tickets.iter().all(|ticket| is_ticket(ticket)) {
                    return None;
                }
                if now.abs_diff(written) > LIVES_US {
                    (until, called, tickets) = (0, NOBODY.to_vec(), Vec::new());
                }
                highest as f64
            }
        };
        let (key, existed) = (key.to_vec(), value.is_some());
        Some(Self { key, existed, changed: false, highest, until, called, tickets })
    }

    pub fn raise(&mut self, ballot: f64) {
        (self.highest, self.changed) = (self.highest.max(ballot), true);
    }

    /// How long, in ms, the resource is kept for somebody else than `me`.
    pub fn kept_from(&self, me: &[u8], now: u64) -> u64 {
        let left = self.until.saturating_sub(now);
        let is_kept = self.called != NOBODY && self.called != me && left > 0 && left <= KEPT_FOR_US;
        if is_kept { left.div_ceil(1000) } else { 0 }
    }

    pub fn enter(&mut self, me: &[u8]) {
        let is_full = self.tickets.iter().map(|ticket| ticket.len() + 1).sum::<usize>() > FULL;
        if is_full {
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
        if self.called == NOBODY && self.tickets.is_empty() {
            return;
        }
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

    pub fn write(self, store: &mut Store, memory: u64, now: u64) {
        // SET … NX: a key of another type is left alone.
        if !self.changed || (!self.existed && store.data(&self.key, now).is_some()) {
            return;
        }
        let mut words = vec![format!("{:.0}", self.highest).into_bytes()];
        let is_empty = self.called == NOBODY && self.tickets.is_empty();
        if is_empty && words[0] == b"0" && self.existed {
            store.remove(&self.key);
            return;
        }
        if !is_empty {
            words.push(now.to_string().into_bytes());
            words.push([self.until.to_string().as_bytes(), b"=", &self.called].concat());
            words.extend(self.tickets);
        }
        store.put(&self.key, Data::Text(words.join(&b' ')), Some(memory), now);
    }
}
