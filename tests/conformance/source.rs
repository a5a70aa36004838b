//! Random commands, many of which fit the present keys.

use quorlock_testkit::rng::Rng;

use crate::pair::{
    CLIENTS, FIRST_RECORD, LIST, NAMES, OWNERS, Pair, WINDOW_US, ballot_key, lock_key, queue_key, shown,
};
use quorlock_testkit::node::script_args::RECORD;
use quorlock_testkit::node::{Data, Script, Store};

const LABEL: &str = "host:1:some_label";

/// Generates commands. Stores tokens, so that many commands fit the present keys.
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

    /// Returns the number of one of a few requests, so that some of them repeat.
    pub fn ticket(&mut self) -> String {
        if self.rng.chance(0.7) {
            return "0".to_owned();
        }
        format!("{}:{}", 1000 + self.rng.between(0..6), self.rng.pick(&CLIENTS))
    }

    /// Returns the holder's view of the lock key of this name: token, owner and label, share.
    fn standing(store: &mut Store, name: &str, now: u64) -> Option<(u64, String, String)> {
        let value = String::from_utf8(store.text(&lock_key(name), now)?.to_vec()).ok()?;
        let mut words = value.strip_prefix("ql1 ")?.split(' ');
        let (token, owner, label, entry) = (words.next()?, words.next()?, words.next()?, words.next()?);
        if label != LABEL {
            return None;
        }
        Some((token.parse().ok()?, format!("{owner} {label}"), entry.split_once(':')?.0.to_owned()))
    }

    /// Returns the words of the ballot key: the ballot, and the end and the token of the last lease.
    fn ballot_value(store: &mut Store, name: &str, now: u64) -> Option<(u64, Option<(String, String)>)> {
        let text = String::from_utf8(store.text(&ballot_key(name), now)?.to_vec()).ok()?;
        let mut words = text.split(' ');
        let ballot = words.next()?.parse().ok()?;
        let last = words.next().zip(words.nth(1)).filter(|(end, _)| *end != "|");
        Some((ballot, last.map(|(end, token)| (end.to_owned(), token.to_owned()))))
    }

    fn share(&mut self) -> String {
        format!("{}/{:x}", self.rng.pick(&CLIENTS), self.rng.between(0..3))
    }

    /// Returns the record of the node in a client's message.
    fn said_of_record(&mut self, now: u64, store: &mut Store) -> String {
        let record = store.text(RECORD, now).map(|text| String::from_utf8_lossy(text).into_owned());
        let record = record.unwrap_or_else(|| FIRST_RECORD.to_owned());
        let word = record.split(' ').next().unwrap_or_default().to_owned();
        let longest = self.rng.pick(&[1_u64, 30_000, 120_000, 120_000, 180_000]);
        match self.rng.between(0..20) {
            0 => format!("00000000000000ee {longest}"),
            1 => "what".to_owned(),
            2..5 => format!("{word} {longest}"),
            5..8 => format!("{word} {longest} waited"),
            _ => record,
        }
    }

    /// Returns the wall clock of the client, in ms: usually right.
    fn wall(&mut self, now: u64) -> u64 {
        let wall = now / 1000;
        match self.rng.between(0..12) {
            0 => wall - 200_000_000,
            1 => wall + 200_000_000,
            2 | 3 => wall - self.rng.between(0..100_000),
            4 | 5 => wall + self.rng.between(0..100_000),
            _ => wall,
        }
    }

    pub fn command(&mut self, now: u64, store: &mut Store) -> (Script, Vec<String>) {
        let script = match self.rng.between(0..20) {
            0..12 => Script::Hold,
            12..18 => Script::Release,
            18 => Script::Record,
            _ if self.rng.chance(0.7) => Script::Revoke,
            _ => Script::Inspect,
        };
        let names =
            if matches!(script, Script::Inspect | Script::Revoke) { vec![self.rng.pick(&NAMES)] } else { self.names() };
        // Only releases by holders free a lock, and these would be rare among random ones.
        let holder = Self::standing(store, names[0], now).filter(|_| script == Script::Release && self.rng.chance(0.8));
        let names = if holder.is_some() { vec![names[0]] } else { names };
        let mut args = vec!["EVALSHA".to_owned(), script.hash().to_owned(), String::new()];
        if script == Script::Record {
            args.extend([RECORD, LIST].map(|key| String::from_utf8(key.to_vec()).expect("text")));
        } else {
            for name in &names {
                args.extend([lock_key(name), ballot_key(name)].map(|key| String::from_utf8(key).expect("text")));
            }
        }
        args[2] = (args.len() - 3).to_string();
        match script {
            Script::Hold => self.hold(&names, now, store, &mut args),
            Script::Release => self.release(&names, holder, now, store, &mut args),
            Script::Record => self.record(now, store, &mut args),
            Script::Inspect => {}
            Script::Revoke => self.revoke(names[0], now, store, &mut args),
        }
        (script, args)
    }

    fn revoke(&mut self, name: &str, now: u64, store: &mut Store, args: &mut Vec<String>) {
        let standing = Self::standing(store, name, now).map(|(token, ..)| token);
        let token = standing.filter(|_| self.rng.chance(0.7)).unwrap_or_else(|| self.token());
        args.push(format!("{token:016} {:016} {:013}", self.next(now), self.wall(now)));
        args.push(self.said_of_record(now, store));
    }

    fn hold(&mut self, names: &[&str], now: u64, store: &mut Store, args: &mut Vec<String>) {
        let (next, owner) = (self.next(now), self.rng.pick(&OWNERS));
        let lease = self.rng.pick(&[10_u64, 30_000, 60_000, 60_000, 120_000, 240_000]);
        if self.rng.chance(0.2) && self.extension(names, lease, now, store, args) {
            return;
        }
        let end = self.wall(now) + 1 + lease;
        args.push(format!("{next:016} {end:013} ql1 {next:016} {owner} {LABEL} {}:1", self.share()));
        args.push(lease.to_string());
        let mut waits = self.ticket();
        if self.rng.chance(0.3) {
            let last = Self::ballot_value(store, names[0], now).and_then(|(_, last)| last);
            let word = self.rng.pick(&["00000000000000af", "00000000000000bf"]);
            let time = now / 1000 - self.rng.pick(&[0, 100_000, 1_000_000]);
            let (end, token) = last.unwrap_or_else(|| (time.to_string(), word.to_owned()));
            waits += &format!(" 17:4 {end}:{token}");
        }
        if self.rng.chance(0.1) {
            waits += " +70000";
        }
        let fresh = self.rng.chance(0.5);
        // The arguments of the usual case.
        let is_plain = fresh && names.len() == 1 && self.rng.chance(0.7);
        if !is_plain || waits != "0" {
            args.push(waits);
        }
        for _ in names.iter().filter(|_| !is_plain) {
            let token = if fresh || self.rng.chance(0.1) { 0 } else { self.token() };
            let known = if token == 0 || self.rng.chance(0.1) { 0 } else { self.known(token) };
            let holds = if self.rng.chance(0.5) { 1 } else { self.rng.between(1..12) };
            let token = if token == 0 { "0".to_owned() } else { format!("{token:016}") };
            // What joins names the share that was exported to it.
            let joins = token != "0" && self.rng.chance(0.2);
            let known = if joins { self.share() } else { format!("{known:016}") };
            args.push(format!("{token} {known} {holds} {}", self.share()));
        }
        args.push(self.said_of_record(now, store));
        if next < now + WINDOW_US {
            self.tokens.push(next);
        }
    }

    /// Extends the lock of the first of these names as its holder does, if it is held.
    fn extension(&mut self, names: &[&str], lease: u64, now: u64, store: &mut Store, args: &mut Vec<String>) -> bool {
        let Some(value) = store.text(&lock_key(names[0]), now) else { return false };
        let value = String::from_utf8_lossy(value).into_owned();
        let Some((ballot, Some((end, _)))) = Self::ballot_value(store, names[0], now) else { return false };
        let words: Vec<&str> = value.split(' ').collect();
        let (&["ql1", token, _, _, entry], Ok(end)) = (words.as_slice(), end.parse::<u64>()) else { return false };
        let Some((share, holds)) = entry.split_once(':') else { return false };
        if holds.parse::<u32>().is_err() || token.len() != 16 || value.contains('\t') {
            return false;
        }
        if names.len() == 1 && self.rng.chance(0.3) {
            // The message that was granted here, once more.
            args.extend([format!("{ballot:016} {end:013} {value}"), lease.to_string()]);
            args.push(self.said_of_record(now, store));
            return true;
        }
        let next = ballot + self.rng.between(0..4);
        let end = end + self.rng.between(0..4);
        args.push(format!("{next:016} {end:013} {value}"));
        args.extend([lease.to_string(), "0".to_owned()]);
        let holds = if self.rng.chance(0.8) { holds } else { "2" };
        args.extend(names.iter().map(|_| format!("{token} {ballot:016} {holds} {share}")));
        args.push(self.said_of_record(now, store));
        true
    }

    fn release(
        &mut self,
        names: &[&str],
        holder: Option<(u64, String, String)>,
        now: u64,
        store: &mut Store,
        args: &mut Vec<String>,
    ) {
        let mut sent = self.next(now);
        let (mut who, mut share) = (format!("{} {LABEL}", self.rng.pick(&OWNERS)), self.share());
        let mut tokens: Vec<u64> = names.iter().map(|_| if self.rng.chance(0.1) { 0 } else { self.token() }).collect();
        let mut end = now / 1000;
        let is_usual = holder.is_some() && self.rng.chance(0.5);
        if let Some(holder) = holder {
            (tokens[0], who, share) = holder;
            // Its last message was the last that was honoured here, as is usual.
            if let Some((ballot, last)) = Self::ballot_value(store, names[0], now).filter(|_| self.rng.chance(0.7)) {
                sent = ballot;
                end = last.and_then(|(end, _)| end.parse().ok()).unwrap_or(end);
            }
        }
        args.push(format!("{sent:016} {end:013} ql1 {:016} {who} {share}:1", tokens[0]));
        if is_usual && self.rng.chance(0.3) {
            args.push(self.ticket());
        }
        for token in tokens.iter().filter(|_| !is_usual) {
            let (known, ticket) = (self.known(*token), self.ticket());
            let keeps_place = u8::from(ticket != "0" && self.rng.chance(0.4));
            let share = if self.rng.chance(0.8) { share.clone() } else { self.share() };
            let token = if *token == 0 { "0".to_owned() } else { format!("{token:016}") };
            args.push(format!("{token} {known} {share} {ticket} {keeps_place}"));
        }
        args.push("600000".to_owned());
    }

    fn record(&mut self, now: u64, store: &mut Store, args: &mut Vec<String>) {
        let seen = store.text(RECORD, now).map(|text| String::from_utf8_lossy(text).into_owned());
        let seen = if self.rng.chance(0.8) { seen.unwrap_or_default() } else { "something else".to_owned() };
        let seen = if self.rng.chance(0.1) { String::new() } else { seen };
        let word = self.rng.pick(&["00000000000000af", "00000000000000bf"]);
        let begins = self.rng.chance(0.4);
        let (wait, ends, wall) = if begins {
            (self.rng.pick(&["20", "60000"]), "0 0", now / 1000 + self.rng.pick(&[20, 60_000]))
        } else {
            ("", "0 0", 0)
        };
        let nodes = self.rng.pick(&["", "3", "5"]);
        let cluster = self.rng.pick(&["-", "00000000000000c1"]);
        args.extend([seen.as_str(), &format!("{word} 120000"), wait, ends, &wall.to_string()].map(str::to_owned));
        args.extend([format!("300000 {cluster} 0 0123456789abcdef"), nodes.to_owned()]);
    }

    /// Returns tickets, and members that are no tickets.
    fn queue(&mut self) -> Data {
        let members = (0..self.rng.between(1..4)).map(|_| match self.rng.between(0..8) {
            0 => {
                let score = self.rng.between(0..2000);
                (score, format!("no ticket {score}").into_bytes())
            }
            number => {
                let ticket = format!("{}:{}", 1000 + number, self.rng.pick(&CLIENTS));
                (1000 + number, ticket.into_bytes())
            }
        });
        Data::Queue(members.collect())
    }

    /// Writes data of another client, or ends a key.
    pub fn intrusion(&mut self, pair: &mut Pair) -> String {
        let name = self.rng.pick(&NAMES);
        let key = match self.rng.between(0..10) {
            0..6 => lock_key(name),
            6..9 => ballot_key(name),
            _ => queue_key(name),
        };
        let what = format!("{} := ", String::from_utf8_lossy(&key));
        if self.rng.chance(0.5) {
            pair.remove(&key);
            return what + "nothing";
        }
        let token = self.token();
        let (owner, client) = (self.rng.pick(&OWNERS), self.rng.pick(&CLIENTS));
        // A ballot that expires soon: a command that leaves it unchanged does not renew it.
        if key == ballot_key(name) && self.rng.chance(0.3) {
            let ballot = self.ballot.to_string();
            pair.put(&key, &Data::Text(ballot.clone().into_bytes()), Some(60_000));
            return what + &ballot + ", for a minute";
        }
        let text = match self.rng.between(0..26) {
            0 => "owner".to_owned(),
            1 => String::new(),
            2 => " 12 ".to_owned(),
            3 => "0x10".to_owned(),
            4 => "1e3".to_owned(),
            5 => self.ballot.to_string(),
            6 => format!("ql1 {token} {owner} label {client}/1:"),
            7 => format!("ql1 {token} {owner} label"),
            8 => format!("ql1 {token} {owner} label {client}/1:1 {client}/2:2"),
            9 => format!("ql1 {token} {owner} la\tbel {client}/1:1"),
            10 => format!("ql1 {token} {owner} label x{client}/1:7 {client}/2:3 other"),
            11 | 13 => format!("{} | 0=-", self.ballot),
            12 => format!("0 | {}=1001:{client}", pair.now() + 60_000),
            14 => format!("{} | 0=", self.ballot),
            15 => format!("{} | 0=- {client}", self.ballot),
            16 => format!("{} | {} 0=-", self.ballot, pair.now()),
            19 => format!("{} {} ql1 {token} {owner} label {client}/1:1", self.ballot, pair.now() / 1000 + 20_000),
            20 => format!("{} x ql1 {token} {owner} label {client}/1:1", self.ballot),
            21 => {
                let head = format!("{} {} ql1 {token} {owner} label", self.ballot, pair.now() / 1000);
                format!("{head} {client}/1:1 {client}/2:1 | 0=-")
            }
            22..25 => (pair.now() + 2 * WINDOW_US).to_string(),
            17 => "nan".to_owned(),
            18 => "1e400".to_owned(),
            _ => format!("ql1 {token} {owner} label {client}/1:4"),
        };
        let data = match self.rng.between(0..6) {
            1.. if key == queue_key(name) => self.queue(),
            0 => Data::Other("list"),
            1 => Data::Other("hash"),
            _ => Data::Text(text.into_bytes()),
        };
        let life = self.rng.pick(&[None, Some(60_000), Some(10)]);
        pair.put(&key, &data, life);
        format!("{what}{} for {life:?} ms", shown(Some(&data)))
    }
}
