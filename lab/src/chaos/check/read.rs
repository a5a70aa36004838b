//! Combines the events of a history into requests, holds and faults.

use std::collections::BTreeMap;

use super::model::{Answer, Ask, Hold, Reading, Seen, Sight, Trouble};
use crate::chaos::history::{Event, What};

#[derive(Default)]
pub struct Reader {
    pub asks: Vec<Ask>,
    by_op: BTreeMap<u64, usize>,
    pub holds: Vec<Hold>,
    pub held: BTreeMap<u64, usize>,
    pub troubles: Vec<Trouble>,
    pub deaths: Vec<(usize, u64, u64, u64)>,
    pub calms: Vec<(usize, usize, usize)>,
    pub scans: BTreeMap<usize, Vec<String>>,
    pub stalls: Vec<(u64, u64, u64)>,
    pub waits: Vec<(u64, u64)>,
    pub commands: Vec<(usize, u64, u64, u64)>,
    pub seen: Vec<Seen>,
    pub sights: Vec<Sight>,
    pub margins: Vec<(usize, u64, usize)>,
    /// The worker of each life.
    pub lives: BTreeMap<u64, usize>,
    /// When each life was ready.
    pub ups: BTreeMap<u64, u64>,
    pub begin: u64,
}

impl Reader {
    fn ask(&mut self, op: u64) -> Option<&mut Ask> {
        let index = *self.by_op.get(&op)?;
        self.asks.get_mut(index)
    }

    fn hold(&mut self, op: u64) -> Option<&mut Hold> {
        let index = *self.held.get(&op)?;
        self.holds.get_mut(index)
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each kind of event")]
    pub fn read(&mut self, event: &Event) {
        let at = event.at;
        match event.what.clone() {
            What::Up { worker, life } => {
                self.lives.insert(life, worker);
                self.ups.insert(life, at);
                if self.begin == 0 {
                    self.begin = at;
                }
            }
            What::Section { .. } | What::Line { .. } | What::Exit(_) => {}
            What::Start => self.begin = at,
            What::Sight { from, wall, nodes } => self.sights.push(Sight { from, at, wall, nodes }),
            What::Commands { node, from, total } => self.commands.push((node, from, at, total)),
            What::Seen { op, answered, held, ttl } => self.seen.push(Seen { op, at, answered, held, ttl }),
            What::Stall { life, from } => self.stalls.push((life, from, at)),
            What::Wait { from } => self.waits.push((from, at)),
            What::Down { worker, life, from } => self.deaths.push((worker, life, from, at)),
            What::Ask { op, worker, life, lease, asked, names, within, waits } => {
                self.by_op.insert(op, self.asks.len());
                let answer = Answer::None;
                self.asks.push(Ask { op, worker, life, lease, asked, names, within, waits, at, answer, detail: None });
            }
            What::Grant { op, owner, tokens, holds, margin, from, remaining } => {
                let Some(ask) = self.ask(op) else { return };
                ask.answer = Answer::Granted(at);
                let ask = ask.clone();
                self.held.insert(op, self.holds.len());
                let readings = vec![Reading { from, at, remaining, tokens: tokens.clone(), margin }];
                self.holds.push(Hold {
                    ask,
                    owner,
                    tokens,
                    depth: holds,
                    granted: at,
                    readings,
                    lost: None,
                    signals: BTreeMap::new(),
                    leave: None,
                    left: None,
                    write: None,
                    killed: None,
                });
            }
            What::Refuse { op, why, detail } => {
                if let Some(ask) = self.ask(op) {
                    ask.answer = Answer::Refused(why, at);
                    ask.detail = detail;
                }
            }
            What::Cancel { op } => {
                if let Some(ask) = self.ask(op) {
                    ask.answer = Answer::Cancelled(at);
                }
            }
            What::Valid { op, from, remaining, tokens, margin, .. } => {
                if let Some(hold) = self.hold(op) {
                    hold.readings.push(Reading { from, at, remaining, tokens, margin });
                }
            }
            What::Signal { op, signal } => {
                if let Some(hold) = self.hold(op) {
                    hold.signals.entry(signal).or_insert(at);
                }
            }
            What::Lost { op, deadline } => {
                if let Some(hold) = self.hold(op) {
                    hold.lost.get_or_insert((at, deadline));
                }
            }
            What::Leave { op, how } => {
                if let Some(hold) = self.hold(op) {
                    hold.leave = Some((at, how));
                }
            }
            What::Left { op, outcome, holds } => {
                if let Some(hold) = self.hold(op) {
                    hold.left = Some((at, outcome, holds));
                }
            }
            What::Write { op, from, accepted } => {
                if let Some(hold) = self.hold(op) {
                    hold.write = Some((from, at, accepted));
                }
            }
            What::Margin { worker, margin } => self.margins.push((worker, at, margin)),
            What::Calm { worker, acquired, of } => self.calms.push((worker, acquired, of)),
            What::Fault { id, kind, scale, nodes, worker, amount, forgets, tail, from, doubt } => {
                self.troubles.push(Trouble {
                    id,
                    kind,
                    scale,
                    nodes,
                    worker,
                    amount,
                    forgets,
                    from,
                    at,
                    healing: u64::MAX,
                    healed: u64::MAX,
                    tail,
                    doubt,
                });
            }
            What::Heal { id, from, doubt } => {
                if let Some(trouble) = self.troubles.iter_mut().find(|trouble| trouble.id == id) {
                    (trouble.healing, trouble.healed) = (from, at);
                    trouble.doubt = trouble.doubt.take().or(doubt);
                }
            }
            What::Scan { node, keys } => drop(self.scans.insert(node, keys)),
        }
    }
}
