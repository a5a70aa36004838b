//! The actions of owners and of the network, in any order.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use stateright::Model;

use crate::action::{Action, Message, Pick, make_room};
use crate::node::{Answer, Ballot, Node, Processed, Rules};
use crate::state::{EXTENSIONS, Extension, NODES, OWNERS, SHARES, Share, ShareId, State};

/// The limits of the actions of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    pub acquisitions: usize,
    /// For all its leases together; with the acquisitions at most [`SHARES`].
    pub joins: usize,
    /// For all its shares together; at most [`EXTENSIONS`] for each.
    pub extensions: usize,
    /// Its first lease may be revoked. Only of owner 0.
    pub revocation: bool,
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

impl Ballots {
    pub fn new(rules: Rules, scopes: [Scope; OWNERS], symmetry: bool) -> Self {
        for scope in scopes {
            let shares = scope.acquisitions + scope.joins;
            assert!(shares <= SHARES && scope.extensions <= shares * EXTENSIONS, "no room");
        }
        assert!(!scopes[1].revocation && (!scopes[0].revocation || scopes[0] != scopes[1]), "owner 0 only");
        Self { rules, scopes, symmetry, expanded: AtomicUsize::new(0), found: Default::default() }
    }

    /// True only the first time: the checker keeps the last discovery, and the first is the shortest.
    pub fn first(&self, property: usize, is_there: impl FnOnce() -> bool) -> bool {
        !self.found[property].load(Ordering::Relaxed)
            && is_there()
            && !self.found[property].swap(true, Ordering::Relaxed)
    }

    /// What the node answers to this message, and its state after that.
    pub fn answer(&self, state: &State, of: ShareId, message: Message, node: &Node) -> (Answer, Node) {
        let mut after = *node;
        let (share, from) = (state.share(of), state.sender(of));
        let answer = match message {
            Message::First if share.is_join() => {
                let known = if self.rules == Rules::JoinWithKnown { share.token } else { Ballot::ZERO };
                after.hold(self.rules, from, known, share.first)
            }
            Message::First => after.acquire(self.rules, from),
            Message::Extend(index) => {
                let Extension { known, next, .. } = share.extensions[index];
                after.hold(self.rules, from, known, next)
            }
            Message::Release => {
                after.release(self.rules, from, share.released_with);
                after.released |= of.bit();
                after.standing &= !of.bit();
                return (Answer::Granted, after);
            }
        };
        if answer == Answer::Granted {
            if node.key.is_none() && node.standing != 0 {
                // An expired entry is gone once another lease is honoured.
                after.standing &= state.shares_of_lease(of.owner(), share.token);
            }
            after.standing |= of.bit();
            match message {
                _ if share.is_released() => (),
                Message::Extend(index) if !share.extensions[index].confirmed => {
                    after.honoured |= of.extension_bit(index);
                }
                Message::First if !share.completed => after.granted |= of.bit(),
                _ => (),
            }
        }
        (answer, after)
    }

