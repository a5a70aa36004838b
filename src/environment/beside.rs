//! Work that may block, in threads beside the tasks.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::Mutex;
use std::thread;

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::sync::oneshot;

use crate::sync::locked;

/// Pieces of work under way, by key. At most one thread works for a key at a time, however often that is asked for: a name server
/// that hangs must not collect threads. The end of the program does not wait for the threads.
#[derive(Debug)]
pub(crate) struct Beside<K, T>(Mutex<UnderWay<K, T>>);

#[derive(Debug)]
struct UnderWay<K, T> {
    by_key: HashMap<K, Shared<oneshot::Receiver<T>>>,
    /// The process whose threads these are. A fork has none of them.
    process: u32,
}

impl<K, T: Clone> Default for Beside<K, T> {
    fn default() -> Self {
        Self(Mutex::new(UnderWay { by_key: HashMap::new(), process: process::id() }))
    }
}

impl<K, T> Beside<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Runs `work` in a thread, or waits for the work with the same key if that is under way.
    ///
    /// # Errors
    ///
    /// When no thread can be started, or the work panics.
    pub(crate) async fn ask(&'static self, about: K, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let answer = self.begin(about, work)?;
        answer.await.map_err(|_| io::Error::other("panic in a thread of the client"))
    }

    fn begin(
        &'static self,
        about: K,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Shared<oneshot::Receiver<T>>> {
        let mut under_way = locked(&self.0);
        if under_way.process != process::id() {
            *under_way = UnderWay { by_key: HashMap::new(), process: process::id() };
        }
        if let Some(answer) = under_way.by_key.get(&about) {
            return Ok(answer.clone());
        }
        let (sender, answer) = oneshot::channel();
        let (answer, key) = (answer.shared(), about.clone());
        let started = thread::Builder::new().name("quorlock".to_owned()).spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(work));
            locked(&self.0).by_key.remove(&key);
            if let Ok(done) = done {
                drop(sender.send(done));
            }
        });
        started.map_err(|error| io::Error::new(error.kind(), format!("no thread can be started: {error}")))?;
        under_way.by_key.insert(about, answer.clone());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    static WORK: LazyLock<Beside<&str, usize>> = LazyLock::new(Beside::default);
    static DONE: AtomicUsize = AtomicUsize::new(0);

    #[tokio::test]
    async fn the_same_work_is_shared_while_it_is_under_way() {
        let (finish, is_finished) = channel();
        let count = move || {
            is_finished.recv().unwrap();
            DONE.fetch_add(1, Ordering::Relaxed)
        };
        let first = WORK.begin("count", count).unwrap();
        let second = WORK.begin("count", || 7).unwrap();
        finish.send(()).unwrap();
        assert_eq!((first.await, second.await), (Ok(0), Ok(0)));
        assert_eq!(WORK.ask("count", || 8).await.unwrap(), 8, "it begins anew");
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_work_can_be_asked_for_again() {
        assert!(WORK.ask("panic", || panic!("on purpose")).await.is_err());
        assert_eq!(WORK.ask("panic", || 1).await.unwrap(), 1);
    }
}
