//! What is held in memory, and the rules by which it stays or goes. No I/O.
//!
//! Readers take no lock: the set of entries and the value of each are replaced as a whole.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use hashbrown::{Equivalent, HashSet};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::authorization::{Authorization, Inner};
use crate::backoff::Backoff;

/// So many origins are remembered with an entry.
const ORIGINS: usize = 8;

/// What an entry is kept under: the identity as it was asked for, empty where none was.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) identity: String,
    pub(crate) scope: String,
    pub(crate) thread: String,
}

/// A key to look up.
#[derive(Clone, Copy, Hash)]
pub(crate) struct KeyRef<'a> {
    pub(crate) identity: &'a str,
    pub(crate) scope: &'a str,
    pub(crate) thread: &'a str,
}

impl KeyRef<'_> {
    pub(crate) fn to_key(self) -> Key {
        Key { identity: self.identity.to_owned(), scope: self.scope.to_owned(), thread: self.thread.to_owned() }
    }
}

impl Key {
    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { identity: &self.identity, scope: &self.scope, thread: &self.thread }
    }
}

/// An entry in the set, found by its key.
#[derive(Clone)]
struct ByKey(Arc<Entry>);

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl Equivalent<ByKey> for KeyRef<'_> {
    fn equivalent(&self, entry: &ByKey) -> bool {
        let key = &*entry.0.key;
        self.thread == key.thread && self.scope == key.scope && self.identity == key.identity
    }
}

/// One authorization that is kept, with what is known of it.
pub(crate) struct Entry {
    pub(crate) key: Arc<Key>,
    /// Names its subscription on every stream.
    pub(crate) subscription: u64,
    value: ArcSwapOption<Inner>,
    /// Held while the value is replaced.
    replacing: Mutex<()>,
    used: AtomicU64,
    origins: RwLock<Vec<String>>,
    withdrawals: AtomicU64,
    connections: AtomicUsize,
    /// Counts how often connections made with the value had to go.
    pub(crate) breaks: watch::Sender<u64>,
    refresh: Mutex<Backoff>,
    /// When the next background refresh may begin; `RUNNING` while one does.
    refresh_from: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

impl Entry {
    /// The value, also one that has ended.
    pub(crate) fn value(&self) -> Option<Authorization> {
        self.value.load_full().map(Authorization)
    }

    /// Replaces the value.
    pub(crate) fn replace(&self, value: Authorization) {
        let _replacing = lock(&self.replacing);
        self.put(value);
    }

    fn put(&self, value: Authorization) {
        let tag = value.connection_tag().to_owned();
        let before = self.value.swap(Some(value.0)).map(Authorization);
        if before.is_some_and(|before| before.connection_tag() != tag) {
            self.breaks.send_modify(|breaks| *breaks += 1);
        }
        lock(&self.refresh).reset();
        self.refresh_from.store(0, Ordering::Relaxed);
    }

    /// Drops the value, and the connections made with it.
    pub(crate) fn withdraw(&self) {
        let _replacing = lock(&self.replacing);
        self.withdrawals.fetch_add(1, Ordering::Relaxed);
        self.value.store(None);
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Counts a connection that was made with `value`, unless that is no longer held.
    pub(crate) fn connect(&self, value: &Authorization) -> Option<watch::Receiver<u64>> {
        let _replacing = lock(&self.replacing);
        let held = self.value().is_some_and(|held| held.connection_tag() == value.connection_tag());
        held.then(|| {
            self.connections.fetch_add(1, Ordering::Relaxed);
            self.breaks.subscribe()
        })
    }

    fn is_connected(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > 0
    }
}

/// What happens to entries, for the stream.
pub(crate) enum Change {
    /// It is new.
    Added(Arc<Entry>),
    /// The entry of this subscription is gone.
    Removed(u64),
}

/// What a look into memory finds.
pub(crate) enum Found {
    /// Nothing that can be used.
    Nothing,
    Value(Authorization),
    /// A value, and the next one should be fetched: the caller must see to it and call `refreshed` or `refresh_failed`.
    Due(Authorization, Arc<Entry>),
}

/// All entries of a client.
pub(crate) struct Cache {
    entries: ArcSwap<HashSet<ByKey>>,
    /// Held while the set is replaced.
    changing: Mutex<u64>,
    capacity: usize,
    idle: Duration,
    began: Instant,
    closed: AtomicBool,
    changes: mpsc::UnboundedSender<Change>,
    /// Says that the time of the next sweep may have changed.
    pub(crate) stored: Notify,
}

impl Cache {
    pub(crate) fn new(capacity: usize, idle: Duration) -> (Self, mpsc::UnboundedReceiver<Change>) {
        let (changes, receiver) = mpsc::unbounded_channel();
        let cache = Self {
            entries: ArcSwap::default(),
            changing: Mutex::new(0),
            capacity: capacity.max(1),
            idle,
            began: Instant::now(),
            closed: AtomicBool::new(false),
            changes,
            stored: Notify::new(),
        };
        (cache, receiver)
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(RUNNING - 1)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.began + Duration::from_nanos(nanos)
    }

