//! What owners and the network may do, in any order.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use stateright::Model;

use crate::node::{Answer, Ballot, Node, Rules};
use crate::state::{EXTENSIONS, Extension, LEASES, Lease, LeaseId, NODES, OWNERS, State};

/// How much one owner may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// At most [`LEASES`].
    pub acquisitions: usize,
    /// For all its leases together; at most [`EXTENSIONS`] for each.
    pub extensions: usize,
}

pub struct Ballots {
    pub rules: Rules,
    pub scopes: [Scope; OWNERS],
    /// States that differ only in the order of the nodes, or of owners with the same scope, are one.
    pub symmetry: bool,
    /// How many states' successors were asked for.
    pub expanded: AtomicUsize,
    pub found: [AtomicBool; 32],
}

/// Which number a proposal is. All that matters is where it lies among the others, and every place can be had: clocks may
/// show anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    EqualTo(Ballot),
    JustAbove(Ballot),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Acquire,
    Extend(usize),
    Release,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Acquire { owner: usize, ballot: Pick },
    Extend { owner: usize, known: Ballot, ballot: Pick },
    Release { owner: usize, mark: Ballot },
    Expire { node: usize },
    Arrive { message: Message, of: LeaseId, node: usize },
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |owner: usize| ["A", "B"][owner];
        match self {
            Self::Acquire { owner, ballot } => write!(f, "{} acquires with {ballot:?}", name(*owner)),
            Self::Extend { owner, known, ballot } => {
                write!(f, "{} extends, knowing {known:?}, with {ballot:?}", name(*owner))
            }
            Self::Release { owner, mark } => write!(f, "{} releases with {mark:?}", name(*owner)),
            Self::Expire { node } => write!(f, "expiry at node {node}"),
            Self::Arrive { message, of, node } => {
                let message = match message {
                    Message::Acquire => "acquisition".to_owned(),
                    Message::Extend(index) => format!("extension {}", index + 1),
                    Message::Release => "release".to_owned(),
                };
                write!(f, "{message} of {}'s lease {} at node {node}", name(of.owner()), of.index() + 1)
            }
        }
    }
}

impl Ballots {
    pub fn new(rules: Rules, scopes: [Scope; OWNERS], symmetry: bool) -> Self {
        for scope in scopes {
            assert!(scope.acquisitions <= LEASES && scope.extensions <= scope.acquisitions * EXTENSIONS, "no room");
        }
        Self { rules, scopes, symmetry, expanded: AtomicUsize::new(0), found: Default::default() }
    }

    /// True only the first time: the checker keeps the last discovery, and the first is the shortest.
    pub fn first(&self, property: usize, is_there: impl FnOnce() -> bool) -> bool {
        !self.found[property].load(Ordering::Relaxed)
            && is_there()
            && !self.found[property].swap(true, Ordering::Relaxed)
    }

    /// What the node answers to this message, and how that leaves it.
    pub fn answer(&self, lease: &Lease, of: LeaseId, message: Message, node: &Node) -> (Answer, Node) {
        let mut after = *node;
        let answer = match message {
            Message::Acquire => {
                let answer = after.hold(self.rules, of, None, lease.token, lease.token);
                if answer == Answer::Granted && !lease.completed && !lease.is_released() {
                    after.granted |= of.bit();
                }
                answer
            }
            Message::Extend(index) => {
                let Extension { known, next, confirmed, .. } = lease.extensions[index];
                let answer = after.hold(self.rules, of, Some(lease.token), known, next);
                if answer == Answer::Granted && !confirmed && !lease.is_released() {
                    after.honoured |= of.extension_bit(index);
                }
                answer
            }
            Message::Release => {
                after.release(self.rules, of, lease.token, lease.mark);
                after.released |= of.bit();
                Answer::Granted
            }
        };
        (answer, after)
    }

    /// Counts the votes of a lease, and forgets whose they were once that cannot matter any more.
    fn count(&self, state: &mut State, of: LeaseId) {
        let (to_acquire, to_extend) = match self.rules {
            Rules::QuorumTooSmall => (1, 1),
            Rules::ConfirmBelowQuorum => (NODES / 2 + 1, 1),
            _ => (NODES / 2 + 1, NODES / 2 + 1),
        };
        let [a, b, c] = state.nodes;
        let lease = state.lease_mut(of);
        let wanted = !lease.is_released();

        let votes = |bit: u8| [a, b, c].iter().filter(|node| node.granted & bit != 0).count();
        lease.completed |= wanted && votes(of.bit()) >= to_acquire;
        let granted = if lease.completed || !wanted { of.bit() } else { 0 };

        let mut honoured = 0;
        let mut credited = 0;
        for index in 0..lease.extensions().len() {
            let extension = &mut lease.extensions[index];
            let bit = of.extension_bit(index);
            credited = if self.rules == Rules::CreditAnotherRound { credited | bit } else { bit };
            let votes = [a, b, c].iter().filter(|node| node.honoured & credited != 0).count();
            extension.confirmed |= wanted && votes >= to_extend;
            if !wanted || extension.confirmed && self.rules != Rules::CreditAnotherRound {
                honoured |= bit;
            }
        }
        for node in &mut state.nodes {
            node.granted &= !granted;
            node.honoured &= !honoured;
        }
    }

