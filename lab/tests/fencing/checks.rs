//! What every file of `docs/fencing` must do.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The largest token that there can be.
const LARGEST: &str = "9007199254740991";
const BEFORE_LARGEST: &str = "9007199254740990";

/// Pairs of transactions that run at the same time.
const RACES: usize = 10;

/// Why a read or a write has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A larger token is stored.
    Stale,
    /// Another transaction was in the way; the same one may pass when it is run again.
    Conflict,
    Other(String),
}

/// A connection to a number for each resource. Each call is a transaction.
pub trait Fenced: Send {
    /// Creates the number 0 for this resource.
    fn create(&mut self, resource: &str);
    fn read(&mut self, resource: &str, token: &str) -> Result<i64, Refusal>;
    fn write(&mut self, resource: &str, token: &str, value: i64) -> Result<(), Refusal>;
    /// Reads, and writes the result of `change`. A store without transactions does the two one by one.
    fn update(&mut self, resource: &str, token: &str, change: fn(i64) -> i64) -> Result<(), Refusal> {
        let value = self.read(resource, token)?;
        self.write(resource, token, change(value))
    }
}

/// Returns a name that no other check uses.
pub fn new_resource() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!("account:{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Returns an error unless both are the same.
pub fn expect<T: std::fmt::Debug + PartialEq>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("{what}: {got:?} in place of {expected:?}")) }
}

/// Two holders, whose transactions come one after the other.
pub fn tokens(old: &mut dyn Fenced, new: &mut dyn Fenced) -> Result<(), String> {
    let (account, other) = (new_resource(), new_resource());
    old.create(&account);
    old.create(&other);
    expect("the first token", &old.write(&account, "9", 109), &Ok(()))?;
    expect("the same token", &old.read(&account, "9"), &Ok(109))?;
    expect("the same token", &old.write(&account, "9", 209), &Ok(()))?;
    expect("a newer token", &new.write(&account, "10", 110), &Ok(()))?;
    expect("a write after a newer write", &old.write(&account, "9", 309), &Err(Refusal::Stale))?;
    expect("a read after a newer write", &old.read(&account, "9"), &Err(Refusal::Stale))?;
    expect("a newer read", &new.read(&account, "11"), &Ok(110))?;
    expect("a write after a newer read", &old.write(&account, "10", 210), &Err(Refusal::Stale))?;
    expect("a read after a newer read", &old.read(&account, "10"), &Err(Refusal::Stale))?;
    expect("a token after refusals", &new.read(&account, "11"), &Ok(110))?;
    expect("a small token of another resource", &old.write(&other, "1", 101), &Ok(()))?;
    expect("a token before the largest", &old.write(&account, BEFORE_LARGEST, 1), &Ok(()))?;
    expect("the largest token", &new.write(&account, LARGEST, 2), &Ok(()))?;
    expect("a write after the largest token", &old.write(&account, BEFORE_LARGEST, 3), &Err(Refusal::Stale))?;
    for token in ["NULL", "0", "-1", "'x'", "'nan'"] {
        for resource in [&account, &new_resource()] {
            if new.write(resource, token, 4).is_ok() {
                return Err(format!("{token} passes as a token"));
            }
        }
    }
    expect("the number after all refusals", &new.read(&account, LARGEST), &Ok(2))
}

/// Two holders at the same time, on a resource that has no token yet. Token 1 adds 1 and token 2 adds 10.
pub fn race<F: Fenced>(open: impl Fn() -> F) -> Result<(), String> {
    let (mut old, mut new) = (open(), open());
    for _ in 0..RACES {
        let account = new_resource();
        old.create(&account);
        let start = Barrier::new(2);
        let (old, new) = (&mut old, &mut new);
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| {
                start.wait();
                again(|| old.update(&account, "1", |value| value + 1))
            });
            start.wait();
            let second = again(|| new.update(&account, "2", |value| value + 10));
            (first.join().expect("no panic"), second)
        });
        expect("the newer holder", &second, &Ok(()))?;
        let end = new.read(&account, "2");
        match first {
            Ok(()) => expect("the older holder, then the newer one", &end, &Ok(11))?,
            // The older one may have been refused between its read and its write.
            Err(Refusal::Stale) => expect("the newer holder alone", &end, &Ok(10))?,
            Err(error) => return Err(format!("the older holder: {error:?}")),
        }
    }
    Ok(())
}

/// Runs a transaction until no other one is in its way.
pub fn again<T>(mut transaction: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    loop {
        match transaction() {
            Err(Refusal::Conflict) => {}
            result => return result,
        }
    }
}
