//! A connection to each address of the broker, kept up, and calls spread over them in turn.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use super::connect::{Connector, Sender, Target};
use crate::address::Address;
use crate::backoff::Backoff;

/// The name is resolved no more often than this.
const RESOLVE: Duration = Duration::from_secs(5);

/// The connections of one client. Nothing is connected before `keep` runs.
pub(crate) struct Replicas {
    connected: watch::Sender<Connected>,
    turn: AtomicUsize,
}

/// What there is now.
#[derive(Default)]
pub(crate) struct Connected {
    ready: Vec<Replica>,
    /// The addresses that the name has.
    targets: HashSet<Target>,
    /// Those of them whose last attempt failed.
    failing: HashSet<Target>,
    /// Why the last attempt failed, while nothing is ready and no address is left to hope for.
    failure: Option<Arc<str>>,
}

/// One connection that takes calls.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) sender: Sender,
}

impl Connected {
    /// Whether there is a connection: `None` while that is not known yet.
    pub(crate) fn is_up(&self) -> Option<bool> {
        if self.ready.is_empty() { self.failure.as_ref().map(|_| false) } else { Some(true) }
    }
}

impl Replicas {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { connected: watch::Sender::default(), turn: AtomicUsize::new(0) })
    }

    /// Returns the connection whose turn it is. Where there is none, waits; with `wait` unset only until an attempt has
    /// failed, which is the error.
    pub(crate) async fn pick(&self, wait: bool) -> Result<Replica, Status> {
        let mut connected = self.connected.subscribe();
        loop {
            {
                let now = connected.borrow_and_update();
                if !now.ready.is_empty() {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                    return Ok(now.ready[turn % now.ready.len()].clone());
                }
                if let (false, Some(failure)) = (wait, &now.failure) {
                    return Err(Status::unavailable(format!("no connection: {failure}")));
                }
            }
            if connected.changed().await.is_err() {
                return Err(Status::unavailable("no connection"));
            }
        }
    }

    /// Why there is no connection, if there is none.
    pub(crate) fn failure(&self) -> Option<Arc<str>> {
        self.connected.borrow().failure.clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Connected> {
        self.connected.subscribe()
    }

    /// Takes a connection out of the turns.
    pub(crate) fn remove(&self, id: u64) {
        self.connected.send_if_modified(|connected| {
            let before = connected.ready.len();
            connected.ready.retain(|replica| replica.id != id);
            connected.ready.len() != before
        });
    }

    fn add(&self, target: &Target, replica: Replica) {
        self.connected.send_modify(|connected| {
            connected.ready.push(replica);
            connected.failing.remove(target);
            connected.failure = None;
        });
    }

    /// These are the addresses that count from now on.
    fn found(&self, targets: &HashSet<Target>) {
        self.connected.send_if_modified(|connected| {
            connected.failing.retain(|target| targets.contains(target));
            connected.targets.clone_from(targets);
            false
        });
    }

    /// An attempt to connect failed. While another address is still tried for the first time the broker may be there.
    fn failed(&self, target: &Target, error: &io::Error) {
        self.connected.send_if_modified(|connected| {
            connected.failing.insert(target.clone());
            let lost = connected.ready.is_empty() && connected.targets.is_subset(&connected.failing);
            if lost {
                connected.failure = Some(format!("{target}: {error}").into());
            }
            lost
        });
    }

    /// The name could not be resolved.
    fn unresolved(&self, address: &Address, error: &io::Error) {
        self.connected.send_if_modified(|connected| {
            let lost = connected.ready.is_empty();
            if lost {
                connected.failure = Some(format!("{address}: {error}").into());
            }
            lost
        });
    }

    /// Keeps a connection to every address, for ever. The name is resolved again whenever a connection is lost or fails.
    pub(crate) async fn keep(self: Arc<Self>, address: Address, connector: Connector) {
        let lost = Arc::new(Notify::new());
        let mut held: HashMap<Target, AbortHandle> = HashMap::new();
        let mut backoff = Backoff::of_connection();
        loop {
            let resolved = Instant::now();
            match resolve(&address).await {
                Ok(found) => {
                    backoff.reset();
                    self.found(&found);
                    // Those of addresses that the name no longer has.
                    held.retain(|target, task| {
                        found.contains(target) || {
                            task.abort();
                            false
                        }
                    });
                    for target in found {
                        held.entry(target.clone()).or_insert_with(|| {
                            let (replicas, connector, lost) = (Arc::clone(&self), connector.clone(), Arc::clone(&lost));
                            let tasks = connector.tasks.clone();
                            tasks.spawn(async move { replicas.hold(&target, &connector, &lost).await })
                        });
                    }
                    lost.notified().await;
                    sleep_until(resolved + RESOLVE).await;
                }
                // What is connected stays: a resolver that is away says nothing about the broker.
                Err(error) => {
                    self.unresolved(&address, &error);
                    sleep(backoff.next(fastrand::f64())).await;
                }
            }
        }
    }

    /// Keeps one connection up, for ever.
    async fn hold(&self, target: &Target, connector: &Connector, lost: &Notify) {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let mut backoff = Backoff::of_connection();
        loop {
            match connector.connect(target).await {
                Ok((sender, running)) => {
                    backoff.reset();
                    let id = IDS.fetch_add(1, Ordering::Relaxed);
                    let _turns = Turns { replicas: self, id };
                    self.add(target, Replica { id, sender });
                    if let Err(error) = running.await {
                        tracing::debug!(%error, ?target, "a connection to the credential broker was lost");
                    }
                }
                Err(error) => self.failed(target, &error),
            }
            lost.notify_one();
            sleep(backoff.next(fastrand::f64())).await;
        }
    }
}

/// Takes a connection out of the turns however its task ends.
struct Turns<'a> {
    replicas: &'a Replicas,
    id: u64,
}

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        self.replicas.remove(self.id);
    }
}

async fn resolve(address: &Address) -> io::Result<HashSet<Target>> {
    match address {
        Address::Unix(path) => Ok(HashSet::from([Target::Unix(path.clone())])),
        Address::Name { host, port } => {
            let found: HashSet<_> = tokio::net::lookup_host((host.as_str(), *port)).await?.map(Target::Tcp).collect();
            if found.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(found) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_away_when_none_of_its_addresses_can_be_reached() {
        let replicas = Replicas::new();
        let is_up = || replicas.subscribe().borrow().is_up();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        // As `localhost` often is, with a broker that listens on the second alone.
        let (first, second) = (Target::Tcp("[::1]:1".parse().unwrap()), Target::Tcp("127.0.0.1:1".parse().unwrap()));
        replicas.found(&HashSet::from([first.clone(), second.clone()]));
        replicas.failed(&first, &refused());
        assert_eq!(is_up(), None, "the second is on its way");
        replicas.failed(&second, &refused());
        assert_eq!(is_up(), Some(false));
        // An address that the name no longer has is nobody's hope.
        let replicas = Replicas::new();
        replicas.found(&HashSet::from([first.clone(), second]));
        replicas.found(&HashSet::from([first.clone()]));
        replicas.failed(&first, &refused());
        assert_eq!(replicas.subscribe().borrow().is_up(), Some(false));
    }
}
