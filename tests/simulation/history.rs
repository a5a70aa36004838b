//! The operations on one resource and their results, as a history, and the model of a re-entrant fenced mutex.

/// The start or end of an operation: a count of all such moments of a run, so no two are the same.
pub type Moment = u64;

/// It has not ended, and may take effect at any later time.
pub const NEVER: Moment = Moment::MAX;

/// One operation of one share: a client's part in the leases of an owner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    pub share: u32,
    pub owner: u32,
    pub token: u64,
    pub what: What,
    pub invoked: Moment,
    pub returned: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// An acquisition, a re-entry or a join that returned a guard. An acquisition without a guard is no operation: an
    /// unconfirmed grant is not a hold.
    Enter,
    /// A re-entry or a join that returned no guard. It may have been granted, and may then keep the lease in force when
    /// every other share has released it.
    UnansweredEnter,
    /// A confirmed release, and the remaining depth that it returned.
    Leave { left: Option<u32> },
    /// Any other release: its outcome is unknown, it was not awaited, or it came after a loss.
    UnconfirmedRelease,
    /// A reading of a guard with validity left, and its depth.
    Holds { depth: Option<u32> },
    /// A guard signalled the loss, or a release returned that the lease had been lost.
    Lost,
}

impl What {
    /// Returns whether it shows that the lease was held. Otherwise it has no effect on later leases.
    pub fn claims(self) -> bool {
        matches!(self, Self::Enter | Self::Leave { .. } | Self::Holds { .. })
    }
}

/// A re-entrant fenced mutex. A lease may end by itself at any moment, but not begin again. So a larger token replaces it, and
/// a share whose loss was signalled is no part of it any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mutex {
    /// The latest token, which only grows.
    token: u64,
    owner: u32,
    /// Whether a share has not released it.
    open: bool,
    /// A share whose entry was not answered may be part of it.
    kept: bool,
    /// How deep each share is nested.
    depths: Vec<(u32, u32)>,
    /// Shares whose loss was signalled, with the token.
    over: Vec<(u32, u64)>,
}

impl Mutex {
    /// Returns the state after this operation, or `None` when it cannot happen now.
    pub fn after(&self, op: &Op) -> Option<Self> {
        let mut next = self.clone();
        let held = self.open && op.token == self.token && op.owner == self.owner;
        let over = (op.share, op.token);
        match op.what {
            What::Enter if op.token > self.token => {
                (next.token, next.owner, next.open, next.kept) = (op.token, op.owner, true, false);
                next.depths = vec![(op.share, 1)];
            }
            What::Enter if held && !self.over.contains(&over) => next.change(op.share, 1),
            What::Holds { depth } if held && !self.over.contains(&over) => {
                let mine = self.depth(op.share);
                if mine == 0 || depth.is_some_and(|depth| depth != mine) {
                    return None;
                }
            }
            What::Leave { left } if held && !self.over.contains(&over) && self.depth(op.share) > 0 => {
                next.change(op.share, -1);
                if left.is_some_and(|left| left != next.depth(op.share)) {
                    return None;
                }
                next.open = next.is_in_use();
            }
            What::Enter | What::Holds { .. } | What::Leave { .. } => return None,
            _ if op.token > self.token => return None,
            What::UnconfirmedRelease if op.token == self.token && self.depth(op.share) > 0 => {
                next.change(op.share, -1);
                next.open = next.is_in_use();
            }
            What::UnansweredEnter if held => next.kept = true,
            What::UnconfirmedRelease | What::UnansweredEnter => {}
            What::Lost => next.end(over),
        }
        Some(next)
    }

    fn is_in_use(&self) -> bool {
        self.kept || self.depths.iter().any(|(_, depth)| *depth > 0)
    }

    fn depth(&self, share: u32) -> u32 {
        self.depths.iter().find(|(id, _)| *id == share).map_or(0, |(_, depth)| *depth)
    }

    fn change(&mut self, share: u32, by: i32) {
        match self.depths.iter_mut().find(|(id, _)| *id == share) {
            Some((_, depth)) => *depth = depth.saturating_add_signed(by),
            None => self.depths.push((share, u32::try_from(by).unwrap_or(0))),
        }
        self.depths.sort_unstable();
    }

    fn end(&mut self, over: (u32, u64)) {
        if let Err(at) = self.over.binary_search(&over) {
            self.over.insert(at, over);
        }
    }
}

/// The operations on one resource, in the order in which they began to be recorded.
#[derive(Clone, Debug, Default)]
pub struct History(pub Vec<Op>);

impl History {
    pub fn push(&mut self, op: Op) -> usize {
        // Of equal readings in a row, the first and the last are enough.
        if let [.., first, last] = self.0.as_mut_slice()
            && matches!(op.what, What::Holds { .. })
            && (first.share, first.token, first.what) == (op.share, op.token, op.what)
            && (last.share, last.token, last.what) == (op.share, op.token, op.what)
        {
            *last = op;
        } else {
            self.0.push(op);
        }
        self.0.len() - 1
    }
}
