//! One call however many wait for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use crate::authorization::Authorization;
use crate::cache::lock;
use crate::error::Error;

type Outcome = Result<Authorization, Error>;
type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The calls under way, by what they ask.
pub(crate) struct Flights<K>(Arc<Mutex<HashMap<K, Flight>>>);

/// Held weakly: a call ends when all who waited for it have gone.
struct Flight {
    id: Arc<()>,
    work: WeakShared<Work>,
    deadline: Instant,
}

impl<K: Hash + Eq + Clone + Send + 'static> Flights<K> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Waits for the call of this key until `deadline`; `begin` makes it, with its deadline, where there is none.
    pub(crate) async fn join<F>(&self, key: K, deadline: Instant, begin: impl Fn(Instant) -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        loop {
            let (work, ends) = self.board(&key, deadline, &begin);
            match timeout_at(deadline, work).await {
                // Whoever made the call had less time than is left here.
                Ok(Err(error)) if ends < deadline && is_deadline(&error) => {}
                Ok(outcome) => return outcome,
                Err(_) => return Err(Status::deadline_exceeded("no answer in time").into()),
            }
        }
    }

    fn board<F>(&self, key: &K, deadline: Instant, begin: impl Fn(Instant) -> F) -> (Shared<Work>, Instant)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = lock(&self.0);
        if let Some(flight) = flights.get(key) {
            if let Some(work) = flight.work.upgrade() {
                return (work, flight.deadline);
            }
        }
        let id = Arc::new(());
        let landing = Landing { flights: Arc::clone(&self.0), key: key.clone(), id: Arc::clone(&id) };
        let call = begin(deadline);
        let work: Work = Box::pin(async move {
            let outcome = call.await;
            drop(landing);
            outcome
        });
        let work = work.shared();
        if let Some(weak) = work.downgrade() {
            flights.insert(key.clone(), Flight { id, work: weak, deadline });
        }
        (work, deadline)
    }
}

/// Takes a call off the list when it is done, or when nobody waits for it any more.
struct Landing<K: Hash + Eq> {
    flights: Arc<Mutex<HashMap<K, Flight>>>,
    key: K,
    id: Arc<()>,
}

impl<K: Hash + Eq> Drop for Landing<K> {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights);
        // The next call of the same key may have begun.
        if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(&flight.id, &self.id)) {
            flights.remove(&self.key);
        }
    }
}

fn is_deadline(error: &Error) -> bool {
    error.broker().is_some_and(|error| error.code == Code::DeadlineExceeded)
}
