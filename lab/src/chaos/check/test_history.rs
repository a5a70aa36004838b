//! Histories made by hand. The lease is 1 s, and there is one lock to a hold.

use std::ops::Range;

use super::Model;
use crate::chaos::fault::{Kind, Scale};
use crate::chaos::history::{Event, Leaving, Outcome, Refusal, Setting, Signal, What};
use crate::chaos::sight::{Key, NodeSight};

const LEASE: u64 = 1_000_000;

/// In µs.
pub fn ms(ms: u64) -> u64 {
    ms * 1000
}

pub struct TestHistory {
    events: Vec<Event>,
    nodes: usize,
}

impl TestHistory {
    /// Starts a history on this number of nodes.
    pub fn new(nodes: usize) -> Self {
        Self { events: Vec::new(), nodes }
    }

    pub fn model(&self) -> Model {
        Model::read(&self.events, &Setting { nodes: self.nodes, lease: LEASE, fencing: true, prefix: String::new() })
    }

    /// Adds a reading of these nodes, which showed these keys, when the wall clock showed the same as the other.
    pub fn sight(&mut self, at: u64, nodes: &[usize], key: &Key) {
        let sight = |node: &usize| NodeSight { node: *node, blind: false, keys: vec![key.clone()] };
        let nodes = nodes.iter().map(sight).collect();
        self.add(at, What::Sight { from: at, wall: at / 1000, nodes });
    }

    /// Adds a reading that this node did not answer.
    pub fn blind(&mut self, at: u64, node: usize) {
        let nodes = vec![NodeSight { node, blind: true, keys: Vec::new() }];
        self.add(at, What::Sight { from: at, wall: at / 1000, nodes });
    }

    fn add(&mut self, at: u64, what: What) {
        self.events.push(Event { at, what });
    }

    fn ask(&mut self, op: u64, worker: usize, name: &str, within: Option<u64>, at: u64) {
        let names = vec![name.to_owned()];
        let life = u64::try_from(worker).unwrap_or(0) + 1;
        self.add(at, What::Ask { op, worker, life, lease: LEASE, asked: LEASE, names, within, waits: true });
    }

    /// Adds a request of the first worker.
    pub fn asked(&mut self, op: u64, _owner: &str, name: &str, at: u64) {
        self.ask(op, 0, name, None, at);
    }

    pub fn asked_by(&mut self, op: u64, worker: usize, name: &str, at: u64) {
        self.ask(op, worker, name, None, at);
    }

    /// Adds the grant of a request.
    pub fn grant(&mut self, op: u64, owner: &str, token: u64, at: u64, holds: u32, remaining: u64) {
        let (owner, tokens) = (owner.to_owned(), vec![token]);
        self.add(at, What::Grant { op, owner, tokens, holds, margin: self.nodes / 2, from: at, remaining });
    }

    /// Adds a grant whose request began just before.
    #[expect(clippy::too_many_arguments, reason = "one line says all about a grant")]
    pub fn granted(&mut self, op: u64, owner: &str, name: &str, token: u64, at: u64, holds: u32, remaining: u64) {
        self.asked(op, owner, name, at - 1);
        self.grant(op, owner, token, at, holds, remaining);
    }

    /// Adds a hold that is granted and released, with a later end of validity.
    pub fn held(&mut self, op: u64, owner: &str, name: &str, token: u64, during: Range<u64>) {
        self.granted(op, owner, name, token, during.start, 1, LEASE);
        self.released(op, during.end, 0);
    }

    /// Adds a grant inside another hold.
    #[expect(clippy::too_many_arguments, reason = "one line says all about a grant")]
    pub fn nested(&mut self, op: u64, within: u64, owner: &str, name: &str, token: u64, at: u64, holds: u32) {
        self.ask(op, 0, name, Some(within), at - 1);
        self.grant(op, owner, token, at, holds, LEASE);
    }

    /// Adds a re-entry by the owner `a`, and how long it takes.
    pub fn entered_again(&mut self, op: u64, within: u64, name: &str, during: Range<u64>) {
        self.ask(op, 0, name, Some(within), during.start);
        self.grant(op, "a", 10, during.end, 2, LEASE);
    }

    /// Adds a re-entry that is refused.
    pub fn entry_refused(&mut self, op: u64, within: u64, name: &str, during: Range<u64>) {
        self.ask(op, 0, name, Some(within), during.start);
        self.refused(op, Refusal::Held, during.end);
    }

    pub fn refused(&mut self, op: u64, why: Refusal, at: u64) {
        self.add(at, What::Refuse { op, why, detail: None });
    }

    pub fn valid(&mut self, op: u64, at: u64, remaining: u64, token: u64) {
        self.shown(op, at, remaining, token, self.nodes / 2);
    }

    /// Adds a reading with this margin.
    pub fn shown(&mut self, op: u64, at: u64, remaining: u64, token: u64, margin: usize) {
        self.add(at, What::Valid { op, from: at, remaining, tokens: vec![token], holds: 1, margin });
    }

    /// Adds every signal of a loss.
    pub fn lost(&mut self, op: u64, at: u64, deadline: u64) {
        self.add(at, What::Lost { op, deadline });
        self.signal(op, Signal::IsLost, at);
        self.signal(op, Signal::Protect, at);
    }