    /// Looks for a value that lasts for `least`, and may go to `target` where one is named.
    pub(crate) fn find(&self, key: KeyRef<'_>, target: &str, least: Duration, now: Instant, watched: bool) -> Found {
        let entries = self.entries.load();
        let Some(ByKey(entry)) = entries.get(&key) else { return Found::Nothing };
        entry.used.store(self.nanos(now), Ordering::Relaxed);
        let value = match &*entry.value.load() {
            Some(value) if value.lifetime.lasts(now, least) => Authorization(Arc::clone(value)),
            _ => return Found::Nothing,
        };
        if !target.is_empty() && !read(&entry.origins).iter().any(|origin| origin == target) {
            return Found::Nothing;
        }
        if now >= value.lifetime().due(watched) && self.begin_refresh(entry, now) {
            return Found::Due(value, Arc::clone(entry));
        }
        Found::Value(value)
    }

    /// Returns a value of another revision than the given one's, if that is what is held.
    pub(crate) fn find_other(&self, value: &Authorization, now: Instant) -> Option<Authorization> {
        let held = self.entry(value.key().borrowed())?.value()?;
        (held.revision() != value.revision() && held.lifetime().lasts(now, Duration::ZERO)).then_some(held)
    }

    pub(crate) fn entry(&self, key: KeyRef<'_>) -> Option<Arc<Entry>> {
        self.entries.load().get(&key).map(|ByKey(entry)| Arc::clone(entry))
    }

    /// How often the value under this key was withdrawn so far.
    pub(crate) fn withdrawals(&self, key: KeyRef<'_>) -> u64 {
        self.entry(key).map_or(0, |entry| entry.withdrawals.load(Ordering::Relaxed))
    }

    /// Keeps a value, with the origin that it was asked for. Returns whether it may be used: not when a withdrawal came
    /// since `withdrawals` were counted, for then the broker may have decided on it before.
    pub(crate) fn store(&self, value: &Authorization, target: &str, withdrawals: Option<u64>, now: Instant) -> bool {
        let mut subscriptions = lock(&self.changing);
        if self.closed.load(Ordering::Relaxed) {
            return true;
        }
        let found = self.entry(value.key().borrowed());
        let entry = if let Some(entry) = &found {
            let _replacing = lock(&entry.replacing);
            if withdrawals.is_some_and(|seen| seen != entry.withdrawals.load(Ordering::Relaxed)) {
                return false;
            }
            entry.put(value.clone());
            entry
        } else {
            *subscriptions += 1;
            &self.add(value.clone(), *subscriptions, now)
        };
        if !target.is_empty() {
            let mut origins = entry.origins.write().unwrap_or_else(PoisonError::into_inner);
            if !origins.iter().any(|origin| origin == target) {
                if origins.len() == ORIGINS {
                    origins.remove(0);
                }
                origins.push(target.to_owned());
            }
        }
        drop(subscriptions);
        self.stored.notify_one();
        true
    }

