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
use crate::error::Error;
use crate::lifetime::after;
use crate::locks::lock;

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

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone + Send + 'static> Flights<K> {
    /// Waits for the call of this key until `until`; `begin` makes it where there is none, with a deadline that is `long`
    /// from now where that is later: others may wait longer than whoever was first. Before that `held` is looked at, for
    /// the call may have ended since the caller did.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        until: Instant,
        long: Duration,
        held: impl Fn() -> Option<Authorization>,
        begin: impl Fn(Instant) -> F,
    ) -> Result<Outcome, Elapsed>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        loop {
            let (work, deadline) = match self.board(&key, until.max(after(Instant::now(), long)), &held, &begin) {
                Ok(boarded) => boarded,
                Err(held) => return Ok(Ok(held)),
            };
            match timeout_at(until, work).await? {
                // The call began long ago, and there is time for another.
                Err(error) if deadline < until && is_deadline(&error) => {}
                outcome => return Ok(outcome),
            }
        }
    }

    /// Returns the call of this key and when it ends; as an error what is held, where no call is needed.
    fn board<F>(
        &self,
        key: &K,
        deadline: Instant,
        held: impl Fn() -> Option<Authorization>,
        begin: impl Fn(Instant) -> F,
    ) -> Result<(Shared<Work>, Instant), Authorization>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = lock(&self.0);
        if let Some(flight) = flights.get(key)
            && let Some(work) = flight.work.upgrade()
        {
            return Ok((work, flight.deadline));
        }
        if let Some(held) = held() {
            return Err(held);
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
        Ok((work, deadline))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyRef;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::{advance, sleep, timeout};
    use tonic::Status;

    const SECOND: Duration = Duration::from_secs(1);

    /// Calls that take so long and then fail, which tells them apart without an authorization.
    struct Calls {
        flights: Flights<&'static str>,
        begun: Arc<AtomicUsize>,
        ended: Arc<AtomicUsize>,
        takes: Duration,
    }

    impl Calls {
        fn taking(takes: Duration) -> Self {
            Self { flights: Flights::default(), begun: Arc::default(), ended: Arc::default(), takes }
        }

        /// Waits for the call of a key; returns its number, or `None` when the time was over.
        async fn wait(&self, key: &'static str, seconds: u32) -> Option<String> {
            let begin = |deadline| {
                let (number, ended, takes) = (Arc::clone(&self.begun), Arc::clone(&self.ended), self.takes);
                async move {
                    let number = number.fetch_add(1, Ordering::SeqCst);
                    let outcome = timeout_at(deadline, sleep(takes)).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                    Err(match outcome {
                        Ok(()) => Status::internal(number.to_string()).into(),
                        Err(_) => Status::deadline_exceeded("").into(),
                    })
                }
            };
            let outcome =
                self.flights.join(key, Instant::now() + seconds * SECOND, 10 * SECOND, || None, begin).await.ok()?;
            outcome.err().map(|error| error.broker().unwrap().message.clone())
        }

        fn counts(&self) -> (usize, usize) {
            (self.begun.load(Ordering::SeqCst), self.ended.load(Ordering::SeqCst))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_wait_for_one_call_and_the_next_begins_another() {
        let calls = Calls::taking(SECOND);
        let outcomes = join_all((0..50).map(|_| calls.wait("a", 5))).await;
        assert_eq!(outcomes, vec![Some("0".to_owned()); 50]);
        assert_eq!(calls.wait("a", 5).await, Some("1".to_owned()));
        assert!(lock(&calls.flights.0).is_empty());
    }

    #[tokio::test]
    async fn who_looked_before_an_answer_was_kept_and_came_after_it_begins_no_call() {
        let flights = Flights::default();
        let memory: Mutex<Option<Authorization>> = Mutex::default();
        let look = || lock(&memory).clone();
        let ask = |until| flights.join("a", until, SECOND, look, |_| async { panic!("there is no need to ask") });
        assert!(look().is_none());
        let key = Arc::new(KeyRef { identity: "", scope: "", thread: "" }.to_key());
        let answer = Authorization::new(key, crate::v1::Authorization::default(), Instant::now()).unwrap();
        let keep = |_| {
            *lock(&memory) = Some(answer.clone());
            std::future::ready(Ok(answer.clone()))
        };
        flights.join("a", Instant::now() + SECOND, SECOND, look, keep).await.unwrap().unwrap();
        assert!(ask(Instant::now() + SECOND).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_the_call_to_the_others() {
        let calls = Calls::taking(3 * SECOND);
        let (first, second) = tokio::join!(calls.wait("a", 1), calls.wait("a", 5));
        assert_eq!((first, second), (None, Some("0".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_ends() {
        let calls = Calls::taking(3 * SECOND);
        assert!(timeout(SECOND, calls.wait("a", 5)).await.is_err());
        advance(10 * SECOND).await;
        assert_eq!(calls.counts(), (1, 0));
        assert!(lock(&calls.flights.0).is_empty());
        assert_eq!(calls.wait("a", 5).await, Some("1".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_late_has_all_of_the_own_time() {
        let calls = Calls::taking(12 * SECOND);
        let late = async {
            sleep(5 * SECOND).await;
            calls.wait("a", 20).await
        };
        let (first, late) = tokio::join!(calls.wait("a", 8), late);
        // The first call ended at its deadline after 10 s; the one that followed had until 25 s.
        assert_eq!((first, late), (None, Some("1".to_owned())));
    }
}
