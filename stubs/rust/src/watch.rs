//! The stream on which the broker sends the next values and withdrawals.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::Either;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use crate::authorization::Authorization;
use crate::backoff::Backoff;
use crate::cache::{Change, Entry};
use crate::client::Core;
use crate::error::BrokerError;
use crate::lifetime::after;
use crate::locks::lock;
use crate::v1::watch_authorizations_request::Action;
use crate::v1::watch_authorizations_response::Event;
use crate::v1::{Subscribe, Unsubscribe, WatchAuthorizationsRequest, WatchAuthorizationsResponse, WithdrawalReason};

/// A stream that lived so long was a good one: the next wait is the shortest.
const GOOD: Duration = Duration::from_secs(5);

/// A stream holds no more subscriptions; other entries are asked for.
const MOST: usize = 1_000;

/// What is subscribed, by the number of the subscription. Shared by a stream and the one that it takes over from.
type Subscriptions = Arc<Mutex<HashMap<u64, Arc<Entry>>>>;

/// Keeps a stream for all entries, for ever; the first is opened with the first entry.
pub(crate) async fn watch(core: Arc<Core>, mut changes: mpsc::UnboundedReceiver<Change>) {
    let subscriptions = Subscriptions::default();
    // The number of a stream that is over, or soon will be, and how long to wait at least before the next one.
    let (turns, mut turned) = mpsc::unbounded_channel::<(u64, Duration)>();
    let mut backoff = Backoff::of_stream();
    let mut stream = None;
    // The number of the newest stream that was up: those before it bring no values any more.
    let up = Arc::new(AtomicU64::new(0));
    let (mut newest, mut opened, mut open_at) = (0, Instant::now(), Some(Instant::now()));
    loop {
        let open = match open_at {
            Some(at) if !lock(&subscriptions).is_empty() => Either::Left(sleep_until(at)),
            _ => Either::Right(pending()),
        };
        tokio::select! {
            biased;
            change = changes.recv() => {
                let action = match change {
                    None => return,
                    Some(Change::Added(entry)) => {
                        let mut subscriptions = lock(&subscriptions);
                        if subscriptions.len() >= MOST {
                            continue;
                        }
                        entry.is_watched.store(true, Ordering::Relaxed);
                        let action = subscribe(&entry);
                        subscriptions.insert(entry.subscription, entry);
                        action
                    }
                    Some(Change::Removed(subscription)) => {
                        if lock(&subscriptions).remove(&subscription).is_none() {
                            continue;
                        }
                        Action::Unsubscribe(Unsubscribe { subscription_id: subscription.to_string() })
                    }
                };
                send(stream.as_ref(), action);
            }
            Some((number, asked)) = turned.recv() => {
                // An old stream may end as it likes, once the next one is open.
                if number != newest {
                    continue;
                }
                if opened.elapsed() >= GOOD {
                    backoff.reset();
                }
                if open_at.is_none() {
                    let wait = backoff.next(fastrand::f64());
                    open_at = Some(after(Instant::now(), wait.max(asked)));
                }
                stream = None;
            }
            () = open => {
                let (requests, outgoing) = mpsc::unbounded_channel();
                for entry in lock(&subscriptions).values() {
                    send(Some(&requests), subscribe(entry));
                }
                stream = Some(requests);
                (newest, opened, open_at) = (newest + 1, Instant::now(), None);
                let (core, subscriptions, turns) = (Arc::clone(&core), Arc::clone(&subscriptions), turns.clone());
                let turn = Turn { number: newest, up: Arc::clone(&up) };
                core.tasks.clone().spawn(async move {
                    let is_closing = AtomicBool::new(false);
                    let closing = |wait| {
                        is_closing.store(true, Ordering::Relaxed);
                        let _ = turns.send((newest, wait));
                    };
                    let mut wait = Duration::ZERO;
                    if let Err(error) = read(&core, outgoing, &subscriptions, &turn, &closing).await {
                        wait = error.retry_delay.unwrap_or_default();
                        // One that said that it would end may do so as it likes.
                        if error.reason_text.is_empty() && !is_closing.load(Ordering::Relaxed) {
                            core.presence.lost(&core.cache);
                        }
                        core.note(error);
                    }
                    closing(wait);
                });
            }
        }
    }
}

