//! `resource_state.lua`, reimplemented in Rust: the highest ballot of a resource, the last lease until it is released, and its wait
//! queue.

use super::script_args::lua_number;
use super::{Data, Store};

const RESERVED_US: u64 = 100_000;
const QUEUE_LIFE_MS: u64 = 5_000;
const RENEW_AFTER_MS: u64 = 1_000;
const MOST_TICKETS: usize = 10_000;
const MOST_POPPED: usize = 1_000;
pub const DAY_MS: u64 = 86_400_000;

/// `BALLOT` or `BALLOT END VALUE`, and ` | UNTIL=CALLED`; the tickets stand in a key of their own.
#[derive(Clone, Debug)]
pub struct ResourceState {
    key: Vec<u8>,
    queue: Vec<u8>,
    existed: bool,
    changed: bool,
    renewed: bool,
    pub highest: f64,
    /// The end of the last lease, and a copy of its lock value.
    pub last: Option<(f64, Vec<u8>)>,
    /// The ticket that the write removes.
    leaving: Option<Vec<u8>>,
    /// Tickets may wait, or one has been called.
    queued: bool,
    until: u64,
    called: Vec<u8>,
}

const NONE: &[u8] = b"-";

fn number(ticket: &[u8]) -> u64 {
    let digits = ticket.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// The number of a ticket, and its channel.
fn ticket(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let (number, channel) = (&text[..colon], &text[colon + 1..]);
    let are = |text: &[u8], kind: fn(&u8) -> bool| !text.is_empty() && text.iter().all(kind);
    (are(number, u8::is_ascii_digit) && are(channel, u8::is_ascii_hexdigit)).then_some((number, channel))
}

fn digits(text: &[u8]) -> Option<u64> {
    let are = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if are { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// Returns the two sides of the first ` | `.
fn parted(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.windows(3).position(|window| window == b" | ") {
        Some(bar) => (&text[..bar], Some(&text[bar + 3..])),
        None => (text, None),
    }
}

/// The three words of a lock value before its shares, and the shares with a space before each: `^ql1 (%d+) (%x+) (%S+)( %S.*)$`
pub fn lock_words(value: &[u8]) -> Option<([&[u8]; 3], &[u8])> {
    let rest = value.strip_prefix(b"ql1 ")?;
    let space = |text: &[u8]| text.iter().position(|byte| matches!(byte, b' ' | b'\t'..=b'\r'));
    let mut at = 0;
    let mut words = [&rest[..0]; 3];
    for (i, word) in words.iter_mut().enumerate() {
        let end = at + space(&rest[at..])?;
        *word = &rest[at..end];
        let kind: fn(&u8) -> bool = [u8::is_ascii_digit, u8::is_ascii_hexdigit, |_: &u8| true][i];
        if word.is_empty() || rest[end] != b' ' || !word.iter().all(kind) {
            return None;
        }
        at = end + 1;
    }
    let first = rest.get(at)?;
    (!matches!(first, b' ' | b'\t'..=b'\r')).then_some((words, &rest[at - 1..]))
}

impl ResourceState {
    /// Returns `None` for a foreign key.
    pub fn at(key: &[u8], value: Option<&[u8]>) -> Option<Self> {
        let mut state = Self {
            key: key.to_vec(),
            queue: [b"quorlock:queue:", key.get(16..).unwrap_or_default()].concat(),
            existed: value.is_some(),
            changed: false,
            renewed: false,
            highest: 0.0,
            last: None,
            leaving: None,
            queued: false,
            until: 0,
            called: NONE.to_vec(),
        };
        let Some(value) = value else { return Some(state) };
        if let Some(highest) = lua_number(value).filter(|number| *number < f64::INFINITY) {
            state.highest = highest;
            return Some(state);
        }
        let (head, queue) = parted(value);
        if let Some(queue) = queue {
            state.queued = true;
            let parts =
                queue.iter().position(|byte| *byte == b'=').map(|equals| (&queue[..equals], &queue[equals + 1..]));
            let is_solid =
                |text: &[u8]| !text.is_empty() && !text.iter().any(|byte| matches!(byte, b' ' | b'\t'..=b'\r'));
            if let Some((until, called)) = parts.filter(|(_, called)| is_solid(called))
                && let Some(until) = digits(until)
            {
                (state.until, state.called) = (until, called.to_vec());
            }
        }
        match digits(head) {
            Some(highest) => state.highest = highest as f64,
            None => {
                let mut words = head.splitn(3, |byte| *byte == b' ');
                state.highest = digits(words.next()?)? as f64;
                let end = digits(words.next()?)? as f64;
                let last = words.next()?;
                lock_words(last)?;
                state.last = Some((end, last.to_vec()));
            }
        }
        Some(state)
    }

    pub fn raise_ballot(&mut self, ballot: f64) {
        if ballot > self.highest {
            (self.highest, self.changed, self.renewed) = (ballot, true, true);
        }
    }

    pub fn set_last(&mut self, last: Option<(f64, Vec<u8>)>) {
        (self.last, self.changed, self.renewed) = (last, true, true);
    }

    /// Returns how long, in ms, the resource is reserved for another ticket than this one.
    pub fn reserved_from(&self, ticket: &[u8], now: u64) -> u64 {
        let left = self.until.saturating_sub(now);
        let is_reserved = self.called != NONE && self.called != ticket && left > 0 && left <= RESERVED_US;
        if is_reserved { left.div_ceil(1000) } else { 0 }
    }

    pub fn enqueue(&mut self, store: &mut Store, ticket: &[u8], now: u64) {
        match store.data_mut(&self.queue, now) {
            Some(Data::Queue(tickets)) if tickets.len() >= MOST_TICKETS => {}
            Some(Data::Queue(tickets)) if tickets.iter().any(|(_, queued)| queued == ticket) => {}
            Some(Data::Queue(tickets)) => _ = tickets.insert((number(ticket), ticket.to_vec())),
            Some(_) => return,
            None => store.put(&self.queue, Data::Queue([(number(ticket), ticket.to_vec())].into()), None, now),
        }
        if store.pttl(&self.queue, now) < (QUEUE_LIFE_MS - RENEW_AFTER_MS).cast_signed() {
            store.expire(&self.queue, QUEUE_LIFE_MS, now);
        }
        self.changed |= !self.queued;
        self.queued = true;
    }

    pub fn dequeue(&mut self, ticket: &[u8]) {
        if self.called == ticket {
            (self.until, self.called, self.changed) = (0, NONE.to_vec(), true);
        }
        if ticket != b"0" {
            self.leaving = Some(ticket.to_vec());
        }
    }

    /// Returns whether it was there.
    fn take_out(&mut self, store: &mut Store, now: u64) -> bool {
        let (Some(ticket), Some(Data::Queue(tickets))) = (&self.leaving, store.data_mut(&self.queue, now)) else {
            return false;
        };
        // A set has each member once, with any score.
        let before = tickets.len();
        tickets.retain(|(_, queued)| queued != ticket);
        let is_out = tickets.len() < before;
        store.remove_empty(&self.queue);
        is_out
    }

    /// `publish` returns how many connections received the number on the channel.
    pub fn call_next(&mut self, store: &mut Store, now: u64, publish: &mut dyn FnMut(&[u8], &[u8]) -> usize) {
        if !self.queued {
            return;
        }
        self.take_out(store, now);
        (self.until, self.called, self.changed) = (0, NONE.to_vec(), true);
        for _ in 0..MOST_POPPED {
            let Some(Data::Queue(tickets)) = store.data_mut(&self.queue, now) else { return };
            let first = tickets.pop_first();
            store.remove_empty(&self.queue);
            let Some((_, first)) = first else { return };
            let Some((number, channel)) = ticket(&first) else { continue };
            if publish(&[b"quorlock:call:", channel].concat(), number) > 0 {
                (self.until, self.called) = (now + RESERVED_US, first);
                return;
            }
        }
    }

    /// Limits the lifetime of the key to this number of ms from now.
    pub fn limit(&self, store: &mut Store, most: u64, now: u64) {
        let left = store.pttl(&self.key, now);
        if left > most.cast_signed() || left == -1 {
            store.expire(&self.key, most, now);
        }
    }

    pub fn write(mut self, store: &mut Store, memory: u64, longest: Option<u64>, now: u64) {
        if self.queued {
            self.changed |= self.take_out(store, now);
        }
        if !self.changed {
            return;
        }
        let life = match (&self.last, longest) {
            (None, _) => Some(memory),
            (Some(_), Some(longest)) => Some(longest.max(DAY_MS) + DAY_MS),
            (Some(_), None) => None,
        };
        let mut words = vec![format!("{:.0}", self.highest).into_bytes()];
        if let Some((end, value)) = &self.last {
            words.extend([format!("{end:.0}").into_bytes(), value.clone()]);
        }
        if self.called != NONE || (self.queued && store.data(&self.queue, now).is_some()) {
            words.push([b"| ", self.until.to_string().as_bytes(), b"=", &self.called].concat());
        }
        let text = words.join(&b' ');
        match life {
            _ if text == b"0" => {
                if self.existed {
                    store.remove(&self.key);
                }
            }
            // SET … NX: a key of another type is left alone.
            _ if !self.existed && store.data(&self.key, now).is_some() => {}
            Some(life) if self.renewed || !self.existed => store.set(&self.key, text, life, now),
            _ => store.keep(&self.key, text),
        }
    }
}
