//! Rules about clocks, one history each, which random commands exercise only by chance. The time of the client's clock is part of
//! a message, so only the node's clock is real.

use quorlock_testkit::Cluster;

use crate::pair::{CLIENTS, FIRST_RECORD, LIST, OWNERS, Pair, WINDOW_US, ballot_key, lock_key, masked, queue_key};
use quorlock_testkit::node::resp::Reply;
use quorlock_testkit::node::revocations::ABSENT;
use quorlock_testkit::node::rules::{AHEAD, EARLY, GONE, HELD, Rules, STALE, YOUNG};
use quorlock_testkit::node::script_args::RECORD;
use quorlock_testkit::node::{Data, Node, SCRIPTS, Script};

/// The longest lease in the record, in ms.
const LONGEST: u64 = 120_000;
const LEASE: u64 = 60_000;
const MINUTE: u64 = 60_000;
const DAY: u64 = 86_400_000;
/// The record in the messages of a client that has [`FIRST_RECORD`] without the state of the quarantine.
const ASKED: &str = "00000000000000af 120000";

const YES: i64 = 1;

/// A hold message.
#[derive(Clone)]
struct Message {
    /// The index in [`OWNERS`] and [`CLIENTS`].
    owner: usize,
    next: u64,
    /// The sender's wall clock, in ms.
    wall: u64,
    lease: u64,
    /// How much later the end is than clock plus lease, in ms, and whether the message contains that.
    raised: u64,
    says_raised: bool,
    /// The ends of leases that the sender has waited for.
    named: String,
    record: String,
}

impl Message {
    fn end(&self) -> u64 {
        self.wall + 1 + self.lease + self.raised
    }

    fn share(&self) -> String {
        format!("{}/1", CLIENTS[self.owner])
    }

    fn value(&self, token: u64) -> String {
        format!("ql1 {token:016} {} label {}:1", OWNERS[self.owner], self.share())
    }

    fn names(&self, end: u64, of: &str) -> Self {
        Self { named: format!(" {end:013}:{of}"), ..self.clone() }
    }
}

/// One resource of a message: to be acquired, or a lease with this token and `known`.
type Of = Option<(u64, u64)>;

/// One node: a real server, and the simulation's.
struct Scenario {
    pair: Pair,
    /// When it began, in ms and in µs.
    ms: u64,
    us: u64,
    _cluster: Cluster,
}

impl Scenario {
    fn start(record: &str) -> Self {
        let cluster = Cluster::start(1);
        let node = Node::new(Rules::default(), "0123456789abcdef".to_owned());
        let mut pair = Pair { real: cluster.redis(0), node, log: Vec::new(), calls: cluster.redis(0) };
        for code in SCRIPTS {
            pair.both(&[b"SCRIPT", b"LOAD", code.as_bytes()]);
        }
        pair.set_record(record);
        pair.remove(LIST);
        let us = pair.now();
        Self { pair, ms: us / 1000, us, _cluster: cluster }
    }

    /// Returns the message of this owner with the right clock.
    fn message(&mut self, owner: usize) -> Message {
        let now = self.pair.now();
        let (wall, record) = (now / 1000, FIRST_RECORD.to_owned());
        Message { owner, next: now, wall, lease: LEASE, raised: 0, says_raised: true, named: String::new(), record }
    }

