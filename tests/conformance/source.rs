//! Random commands, many of which fit what is there.

use crate::node::{Data, Script, Store};
use crate::pair::{NAMES, OWNERS, Pair, SESSIONS, WINDOW_US, ballot_key, lock_key, shown};
use crate::rng::Rng;

const LABEL: &str = "host:1:some_label";

/// Makes up commands; remembers tokens, so that many of them fit what is there.
pub struct Source {
    pub rng: Rng,
    pub ballot: u64,
    pub tokens: Vec<u64>,
}

impl Source {
    pub fn names(&mut self) -> Vec<&'static str> {
        let mut names: Vec<&str> = NAMES.into_iter().filter(|_| self.rng.chance(0.4)).collect();
        if names.is_empty() {
            names.push(self.rng.pick(&NAMES));
        }
        names
    }

    pub fn next(&mut self, now: u64) -> u64 {
        self.ballot += self.rng.between(0..3);
        match self.rng.between(0..20) {
            0 => now + WINDOW_US + 60_000_000,
            1 => now - WINDOW_US - 60_000_000,
            2 | 3 => self.ballot - self.rng.between(1..40),
            _ => self.ballot,
        }
    }

    pub fn token(&mut self) -> u64 {
        let recent = self.tokens.len().saturating_sub(4);
        if self.rng.chance(0.85) {
            self.tokens[recent + self.rng.below(self.tokens.len() - recent)]
        } else {
            self.rng.pick(&self.tokens.clone())
        }
    }

    pub fn known(&mut self, token: u64) -> u64 {
        match self.rng.between(0..4) {
            0 => token,
            1 => self.ballot - self.rng.between(0..20),
            _ => self.ballot,
        }
    }

    /// Of one of a few requests, so that some of them meet again.
    pub fn ticket(&mut self) -> String {
        if self.rng.chance(0.7) {
            return "0".to_owned();
        }
        format!("{}:{}", 1000 + self.rng.between(0..6), self.rng.pick(&SESSIONS))
    }

    /// What its holder would say of the lock that stands at this name: token, owner and label, session.
    fn standing(store: &mut Store, name: &str, now: u64) -> Option<(u64, String, String)> {
        let value = String::from_utf8(store.text(&lock_key(name), now)?.to_vec()).ok()?;
        let mut words = value.strip_prefix("ql1 ")?.split(' ');
        let (token, owner, label, entry) = (words.next()?, words.next()?, words.next()?, words.next()?);
        if label != LABEL {
            return None;
        }
        Some((token.parse().ok()?, format!("{owner} {label}"), entry.split_once(':')?.0.to_owned()))
    }

    fn highest(store: &mut Store, name: &str, now: u64) -> Option<u64> {
        std::str::from_utf8(store.text(&ballot_key(name), now)?).ok()?.split(' ').next()?.parse().ok()
    }

    pub fn command(&mut self, now: u64, store: &mut Store) -> (Script, Vec<String>) {
        let script = match self.rng.between(0..10) {
            0..6 => Script::Hold,
            6..9 => Script::Release,
            _ => Script::Inspect,
        };
        let names = if script == Script::Inspect { vec![self.rng.pick(&NAMES)] } else { self.names() };
        // Releases by those who hold are what frees, and would be rare among random ones.
        let holder = Self::standing(store, names[0], now).filter(|_| script == Script::Release && self.rng.chance(0.8));
        let names = if holder.is_some() { vec![names[0]] } else { names };
        let mut args = vec!["EVALSHA".to_owned(), script.hash().to_owned(), String::new()];
        for name in &names {
            args.extend([lock_key(name), ballot_key(name)].map(|key| String::from_utf8(key).expect("text")));
        }
        args[2] = (args.len() - 3).to_string();
        let next = self.next(now);
        let (owner, session) = (self.rng.pick(&OWNERS).to_owned(), self.rng.pick(&SESSIONS).to_owned());
        match script {
            Script::Hold => {
                let lease = self.rng.pick(&[10_u64, 30_000, 60_000, 60_000, 120_000]);
                args.push(format!("ql1 {next} {owner} {LABEL} {session}:1"));
                args.extend([lease, next, 3_600_000].map(|number| number.to_string()));
                args.push(self.ticket());
                let fresh = self.rng.chance(0.5);
                // As the usual case is asked.
                let is_plain = fresh && names.len() == 1 && self.rng.chance(0.7);
                for _ in names.iter().filter(|_| !is_plain) {
                    let token = if fresh || self.rng.chance(0.1) { 0 } else { self.token() };
                    let known = if token == 0 { 0 } else { self.known(token) };
                    let holds = if self.rng.chance(0.5) { 1 } else { self.rng.between(1..12) };
                    args.push(format!("{token} {known} {holds}"));
                }
                if next < now + WINDOW_US {
                    self.tokens.push(next);
                }
            }
            Script::Release => {
                let mut tokens: Vec<u64> =
                    names.iter().map(|_| if self.rng.chance(0.1) { 0 } else { self.token() }).collect();
                let (mut who, mut next) = ((format!("{owner} {LABEL}"), session), next);
                if let Some((token, owner, session)) = holder {
                    (tokens[0], who) = (token, (owner, session));
                    // Its last message was the last that was honoured here, as is usual.
                    if let Some(highest) = Self::highest(store, names[0], now).filter(|_| self.rng.chance(0.7)) {
                        next = highest;
                    }
                }
                args.push(format!("ql1 {} {} {}:1", tokens[0], who.0, who.1));
                args.extend([next, 3_600_000].map(|number| number.to_string()));
                for token in tokens {
                    let (known, ticket) = (self.known(token), self.ticket());
                    let keeps_place = u8::from(ticket != "0" && self.rng.chance(0.4));
                    args.push(format!("{token} {known} {ticket} {keeps_place}"));
                }
            }
            Script::Inspect => {}
        }
        (script, args)
    }

    /// Somebody else's data, or an end that comes by itself.
    pub fn intrusion(&mut self, pair: &mut Pair) -> String {
        let name = self.rng.pick(&NAMES);
        let key = match self.rng.between(0..10) {
            0..6 => lock_key(name),
            _ => ballot_key(name),
        };
        let what = format!("{} := ", String::from_utf8_lossy(&key));
        if self.rng.chance(0.5) {
            pair.remove(&key);
            return what + "nothing";
        }
        let token = self.token();
        let (owner, session) = (self.rng.pick(&OWNERS), self.rng.pick(&SESSIONS));
        // A ballot that is soon forgotten: who leaves it as it is does not renew it.
        if key == ballot_key(name) && self.rng.chance(0.3) {
            let ballot = self.ballot.to_string();
            pair.put(&key, &Data::Text(ballot.clone().into_bytes()), Some(60_000));
            return what + &ballot + ", for a minute";
        }
        let text = match self.rng.between(0..20) {
            0 => "somebody".to_owned(),
            1 => String::new(),
            2 => " 12 ".to_owned(),
            3 => "0x10".to_owned(),
            4 => "1e3".to_owned(),
            5 => self.ballot.to_string(),
            6 => format!("ql1 {token} {owner} label {session}:"),
            7 => format!("ql1 {token} {owner} label"),
            8 => format!("ql1 {token} {owner} label {session}:1 {session}:2"),
            9 => format!("ql1 {token} {owner} la\tbel {session}:1"),
            10 => format!("ql1 {token} {owner} label x{session}:7 {session}:3 other"),
            11 => format!("{} {} 0=- 1003:{session} 1005:{session}", self.ballot, pair.now()),
            12 => format!("0 {} {}=1001:{session}", pair.now(), pair.now() + 60_000),
            13 => format!("{} {} 0=- 1003:{session}", self.ballot, pair.now() - 10_000_000),
            14 => format!("{} 0=", self.ballot),
            15 => format!("{} {} 0=- {session}", self.ballot, pair.now()),
            16 => format!("{} {} 0=- 1003:{session} x", self.ballot, pair.now()),
            17 => "nan".to_owned(),
            18 => "1e400".to_owned(),
            _ => format!("ql1 {token} {owner} label {session}:4"),
        };
        let data = match self.rng.between(0..6) {
            0 => Data::Other("list"),
            1 => Data::Other("hash"),
            _ => Data::Text(text.into_bytes()),
        };
        let life = self.rng.pick(&[None, Some(60_000), Some(10)]);
        pair.put(&key, &data, life);
        format!("{what}{} for {life:?} ms", shown(Some(&data)))
    }
}