    /// A client's ballots are larger than its earlier ones: every place above the last.
    fn picks(state: &State, last: Ballot) -> impl Iterator<Item = Pick> {
        let others = (last.0..=state.largest_proposal().0).map(Ballot);
        others.flat_map(move |other| {
            let equal = (other > last).then_some(Pick::EqualTo(other));
            [equal, Some(Pick::JustAbove(other))].into_iter().flatten()
        })
    }

    fn owner_actions(&self, state: &State, owner: usize, actions: &mut Vec<Action>) {
        let scope = self.scopes[owner];
        let leases = &state.leases[owner * LEASES..][..state.begun(owner)];
        let last = leases.last().map_or(Ballot::ZERO, Lease::sent);
        let latest = leases.last();

        if let Some(lease) = latest
            && lease.completed
            && !lease.is_released()
            && lease.extensions().len() < EXTENSIONS
            && leases.iter().map(|lease| lease.extensions().len()).sum::<usize>() < scope.extensions
        {
            // Some of the answers so far may have been lost.
            let confirmed = lease.extensions().iter().filter(|extension| extension.confirmed).map(|of| of.next);
            for known in confirmed.filter(|known| *known > lease.known).chain([lease.known]) {
                actions.extend(Self::picks(state, last).map(|ballot| Action::Extend { owner, known, ballot }));
            }
        }
        if let Some(lease) = latest.filter(|lease| !lease.is_released()) {
            // What release.lua is sent: the largest ballot that was sent for the lease.
            let mark = if self.rules == Rules::ReleaseWithKnown { lease.known } else { last };
            actions.push(Action::Release { owner, mark });
        } else if leases.len() < scope.acquisitions {
            match self.rules {
                Rules::AcquireWithAnyUnusedBallot => {
                    let used = |pick: &Pick| {
                        leases.iter().any(|lease| matches!(*pick, Pick::EqualTo(ballot) if lease.has_sent(ballot)))
                    };
                    actions.extend(
                        Self::picks(state, Ballot::ZERO)
                            .filter(|pick| !used(pick))
                            .map(|ballot| Action::Acquire { owner, ballot }),
                    );
                }
                Rules::ReuseABallot if latest.is_some() => {
                    actions.push(Action::Acquire { owner, ballot: Pick::EqualTo(last) });
                }
                _ => actions.extend(Self::picks(state, last).map(|ballot| Action::Acquire { owner, ballot })),
            }
        }
    }

    fn arrivals(&self, state: &State, node: usize, actions: &mut Vec<Action>) {
        let before = &state.nodes[node];
        for of in LeaseId::ALL {
            let lease = state.lease(of);
            if !lease.is_begun() {
                continue;
            }
            let mut arrive = |message| {
                let (answer, after) = self.answer(lease, of, message, before);
                if answer == Answer::Granted && after != *before {
                    actions.push(Action::Arrive { message, of, node });
                }
            };
            arrive(Message::Acquire);
            for index in 0..lease.extensions().len() {
                arrive(Message::Extend(index));
            }
            if lease.is_released() {
                arrive(Message::Release);
            }
        }
    }
}

/// Makes room for the ballot, and gives its number there.
fn make_room(state: &mut State, pick: Pick) -> Ballot {
    state.spread_ballots();
    match pick {
        Pick::EqualTo(Ballot(number)) => Ballot(number * 2),
        Pick::JustAbove(Ballot(number)) => Ballot(number * 2 + 1),
    }
}

impl Model for Ballots {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    /// What a message that is refused, or that changes nothing, leads to is the same state: it is left out.
    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.expanded.fetch_add(1, Ordering::Relaxed);
        for owner in 0..OWNERS {
            self.owner_actions(state, owner, actions);
        }
        for node in 0..NODES {
            if self.symmetry && node > 0 && state.nodes[node] == state.nodes[node - 1] {
                continue;
            }
            if state.nodes[node].vote.is_some() {
                actions.push(Action::Expire { node });
            }
            self.arrivals(state, node, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        match action {
            Action::Acquire { owner, ballot } => {
                let token = make_room(&mut next, ballot);
                let behind = next.tokens_completed().any(|completed| completed >= token);
                let id = LeaseId::new(owner, next.begun(owner));
                *next.lease_mut(id) = Lease { token, known: token, behind, ..Lease::default() };
                next.close_up_ballots();
            }
            Action::Extend { owner, known, ballot } => {
                let id = LeaseId::new(owner, next.begun(owner) - 1);
                next.lease_mut(id).known = known;
                let ballot = make_room(&mut next, ballot);
                let token = next.lease(id).token;
                let late = next.tokens_completed().any(|completed| completed > token);
                let lease = next.lease_mut(id);
                let index = lease.extensions().len();
                lease.extensions[index] = Extension { known: lease.known, next: ballot, confirmed: false, late };
                next.close_up_ballots();
            }
            Action::Release { owner, mark } => {
                let id = LeaseId::new(owner, next.begun(owner) - 1);
                next.lease_mut(id).mark = mark;
                self.count(&mut next, id);
            }
            Action::Expire { node } => next.nodes[node].vote = None,
            Action::Arrive { message, of, node } => {
                let before = &state.nodes[node];
                let (_, after) = self.answer(state.lease(of), of, message, before);
                next.foreign_release |=
                    message == Message::Release && after.vote != before.vote && before.vote.is_some_and(|v| v.by != of);
                next.nodes[node] = after;
                self.count(&mut next, of);
            }
        }
        if self.symmetry {
            if self.scopes[0] == self.scopes[1] {
                next.sort_owners();
            }
            next.sort_nodes();
        }
        Some(next)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        crate::properties::all()
    }
}