    /// Sends a hold message. Returns the answer, which is the same from both nodes.
    fn hold(&mut self, message: &Message, of: &[(&str, Of)]) -> Vec<Reply> {
        let Message { next, lease, record, .. } = message;
        let keys = of.iter().flat_map(|(name, _)| [lock_key(name), ballot_key(name)]);
        let mut args: Vec<Vec<u8>> =
            vec![b"EVALSHA".to_vec(), Script::Hold.hash().into(), (2 * of.len()).to_string().into()];
        args.extend(keys);
        let token = if let Some((_, Some((token, _)))) = of.first() { token } else { next };
        args.push(format!("{next:016} {:013} {}", message.end(), message.value(*token)).into());
        args.push(lease.to_string().into());
        let raised =
            if message.raised > 0 && message.says_raised { format!(" +{}", message.raised) } else { String::new() };
        let waits = format!("0{}{raised}", message.named);
        let is_usual = matches!(of, [(_, None)]);
        if !is_usual || waits != "0" {
            args.push(waits.into());
        }
        for (_, lease) in of.iter().filter(|_| !is_usual) {
            let (token, known) = lease.map_or(("0".to_owned(), 0), |(token, known)| (format!("{token:016}"), known));
            args.push(format!("{token} {known:016} 1 {}", message.share()).into());
        }
        args.push(record.clone().into());
        self.run(Script::Hold, &args)
    }

    fn run(&mut self, script: Script, args: &[Vec<u8>]) -> Vec<Reply> {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let (real, mine, now) = self.pair.both(&args);
        assert_eq!(
            masked(script, &real, now).0,
            masked(script, &mine, now).0,
            "the server said {real:?}, the node {mine:?}"
        );
        self.pair.compare_keys().expect("the same keys");
        match real {
            Reply::Array(items) => items,
            other => vec![other],
        }
    }

    /// Sends a revocation of a lease that is not there.
    fn revoke(&mut self, name: &str, record: &str) -> Vec<Reply> {
        let now = self.pair.now();
        let revocation = format!("{:016} {now:016} {:013}", 7, now / 1000);
        let mut args = vec![b"EVALSHA".to_vec(), Script::Revoke.hash().into(), b"2".to_vec()];
        args.extend([lock_key(name), ballot_key(name), revocation.into_bytes(), record.as_bytes().to_vec()]);
        self.run(Script::Revoke, &args)
    }

    /// Removes the lock key, as a leap of the node's clock past the end of the lease or a deletion does.
    fn forget_lock(&mut self, name: &str) {
        self.pair.remove(&lock_key(name));
    }

    fn put(&mut self, key: &[u8], text: &str) {
        self.pair.put(key, &Data::Text(text.into()), Some(2 * DAY));
    }

    /// Returns LONGEST, END and WALL of the record.
    fn record(&mut self) -> [u64; 3] {
        let record: String = redis::cmd("GET").arg(RECORD).query(&mut self.pair.real).expect("the record");
        let words: Vec<&str> = record.split(' ').collect();
        [words[1], words[2], words[3]].map(|word| word.parse().expect("a number"))
    }
}

#[track_caller]
fn says(answer: &[Reply], code: i64) {
    assert_eq!(answer.first(), Some(&Reply::Int(code)), "{answer:?}");
}

/// Returns the end in an answer EARLY.
#[track_caller]
fn early(answer: &[Reply]) -> u64 {
    says(answer, EARLY);
    match answer[4] {
        Reply::Int(end) => end.cast_unsigned(),
        _ => panic!("{answer:?}"),
    }
}

fn token(token: u64) -> String {
    format!("{token:016}")
}

#[test]
fn a_wait_for_a_lease_extended_since_does_not_count() {
    let mut node = Scenario::start(FIRST_RECORD);
    let holder = node.message(0);
    says(&node.hold(&holder, &[("x", None)]), YES);
    node.forget_lock("x");
    let asker = Message { wall: holder.wall - MINUTE / 2, next: holder.next + 10, ..node.message(1) };
    let end = early(&node.hold(&asker, &[("x", None)]));
    assert_eq!(end, holder.end());
    // The holder's clock has not moved, or was set back: its extension has no later end.
    for back in [0, MINUTE / 4] {
        let extension = Message { next: holder.next + 1 + back, wall: holder.wall - back, ..holder.clone() };
        says(&node.hold(&extension, &[("x", Some((holder.next, holder.next + back)))]), YES);
    }
    node.forget_lock("x");
    let asker = Message { next: asker.next + MINUTE, ..asker };
    let waited = asker.names(end, &token(holder.next));
    let later = early(&node.hold(&waited, &[("x", None)]));
    assert!(later > end, "each message has raised it: {later}");
    says(&node.hold(&asker.names(later, &token(holder.next)), &[("x", None)]), YES);
}

