//! A store for asynchronous code: it runs in its own thread, because databases block.

use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Error, Place, Store};

type StoreJob = Box<dyn FnOnce(&mut dyn Store) + Send>;

/// Dropping it closes the store, in its thread.
pub struct StoreThread(mpsc::Sender<StoreJob>);

impl StoreThread {
    pub async fn open(place: Place) -> Result<Self, Error> {
        let (sender, jobs) = mpsc::channel::<StoreJob>();
        let (opened, outcome) = oneshot::channel();
        std::thread::spawn(move || match place.open() {
            Ok(mut store) => {
                // The channel is closed when the caller has dropped its future.
                let _ = opened.send(Ok(()));
                for job in jobs {
                    job(store.as_mut());
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        });
        outcome.await??;
        Ok(Self(sender))
    }

    /// Runs a job in the thread of the store. Dropping the future does not undo it.
    pub async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut dyn Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        let job = move |store: &mut dyn Store| drop(sender.send(act(store)));
        self.0.send(Box::new(job)).map_err(|_| "its thread has ended")?;
        answer.await?
    }
}