    /// Makes an entry; the least recently used one goes where there are too many. Entries with connections go last.
    fn add(&self, value: Authorization, subscription: u64, now: Instant) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            key: Arc::clone(value.key()),
            subscription,
            value: ArcSwapOption::new(Some(value.0)),
            replacing: Mutex::default(),
            used: AtomicU64::new(self.nanos(now)),
            origins: RwLock::default(),
            withdrawals: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            breaks: watch::Sender::new(0),
            refresh: Mutex::new(Backoff::of_stream()),
            refresh_from: AtomicU64::new(0),
        });
        let mut entries = HashSet::clone(&self.entries.load());
        while entries.len() >= self.capacity {
            let used = |entry: &Entry| (entry.is_connected(), entry.used.load(Ordering::Relaxed));
            let Some(oldest) = entries.iter().min_by_key(|ByKey(entry)| used(entry)).cloned() else { break };
            entries.remove(&oldest);
            self.gone(&oldest.0);
        }
        entries.insert(ByKey(Arc::clone(&entry)));
        self.entries.store(Arc::new(entries));
        let _ = self.changes.send(Change::Added(Arc::clone(&entry)));
        entry
    }

    /// Drops an entry, if it is still there.
    pub(crate) fn remove(&self, entry: &Arc<Entry>) {
        let _changing = lock(&self.changing);
        self.remove_all(std::slice::from_ref(entry));
    }

    fn remove_all(&self, gone: &[Arc<Entry>]) {
        let mut entries = HashSet::clone(&self.entries.load());
        for entry in gone {
            // Another entry may have come under the same key.
            if entries.get(&entry.key.borrowed()).is_some_and(|ByKey(held)| Arc::ptr_eq(held, entry)) {
                entries.remove(&entry.key.borrowed());
                self.gone(entry);
            }
        }
        self.entries.store(Arc::new(entries));
    }

    /// Nothing will be heard of the entry any more.
    fn gone(&self, entry: &Entry) {
        entry.withdraw();
        let _ = self.changes.send(Change::Removed(entry.subscription));
    }

    /// Takes a value that came without being asked for. An entry that nobody uses goes instead.
    pub(crate) fn take(&self, entry: &Arc<Entry>, value: Authorization, now: Instant) {
        if now >= self.idle_from(entry) && !entry.is_connected() {
            self.remove(entry);
        } else {
            entry.replace(value);
            self.stored.notify_one();
        }
    }

    fn idle_from(&self, entry: &Entry) -> Instant {
        self.instant(entry.used.load(Ordering::Relaxed)) + self.idle
    }

    /// Drops the entries that are due and that nobody uses. Returns when to sweep again, and the entries with
    /// connections whose next value should be fetched, as `Found::Due` says.
    pub(crate) fn sweep(&self, now: Instant, watched: bool) -> (Option<Instant>, Vec<Arc<Entry>>) {
        let (mut next, mut idle, mut due) = (None, Vec::new(), Vec::new());
        let _changing = lock(&self.changing);
        for ByKey(entry) in self.entries.load().iter() {
            let lifetime = entry.value.load().as_ref().map(|value| value.lifetime);
            let at = if entry.is_connected() {
                let Some(lifetime) = lifetime else { continue };
                let at = lifetime.due(watched);
                if now < at {
                    at
                } else {
                    if self.begin_refresh(entry, now) {
                        due.push(Arc::clone(entry));
                    }
                    now + Duration::from_secs(1)
                }
            } else {
                let at = lifetime.map_or(now, |lifetime| lifetime.refresh()).max(self.idle_from(entry));
                if at <= now {
                    idle.push(Arc::clone(entry));
                    continue;
                }
                at
            };
            next = Some(next.map_or(at, |next: Instant| next.min(at)));
        }
        if !idle.is_empty() {
            self.remove_all(&idle);
        }
        (next, due)
    }

    /// Whether a background refresh of the entry may begin; if so it has.
    fn begin_refresh(&self, entry: &Entry, now: Instant) -> bool {
        let from = entry.refresh_from.load(Ordering::Relaxed);
        from <= self.nanos(now)
            && entry.refresh_from.compare_exchange(from, RUNNING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A background refresh failed in a way that may pass: the next one begins after a wait, `least` at least.
    pub(crate) fn refresh_failed(&self, entry: &Entry, least: Option<Duration>, now: Instant) {
        let wait = lock(&entry.refresh).next(fastrand::f64()).max(least.unwrap_or_default());
        entry.refresh_from.store(self.nanos(now + wait), Ordering::Relaxed);
    }

    /// How many values can be used now, and when the first of them ends.
    pub(crate) fn held(&self, now: Instant) -> (usize, Option<Instant>) {
        let entries = self.entries.load();
        let ends = entries.iter().filter_map(|ByKey(entry)| entry.value.load().as_ref().map(|value| value.lifetime));
        let ends: Vec<_> = ends.filter(|value| value.lasts(now, Duration::ZERO)).map(|value| value.expire()).collect();
        (ends.len(), ends.into_iter().min())
    }

    /// Drops everything, for good.
    pub(crate) fn close(&self) {
        let _changing = lock(&self.changing);
        self.closed.store(true, Ordering::Relaxed);
        for ByKey(entry) in self.entries.swap(Arc::default()).iter() {
            entry.withdraw();
        }
    }
}

/// One connection that was made with a value; dropped with it.
pub(crate) struct Connected(pub(crate) Arc<Entry>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Nothing that is guarded here is left half-way by a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(guarded: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    guarded.read().unwrap_or_else(PoisonError::into_inner)
}