#[test]
fn a_raised_end_still_shows_the_senders_clock() {
    let mut node = Scenario::start(FIRST_RECORD);
    let (left, holder) = (node.message(0), node.message(1));
    says(&node.hold(&left, &[("x", None)]), YES);
    says(&node.hold(&holder, &[("y", None)]), YES);
    node.forget_lock("x");
    // It continues y, with an end that is later than its clock makes it, and asks for x, whose last lease is not over.
    let both = [("x", None), ("y", Some((holder.next, holder.next)))];
    let asker = Message { next: holder.next + 10, raised: 2 * LEASE, ..holder.clone() };
    assert_eq!(early(&node.hold(&asker, &both)), left.end());
    // Without `raised` the end would count as a later clock.
    let silent = Message { says_raised: false, ..asker };
    says(&node.hold(&silent, &both), YES);
}

#[test]
fn a_client_a_day_off_waits_separately_for_each_node() {
    let mut node = Scenario::start(FIRST_RECORD);
    let mut other = Scenario::start(&FIRST_RECORD.replace("af", "bf"));
    for days in [-2_i64, 2] {
        let name = if days < 0 { "x" } else { "y" };
        let wall = |node: &Scenario| node.ms.saturating_add_signed(days * DAY.cast_signed());
        let asker = Message { wall: wall(&node), ..node.message(0) };
        let answer = node.hold(&asker, &[(name, None)]);
        let time = early(&answer);
        assert!(time.abs_diff(node.ms) < 10 * MINUTE && answer[5] == Reply::bulk("00000000000000af"), "{answer:?}");
        // Another node answers with its own record.
        let record = other.message(0).record.replace("af", "bf");
        let elsewhere = Message { record, next: other.pair.now(), ..asker.names(time, "00000000000000af") };
        early(&other.hold(&elsewhere, &[(name, None)]));
        // A time from before the leap of the node's clock does not count.
        early(&node.hold(&asker.names(time - LONGEST - 3 * MINUTE, "00000000000000af"), &[(name, None)]));
        early(&node.hold(&asker.names(time, &token(asker.next)), &[(name, None)]));
        let waited = asker.names(time, "00000000000000af");
        says(&node.hold(&waited, &[(name, None)]), YES);
    }
}

#[test]
fn a_slow_clock_does_not_end_a_quarantine_early_for_others() {
    let mut node = Scenario::start(FIRST_RECORD);
    node.pair.remove(RECORD);
    let newcomer_wall = node.ms - 60 * MINUTE;
    let words = ["", ASKED, "20", "0 0", &newcomer_wall.to_string(), "300000 - 0 0123456789abcdef", ""];
    let mut args = vec![b"EVALSHA".to_vec(), Script::Record.hash().into(), b"2".to_vec(), RECORD.into(), LIST.into()];
    args.extend(words.map(|word| word.as_bytes().to_vec()));
    node.run(Script::Record, &args);
    let [_, end, wall] = node.record();
    assert!(end > node.ms && wall >= end, "{end} {wall}");
    while node.pair.now() / 1000 <= end {
        std::thread::yield_now();
    }
    // The quarantine is over by the node's clock, which may have leapt, but not by a clock that is a minute behind.
    let asker = Message { record: ASKED.to_owned(), ..node.message(0) };
    let behind = Message { wall: end - MINUTE, ..asker.clone() };
    let answer = node.hold(&behind, &[("x", None)]);
    says(&answer, YOUNG);
    assert_eq!(answer[2], Reply::Int(MINUTE.cast_signed() + (wall - end).cast_signed()));
    says(&node.hold(&asker, &[("x", None)]), YES);
}

