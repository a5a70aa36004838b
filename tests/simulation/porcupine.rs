//! A second judge of histories: porcupine-rs, a checker for linearizability in general. It shares nothing with `linear.rs` but the
//! model of the mutex: it knows nothing of tokens, and searches the whole history for an order.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

use crate::history::{Mutex, NEVER, Op};
use crate::linear::Verdict;

/// A search that takes longer is left undecided. Most take microseconds, and few with many operations that never end would take hours.
const MOST_TIME: Duration = Duration::from_millis(50);

static JUDGED: AtomicU64 = AtomicU64::new(0);
static UNDECIDED: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug)]
struct FencedMutex;

impl Model for FencedMutex {
    type State = Mutex;
    type Op = Op;
    type Metadata = ();

    fn init() -> Mutex {
        Mutex::default()
    }

    fn step(state: &Mutex, op: &Op) -> (bool, Mutex) {
        state.after(op).map_or_else(|| (false, state.clone()), |after| (true, after))
    }
}

/// Judges the history of one resource as well. Returns how this verdict differs, if it decides and differs.
pub fn contradicts(verdict: &Verdict, history: &[Op]) -> Option<String> {
    let time = |moment| if moment == NEVER { i64::MAX } else { i64::try_from(moment).expect("a count of moments") };
    let operation = |op: &Op| Operation::<FencedMutex> {
        client_id: Some(op.share),
        call_time: time(op.invoked),
        return_time: time(op.returned),
        op: *op,
        metadata: None,
    };
    let operations: Vec<_> = history.iter().map(operation).collect();
    JUDGED.fetch_add(1, Relaxed);
    let is_legal = match check_operations_timeout(&operations, MOST_TIME) {
        CheckResult::Ok => true,
        CheckResult::Illegal => false,
        CheckResult::Unknown => {
            UNDECIDED.fetch_add(1, Relaxed);
            return None;
        }
    };
    let contradicts = *verdict != Verdict::Unknown && is_legal != (*verdict == Verdict::Legal);
    contradicts.then(|| format!("{verdict:?}, and by porcupine-rs legal: {is_legal}"))
}

/// Returns how many histories were judged so far, and how many of them were left undecided.
pub fn counts() -> (u64, u64) {
    (JUDGED.load(Relaxed), UNDECIDED.load(Relaxed))
}