    pub fn signal(&mut self, op: u64, signal: Signal, at: u64) {
        self.add(at, What::Signal { op, signal });
    }

    /// Moves a signal to a later time.
    pub fn delayed(&mut self, op: u64, signal: Signal, to: u64) {
        let is_it = |what: &What| *what == What::Signal { op, signal };
        self.events.iter_mut().filter(|event| is_it(&event.what)).for_each(|event| event.at = to);
    }

    pub fn dropped(&mut self, op: u64, at: u64) {
        self.add(at, What::Leave { op, how: Leaving::Drop });
    }

    pub fn seen(&mut self, op: u64, at: u64, answered: usize, held: usize) {
        self.seen_for(op, at, answered, held, 0);
    }

    pub fn seen_for(&mut self, op: u64, at: u64, answered: usize, held: usize, ttl: u64) {
        self.add(at, What::Seen { op, answered, held, ttl });
    }

    pub fn margin(&mut self, at: u64, margin: usize) {
        self.add(at, What::Margin { worker: 0, margin });
    }

    /// Adds a delay of all nodes.
    pub fn slowed(&mut self, id: usize, during: Range<u64>, amount: i64) {
        let all: Vec<usize> = (0..self.nodes).collect();
        self.trouble(id, Kind::Slow, &all, None, during, 0, amount);
    }

    pub fn counted(&mut self, node: usize, at: u64, total: u64) {
        self.add(at, What::Commands { node, from: at, total });
    }

    pub fn released(&mut self, op: u64, at: u64, holds: u32) {
        self.add(at, What::Leave { op, how: Leaving::Release });
        self.add(at + 1, What::Left { op, outcome: Outcome::Released, holds: Some(holds) });
    }

    /// Adds a release of an outermost hold that ends like this.
    pub fn left(&mut self, op: u64, at: u64, outcome: Outcome) {
        self.add(at, What::Leave { op, how: Leaving::Release });
        let holds = (outcome == Outcome::Released).then_some(0);
        self.add(at + 1, What::Left { op, outcome, holds });
    }

    pub fn wrote(&mut self, op: u64, at: u64, accepted: bool) {
        self.add(at, What::Write { op, from: at - 1, accepted });
    }

    pub fn fault(&mut self, id: usize, kind: Kind, nodes: &[usize], during: Range<u64>) {
        self.trouble(id, kind, nodes, None, during, 0, 0);
    }

    /// Adds a clock step by this number of ms, and back. Its effects last for a lease after that.
    pub fn stepped(&mut self, id: usize, nodes: &[usize], during: Range<u64>, amount: i64) {
        self.trouble(id, Kind::Step, nodes, None, during, LEASE, amount);
    }

    /// Adds a fault whose effects last for `tail` after its end.
    pub fn fault_with_tail(&mut self, id: usize, kind: Kind, nodes: &[usize], during: Range<u64>, tail: u64) {
        self.trouble(id, kind, nodes, None, during, tail, 0);
    }

    pub fn worker_fault(&mut self, id: usize, kind: Kind, worker: usize, during: Range<u64>) {
        self.trouble(id, kind, &[], Some(worker), during, 0, 0);
    }

    #[expect(clippy::too_many_arguments, reason = "one line says all about a fault")]
    fn trouble(
        &mut self,
        id: usize,
        kind: Kind,
        nodes: &[usize],
        worker: Option<usize>,
        during: Range<u64>,
        tail: u64,
        amount: i64,
    ) {
        let (nodes, scale, doubt) = (nodes.to_vec(), Scale::Minority, None);
        let forgets = kind.forgets();
        self.add(
            during.start,
            What::Fault { id, kind, scale, nodes, worker, amount, forgets, tail, from: during.start, doubt },
        );
        self.add(during.end, What::Heal { id, from: during.end, doubt: None });
    }

    /// Marks the last fault as one without an observed effect.
    pub fn doubted(&mut self) {
        if let Some(Event { what: What::Heal { doubt, .. }, .. }) = self.events.last_mut() {
            *doubt = Some("not seen".to_owned());
        }
    }

    /// Begins the first life of a worker.
    pub fn up(&mut self, worker: usize, at: u64) {
        let life = u64::try_from(worker).unwrap_or(0) + 1;
        self.add(at, What::Up { worker, life });
    }

    /// Ends the first life of a worker.
    pub fn killed(&mut self, worker: usize, at: u64) {
        let life = u64::try_from(worker).unwrap_or(0) + 1;
        self.add(at + 1, What::Down { worker, life, from: at });
    }

    pub fn stalled(&mut self, life: u64, during: Range<u64>) {
        self.add(during.end, What::Stall { life, from: during.start });
    }

    pub fn waited(&mut self, during: Range<u64>) {
        self.add(during.end, What::Wait { from: during.start });
    }

    pub fn scanned(&mut self, node: usize, keys: &[&str]) {
        self.add(0, What::Scan { node, keys: keys.iter().map(|key| (*key).to_owned()).collect() });
    }

    pub fn calm(&mut self, worker: usize, acquired: usize, of: usize) {
        self.add(0, What::Calm { worker, acquired, of });
    }
}