#[test]
fn a_queue_key_without_a_ballot_counts_as_none() {
    let mut node = Scenario::start(FIRST_RECORD);
    let tickets = [(1003, format!("1003:{}", CLIENTS[0]).into_bytes())];
    node.put(&ballot_key("x"), "0 | 0=-");
    node.pair.put(&queue_key("x"), &Data::Queue(tickets.into()), Some(5_000));
    let asker = node.message(0);
    let old = Message { next: node.us - WINDOW_US - 60_000_000, ..asker.clone() };
    says(&node.hold(&old, &[("x", None)]), STALE);
    says(&node.hold(&old, &[("x", Some((old.next, old.next)))]), GONE);
    let off = Message { wall: node.ms - 2 * DAY, ..asker.clone() };
    early(&node.hold(&off, &[("x", None)]));
    says(&node.hold(&asker, &[("x", None)]), YES);
}

#[test]
fn only_the_last_honoured_lease_extends_with_far_ahead_ballots() {
    let mut node = Scenario::start(FIRST_RECORD);
    // The node's clock was set back: ballots that it has honoured before are far ahead of it.
    let far = node.us + 2 * WINDOW_US;
    let (last, other) = (node.message(0), node.message(1));
    let next = |message: &Message, next: u64| Message { next, ..message.clone() };
    let ballot_value = format!("{far:016} {:013} {}", last.end(), last.value(7));

    node.put(&ballot_key("x"), &ballot_value);
    node.put(&lock_key("x"), &other.value(8));
    says(&node.hold(&next(&other, far + 1), &[("x", Some((8, far)))]), AHEAD);
    node.put(&ballot_key("y"), &format!("{far:016}"));
    says(&node.hold(&next(&last, far + 1), &[("y", Some((7, far)))]), AHEAD);
    node.put(&ballot_key("y"), &ballot_value);
    says(&node.hold(&next(&last, far + WINDOW_US + 1), &[("y", Some((7, far)))]), AHEAD);
    says(&node.hold(&next(&last, far + 1), &[("y", None)]), AHEAD);
    says(&node.hold(&next(&last, far + 1), &[("y", Some((7, far)))]), YES);
}

#[test]
fn a_quarantine_is_extended_by_granted_leases_only() {
    let mut node = Scenario::start(FIRST_RECORD);
    let end = node.ms + MINUTE;
    node.pair.set_record(&format!("00000000000000af {LONGEST} {end} {end} 300000 - 0 0123456789abcdef"));
    let asker = Message { lease: 5 * LONGEST, record: ASKED.to_owned(), ..node.message(0) };
    says(&node.hold(&asker, &[("x", None)]), YOUNG);
    assert_eq!(node.record(), [LONGEST, end, end], "it was refused");
    // A longer one was granted elsewhere.
    let longer = Message { record: format!("00000000000000af {}", LONGEST + MINUTE), ..asker.clone() };
    says(&node.hold(&longer, &[("x", None)]), YOUNG);
    assert_eq!(node.record(), [LONGEST + MINUTE, end + MINUTE, end + MINUTE]);
    // An extension is honoured, but does not count as a vote.
    node.put(&lock_key("x"), &asker.value(7));
    says(&node.hold(&Message { record: longer.record, ..asker }, &[("x", Some((7, 7)))]), YOUNG);
    assert_eq!(node.record()[0], 5 * LONGEST);
}

#[test]
fn a_repeated_acquisition_is_granted_unless_superseded() {
    let mut node = Scenario::start(FIRST_RECORD);
    let asker = node.message(0);
    let of = [("x", None), ("y", None)];
    says(&node.hold(&asker, &of), YES);
    says(&node.hold(&asker, &of), YES);
    says(&node.hold(&Message { owner: 1, ..asker.clone() }, &of), HELD);
    let extension = Message { next: asker.next + 1, ..asker.clone() };
    says(&node.hold(&extension, &[("x", Some((asker.next, asker.next)))]), YES);
    says(&node.hold(&asker, &of), STALE);
    says(&node.hold(&asker, &of[1..]), YES);
    node.pair.remove(&lock_key("y"));
    says(&node.hold(&asker, &of[1..]), EARLY);
}