    /// Counts the votes of a share, and forgets which nodes gave them once that cannot matter any more.
    fn count(&self, state: &mut State, of: ShareId) {
        let (to_complete, to_extend) = match self.rules {
            Rules::QuorumTooSmall => (1, 1),
            Rules::ConfirmBelowQuorum => (NODES / 2 + 1, 1),
            _ => (NODES / 2 + 1, NODES / 2 + 1),
        };
        let [a, b, c] = state.nodes;
        let share = state.share_mut(of);
        let wanted = !share.is_released();

        let votes = [a, b, c].iter().filter(|node| node.granted & of.bit() != 0).count();
        share.completed |= wanted && votes >= to_complete;
        let granted = if share.completed || !wanted { of.bit() } else { 0 };

        let mut honoured = 0;
        let mut credited = 0;
        for index in 0..share.extensions().len() {
            let extension = &mut share.extensions[index];
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

    /// The ballots of a share are larger than its earlier ones: every place above the last.
    fn picks(state: &State, last: Ballot) -> impl Iterator<Item = Pick> {
        let others = (last.0..=state.largest_proposal().0).map(Ballot);
        others.flat_map(move |other| {
            let equal = (other > last).then_some(Pick::EqualTo(other));
            [equal, Some(Pick::JustAbove(other))].into_iter().flatten()
        })
    }

    fn share_actions(&self, state: &State, id: ShareId, actions: &mut Vec<Action>) {
        let share = state.share(id);
        let scope = self.scopes[id.owner()];
        let sent = state.shares_of(id.owner()).iter().map(|share| share.extensions().len()).sum::<usize>();
        // A client extends what it holds. A join that was refused is tried again in the same way.
        let may_extend = share.is_confirmed() || share.is_join();
        if may_extend && share.extensions().len() < EXTENSIONS && sent < scope.extensions {
            // Some of the answers so far may have been lost.
            let first = share.completed.then_some(share.first);
            let confirmed = share.extensions().iter().filter(|extension| extension.confirmed).map(|of| of.next);
            let newer = first.into_iter().chain(confirmed).filter(|known| *known > share.known);
            for known in newer.chain([share.known]) {
                let picks = Self::picks(state, share.sent());
                actions.extend(picks.map(|ballot| Action::Extend { share: id, known, ballot }));
            }
        }
        let ballot = match self.rules {
            Rules::ReleaseWithKnown => Pick::EqualTo(share.known),
            Rules::ReleaseJustAboveKnown => {
                let known = share.known.max(share.first);
                if share.sent() > known { Pick::JustAbove(known) } else { Pick::EqualTo(known) }
            }
            _ => Pick::EqualTo(share.sent()),
        };
        actions.push(Action::Release { share: id, ballot });
    }

    fn owner_actions(&self, state: &State, owner: usize, actions: &mut Vec<Action>) {
        let scope = self.scopes[owner];
        let shares = state.shares_of(owner);
        for (index, share) in shares.iter().enumerate() {
            if !share.is_released() {
                self.share_actions(state, ShareId::new(owner, index), actions);
            }
        }
        let acquisitions = || shares.iter().filter(|share| share.is_acquisition());
        let acquired = acquisitions().count();
        // Any client that ever got an export of a share may join through it, also one that has released a share of the lease.
        if shares.len() - acquired < scope.joins {
            for (exporter, share) in shares.iter().enumerate().filter(|(_, share)| share.is_confirmed()) {
                let picks = Self::picks(state, share.token);
                actions.extend(picks.map(|ballot| Action::Join { owner, exporter, ballot }));
            }
        }
        let latest = acquisitions().next_back();
        if latest.is_none_or(Share::is_released) && acquired < scope.acquisitions {
            let last = latest.map_or(Ballot::ZERO, Share::sent);
            match self.rules {
                Rules::AcquireWithAnyUnusedBallot => {
                    let used = |pick: &Pick| {
                        shares.iter().any(|share| matches!(*pick, Pick::EqualTo(ballot) if share.has_sent(ballot)))
                    };
                    let picks = Self::picks(state, Ballot::ZERO).filter(|pick| !used(pick));
                    actions.extend(picks.map(|ballot| Action::Acquire { owner, ballot }));
                }
                Rules::ReuseABallot | Rules::ReuseABallotForAnotherShare if latest.is_some() => {
                    actions.push(Action::Acquire { owner, ballot: Pick::EqualTo(last) });
                }
                _ => actions.extend(Self::picks(state, last).map(|ballot| Action::Acquire { owner, ballot })),
            }
        }
    }

    fn arrivals(&self, state: &State, node: usize, actions: &mut Vec<Action>) {
        let before = &state.nodes[node];
        for (of, share) in state.shares() {
            let mut arrive = |message| {
                let (answer, after) = self.answer(state, of, message, before);
                if answer == Answer::Granted && after != *before {
                    actions.push(Action::Arrive { message, of, node });
                }
            };
            arrive(Message::First);
            for index in 0..share.extensions().len() {
                arrive(Message::Extend(index));
            }
            if share.is_released() {
                arrive(Message::Release);
            }
        }
    }

    /// Returns the node after the revocation has arrived there.
    fn revoked(&self, state: &State, node: usize) -> Node {
        let (token, ballot) = state.revocation;
        let mut after = state.nodes[node];
        if token != Ballot::ZERO && after.revocation == Processed::No {
            after.revoke(self.rules, token, ballot);
        }
        if after.revocation != Processed::No {
            after.standing &= !state.shares_of_lease(0, token);
        }
        after
    }

    /// Counts a release as processed where it would change nothing. That makes the invariants stricter.
    fn process_idle_releases(&self, state: &mut State) {
        for of in ShareId::ALL {
            if !state.share(of).is_released() {
                continue;
            }
            for node in 0..NODES {
                if state.nodes[node].released & of.bit() != 0 {
                    continue;
                }
                let before = state.nodes[node];
                let (_, after) = self.answer(state, of, Message::Release, &before);
                if (Node { released: before.released, ..after }) == before {
                    state.nodes[node] = after;
                }
            }
        }
    }

    /// Begins the owner's next share. The word of a share is its own, unless a broken rule takes an older one.
    fn begin(&self, state: &mut State, owner: usize, share: Share) {
        let shares = state.shares_of(owner);
        let index = shares.len();
        let older = match self.rules {
            Rules::ReuseABallot => shares.iter().position(Share::is_released),
            Rules::ReuseAWord => shares.iter().position(|older| older.is_released() && older.token == share.token),
            _ => None,
        };
        let word = u8::try_from(older.unwrap_or(index)).expect("a few shares");
        *state.share_mut(ShareId::new(owner, index)) = Share { word, ..share };
    }
}

impl Model for Ballots {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    /// A message that is refused, or that changes nothing, leads to the same state. It is left out.
    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.expanded.fetch_add(1, Ordering::Relaxed);
        for owner in 0..OWNERS {
            self.owner_actions(state, owner, actions);
        }
        let first = state.share(ShareId::new(0, 0));
        if self.scopes[0].revocation && first.is_begun() && state.revocation.0 == Ballot::ZERO {
            actions.extend(Self::picks(state, first.token).map(|ballot| Action::Revoke { ballot }));
        }
        for node in 0..NODES {
            if self.symmetry && node > 0 && state.nodes[node] == state.nodes[node - 1] {
                continue;
            }
            if state.nodes[node].key.is_some() {
                actions.push(Action::Expire { node });
            }
            self.arrivals(state, node, actions);
            if self.revoked(state, node) != state.nodes[node] {
                actions.push(Action::ArriveRevocation { node });
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        match action {
            Action::Acquire { owner, ballot } => {
                let token = make_room(&mut next, ballot);
                let behind = next.tokens_completed().any(|completed| completed >= token);
                self.begin(&mut next, owner, Share { token, first: token, known: token, behind, ..Share::default() });
                next.close_up_ballots();
            }
            Action::Join { owner, exporter, ballot } => {
                let id = ShareId::new(owner, exporter);
                let token = state.share(id).token;
                let behind =
                    state.tokens_completed().any(|newer| newer > token) || state.is_over(id) || state.is_revoked(id);
                let first = make_room(&mut next, ballot);
                let (token, exporter) = (Ballot(token.0 * 2), u8::try_from(exporter).expect("a few shares"));
                self.begin(&mut next, owner, Share { token, first, exporter, behind, ..Share::default() });
                next.close_up_ballots();
            }
            Action::Extend { share: id, known, ballot } => {
                let late =
                    state.tokens_completed().any(|completed| completed > state.share(id).token) || state.is_revoked(id);
                next.share_mut(id).known = known;
                let ballot = make_room(&mut next, ballot);
                let share = next.share_mut(id);
                let index = share.extensions().len();
                share.extensions[index] = Extension { known: share.known, next: ballot, confirmed: false, late };
                next.close_up_ballots();
            }
            Action::Release { share: id, ballot } => {
                let ballot = make_room(&mut next, ballot);
                next.share_mut(id).released_with = ballot;
                self.count(&mut next, id);
                next.share_mut(id).forget();
                next.close_up_ballots();
            }
            Action::Revoke { ballot } => {
                let ballot = make_room(&mut next, ballot);
                next.revocation = (next.share(ShareId::new(0, 0)).token, ballot);
                next.close_up_ballots();
            }
            Action::ArriveRevocation { node } => next.nodes[node] = self.revoked(state, node),
            Action::Expire { node } => next.nodes[node].key = None,
            Action::Arrive { message, of, node } => {
                let before = &state.nodes[node];
                let (_, after) = self.answer(state, of, message, before);
                next.foreign_release |= message == Message::Release && state.lost_another(of, before, &after);
                next.created_by_join |= message == Message::First && state.share(of).is_join() && before.key.is_none();
                next.nodes[node] = after;
                self.count(&mut next, of);
            }
        }
        if self.symmetry {
            self.process_idle_releases(&mut next);
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