fn send(stream: Option<&mpsc::UnboundedSender<WatchAuthorizationsRequest>>, action: Action) {
    if let Some(stream) = stream {
        // A stream that has ended says so itself.
        let _ = stream.send(WatchAuthorizationsRequest { action: Some(action) });
    }
}

/// Subscribes an entry, naming the value that is held where the broker need not send it again.
fn subscribe(entry: &Entry) -> Action {
    let known = entry.value().filter(|value| Instant::now() < value.lifetime().refresh());
    Action::Subscribe(Subscribe {
        subscription_id: entry.subscription.to_string(),
        scope: entry.key.scope.clone(),
        thread_id: entry.key.thread.clone(),
        identity: entry.key.identity.clone(),
        known_revision: known.map(|value| value.revision().to_owned()).unwrap_or_default(),
    })
}

/// Reads one stream to its end.
async fn read(
    core: &Core,
    requests: mpsc::UnboundedReceiver<WatchAuthorizationsRequest>,
    subscriptions: &Subscriptions,
    turn: &Turn,
    closing: &impl Fn(Duration),
) -> Result<(), BrokerError> {
    let silent = |_| BrokerError::from(Status::unavailable("the stream was silent for too long"));
    let mut stub = core.stub();
    let open = stub.watch_authorizations(UnboundedReceiverStream::new(requests));
    let mut stream = timeout(core.silence, open).await.map_err(silent)??.into_inner();
    core.streams.fetch_add(1, Ordering::Relaxed);
    let _up = Up(core);
    turn.begin();
    while let Some(message) = timeout(core.silence, stream.message()).await.map_err(silent)?? {
        core.presence.heard();
        if let Some(Event::Closing(said)) = &message.event {
            closing(said.retry_delay.and_then(|delay| delay.try_into().ok()).unwrap_or_default());
        }
        apply(core, subscriptions, turn, message);
    }
    Ok(())
}

/// Does what one message says. Events of a newer broker, and of entries that are gone, are ignored.
fn apply(core: &Core, subscriptions: &Subscriptions, turn: &Turn, message: WatchAuthorizationsResponse) {
    let entry = message.subscription_id.parse().ok().and_then(|id: u64| lock(subscriptions).get(&id).cloned());
    let (Some(entry), Some(event)) = (entry, message.event) else { return };
    match event {
        Event::Authorization(sent) => {
            let now = Instant::now();
            // What a stream that was replaced still brings may be older than what its successor took back.
            match Authorization::new(Arc::clone(&entry.key), sent, now) {
                Ok(value) => core.cache.take(&entry, value, now, || turn.is_newest()),
                Err(error) => core.note(error),
            }
        }
        Event::Withdrawal(said) => {
            core.cache.withdraw(&entry, said.reason() == WithdrawalReason::CredentialRejected);
        }
        Event::Error(error) => {
            let Some(error) = error.status.map(BrokerError::from) else { return };
            if error.is_refusal() {
                core.cache.withdraw(&entry, false);
            }
            core.note(error);
        }
        Event::Heartbeat(_) | Event::Closing(_) => {}
    }
}

/// The place of one stream among those of its client.
struct Turn {
    number: u64,
    up: Arc<AtomicU64>,
}

impl Turn {
    /// The stream is up.
    fn begin(&self) {
        self.up.fetch_max(self.number, Ordering::SeqCst);
    }

    fn is_newest(&self) -> bool {
        self.up.load(Ordering::SeqCst) == self.number
    }
}

/// Counts a stream for as long as it is up.
struct Up<'a>(&'a Core);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