#[test]
fn a_shorter_extension_never_shortens_the_lease() {
    let mut node = Scenario::start(FIRST_RECORD);
    let asker = node.message(0);
    says(&node.hold(&asker, &[("x", None)]), YES);
    let token = asker.next;
    let less =
        Message { next: token + 1, lease: asker.lease / 6, wall: asker.wall + 20 * asker.lease, ..asker.clone() };
    says(&node.hold(&less, &[("x", Some((token, token)))]), YES);
    let left: i64 = redis::cmd("PTTL").arg(lock_key("x")).query(&mut node.pair.real).expect("a life");
    assert!(left > asker.lease.cast_signed() / 2, "{left} ms are left of {} ms", asker.lease);
}

#[test]
fn a_ticket_that_leaves_is_not_called_and_the_last_ends_the_queue() {
    let mut node = Scenario::start(FIRST_RECORD);
    node.pair.listen();
    let [own, other] = [(1003, 0), (1004, 1)].map(|(number, client)| format!("{number}:{}", CLIENTS[client]));
    let enqueue = |node: &mut Scenario, tickets: &[&String]| {
        node.put(&ballot_key("x"), "1000 | 0=-");
        let tickets = tickets.iter().map(|ticket| (ticket[..4].parse().expect("a number"), ticket.as_bytes().to_vec()));
        node.pair.put(&queue_key("x"), &Data::Queue(tickets.collect()), Some(5_000));
    };
    let mut leave = vec![b"EVALSHA".to_vec(), Script::Release.hash().into(), b"2".to_vec()];
    leave.extend([lock_key("x"), ballot_key("x")]);
    leave.push(format!("{:016} {:013} ql1 0 0 0 0/0:1", 0, 0).into());
    leave.extend([format!("0 0 0 {own} 0").into(), b"600000".to_vec()]);
    let mark = |node: &mut Scenario| -> String {
        redis::cmd("GET").arg(ballot_key("x")).query(&mut node.pair.real).expect("a ballot")
    };

    // The resource is free: the next ticket is called, and not the one that leaves.
    enqueue(&mut node, &[&own, &other]);
    node.run(Script::Release, &leave);
    node.pair.compare_calls().expect("the same calls");
    assert!(mark(&mut node).ends_with(&format!("={other}")), "{}", mark(&mut node));
    // It is held: nothing is called, and nothing is left of the queue.
    node.put(&lock_key("x"), "held");
    enqueue(&mut node, &[&own]);
    node.run(Script::Release, &leave);
    assert_eq!(mark(&mut node), "1000");
}

#[test]
fn a_sender_that_knows_shorter_leases_gets_the_longest_and_its_wait_does_not_count() {
    let mut node = Scenario::start(FIRST_RECORD);
    // By the node's clock the quarantine is over, but not by the sender's.
    let (end, wall) = (node.ms - 5_000, node.ms + MINUTE);
    node.pair.set_record(&format!("00000000000000af {LONGEST} {end} {wall} 300000 - 0 0123456789abcdef"));
    let told = Reply::Array(vec![Reply::Int(LONGEST.cast_signed())]);
    let shorter = "00000000000000af 60000".to_owned();
    for record in [shorter.clone(), format!("{shorter} waited")] {
        let asker = Message { record: record.clone(), ..node.message(0) };
        for answer in [node.hold(&asker, &[("v", None)]), node.revoke("w", &record)] {
            says(&answer, YOUNG);
            assert_eq!(answer.last(), Some(&told), "{record}");
        }
    }
    let asker = Message { record: format!("{ASKED} waited"), ..node.message(0) };
    says(&node.revoke("w", &asker.record), ABSENT);
    says(&node.hold(&asker, &[("v", None)]), YES);
    let other = Message { owner: 1, record: shorter, ..node.message(1) };
    let answer = node.hold(&other, &[("v", None)]);
    says(&answer, HELD);
    assert_eq!(answer.last(), Some(&told), "every refusal tells it");
}
