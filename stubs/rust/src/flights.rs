//! One call however many wait for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

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

    /// Waits for the call of this key until `until`; `begin` makes it where there is none, with a deadline that is `long`
    /// from now where that is later: others may wait longer than whoever was first.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        until: Instant,
        long: Duration,
        begin: impl Fn(Instant) -> F,
    ) -> Result<Outcome, Elapsed>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        loop {
            let (work, deadline) = self.board(&key, until.max(Instant::now() + long), &begin);
            match timeout_at(until, work).await? {
                // The call began long ago, and there is time for another.
                Err(error) if deadline < until && is_deadline(&error) => {}
                outcome => return Ok(outcome),
            }
        }
    }

    /// Returns the call of this key and when it ends.
    fn board<F>(&self, key: &K, deadline: Instant, begin: impl Fn(Instant) -> F) -> (Shared<Work>, Instant)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = lock(&self.0);
        if let Some(flight) = flights.get(key)
            && let Some(work) = flight.work.upgrade()
        {
            return (work, flight.deadline);
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
