//! One authorization that is kept: its value, what is allowed with it, who uses it, and when it is refreshed.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::key::Key;
use crate::authorization::{Authorization, Inner};
use crate::backoff::Backoff;
use crate::lifetime::{Lifetime, after};
use crate::locks::{lock, read, write};

/// So many origins are remembered with an entry.
const ORIGINS: usize = 8;

/// Stands in `refresh_from` while a refresh is under way.
const RUNNING: u64 = u64::MAX;

/// What is kept under one key. Readers of the value take no lock: it is replaced as a whole.
pub(crate) struct Entry {
    pub(crate) key: Arc<Key>,
    /// Names its subscription on every stream.
    pub(crate) subscription: u64,
    /// Whether a stream keeps it fresh, when one is up.
    pub(crate) is_watched: AtomicBool,
    value: ArcSwapOption<Inner>,
    /// Held while the value is replaced.
    replacing: Mutex<()>,
    /// The numbers of its last change, of its last withdrawal, and of its last one that no better value follows.
    pub(super) changed: AtomicU64,
    pub(super) withdrawn: AtomicU64,
    pub(super) revoked: AtomicU64,
    origins: RwLock<Vec<String>>,
    connections: AtomicUsize,
    /// Counts how often connections made with the value had to go.
    breaks: watch::Sender<u64>,
    refresh: Mutex<Backoff>,
    /// When it was made. The times below are nanoseconds since then.
    made: Instant,
    used: AtomicU64,
    /// When the next background refresh may begin, or `RUNNING`.
    refresh_from: AtomicU64,
}

impl Entry {
    pub(super) fn new(value: Authorization, subscription: u64, change: u64, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::clone(value.key()),
            subscription,
            is_watched: AtomicBool::new(false),
            value: ArcSwapOption::new(Some(value.0)),
            replacing: Mutex::default(),
            changed: AtomicU64::new(change),
            withdrawn: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            origins: RwLock::default(),
            connections: AtomicUsize::new(0),
            breaks: watch::Sender::new(0),
            refresh: Mutex::new(Backoff::of_stream()),
            made: now,
            used: AtomicU64::new(0),
            refresh_from: AtomicU64::new(0),
        })
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.made).as_nanos()).unwrap_or(RUNNING - 1)
    }

    // --- the value ---

    /// The value, also one that has ended.
    pub(crate) fn value(&self) -> Option<Authorization> {
        self.value.load_full().map(Authorization)
    }

    /// The times of the value.
    pub(super) fn lifetime(&self) -> Option<Lifetime> {
        self.value.load().as_ref().map(|value| value.lifetime)
    }

    /// The value, if it lasts for `least` and may go to `target` where one is named.
    pub(super) fn usable(&self, target: &str, least: Duration, now: Instant) -> Option<Authorization> {
        // Held before the value is looked at, so that they are those of this very value.
        let origins = (!target.is_empty()).then(|| read(&self.origins));
        let value = match &*self.value.load() {
            Some(value) if value.lifetime.lasts(now, least) => Authorization(Arc::clone(value)),
            _ => return None,
        };
        origins.is_none_or(|origins| origins.iter().any(|origin| origin == target)).then_some(value)
    }

    /// Keeps everybody else from replacing the value.
    pub(super) fn replacing(&self) -> MutexGuard<'_, ()> {
        lock(&self.replacing)
    }

    /// Replaces the value; `replacing` is held.
    pub(super) fn put(&self, value: Authorization, change: u64) {
        let tag = value.connection_tag().to_owned();
        let mut origins = write(&self.origins);
        let before = self.value.swap(Some(value.0)).map(Authorization);
        if before.is_some_and(|before| before.connection_tag() != tag) {
            // They were allowed to another credential.
            origins.clear();
            self.break_connections();
        }
        drop(origins);
        self.changed.store(change, Ordering::Relaxed);
        lock(&self.refresh).reset();
        self.refresh_from.store(0, Ordering::Relaxed);
    }

    /// Drops the value, the origins that were allowed for it, and the connections made with it; `replacing` is held.
    pub(super) fn forget(&self) {
        self.value.store(None);
        write(&self.origins).clear();
        self.break_connections();
    }

    /// Remembers an origin that the broker allowed.
    pub(super) fn allow(&self, target: &str) {
        let mut origins = write(&self.origins);
        if !target.is_empty() && !origins.iter().any(|origin| origin == target) {
            if origins.len() == ORIGINS {
                origins.remove(0);
            }
            origins.push(target.to_owned());
        }
    }

    // --- who uses it ---

    /// Counts a use.
    pub(super) fn touch(&self, now: Instant) {
        self.used.store(self.nanos(now), Ordering::Relaxed);
    }

    /// When it was last used.
    pub(super) fn used(&self) -> Instant {
        self.made + Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > 0
    }

    fn break_connections(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    // --- its refresh in the background ---

    /// Whether a background refresh may begin; if so it has.
    pub(super) fn begin_refresh(&self, now: Instant) -> bool {
        let from = self.refresh_from.load(Ordering::Relaxed);
        from <= self.nanos(now)
            && self.refresh_from.compare_exchange(from, RUNNING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A background refresh was answered, though perhaps not kept: another may begin.
    pub(crate) fn refreshed(&self) {
        let _ = self.refresh_from.compare_exchange(RUNNING, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A background refresh failed in a way that may pass: the next one begins after a wait, `least` at least.
    pub(crate) fn refresh_failed(&self, least: Option<Duration>, now: Instant) {
        let wait = lock(&self.refresh).next(fastrand::f64()).max(least.unwrap_or_default());
        self.refresh_from.store(self.nanos(after(now, wait)), Ordering::Relaxed);
    }
}

/// One connection that was made with a value; dropped with it.
pub(crate) struct Connected {
    entry: Arc<Entry>,
    stored: Arc<Notify>,
}

impl Connected {
    /// Counts a connection that was made with `value`, unless that is no longer held; with it comes what says when it
    /// must go. `stored` is told at its end.
    pub(super) fn new(
        entry: Arc<Entry>,
        value: &Authorization,
        stored: Arc<Notify>,
    ) -> Option<(Self, watch::Receiver<u64>)> {
        let replacing = entry.replacing();
        let breaks = entry.value().filter(|held| held.connection_tag() == value.connection_tag()).map(|_| {
            entry.connections.fetch_add(1, Ordering::Relaxed);
            entry.breaks.subscribe()
        })?;
        drop(replacing);
        Some((Self { entry, stored }, breaks))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.entry.connections.fetch_sub(1, Ordering::Relaxed);
        // From now on the entry may be idle.
        self.stored.notify_one();
    }
}
