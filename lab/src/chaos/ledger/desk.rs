//! A store for asynchronous code: it runs in its own thread, because databases block.

use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Error, Place, Store};

type Errand = Box<dyn FnOnce(&mut dyn Store) + Send>;

/// Dropping it closes the store, in its thread.
pub struct Desk(mpsc::Sender<Errand>);

impl Desk {
    pub async fn open(place: Place) -> Result<Self, Error> {
        let (sender, errands) = mpsc::channel::<Errand>();
        let (opened, outcome) = oneshot::channel();
        std::thread::spawn(move || match place.open() {
            Ok(mut store) => {
                // The channel is closed when the caller has dropped its future.
                let _ = opened.send(Ok(()));
                for errand in errands {
                    errand(store.as_mut());
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
        let errand = move |store: &mut dyn Store| drop(sender.send(act(store)));
        self.0.send(Box::new(errand)).map_err(|_| "its thread has ended")?;
        answer.await?
    }
}
