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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;
    use prost_types::Timestamp;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(thread: &str) -> KeyRef<'_> {
        KeyRef { identity: "", scope: "inference", thread }
    }

    /// A value that is due in 30 s and ends in 60 s.
    fn value(thread: &str, revision: &str, tag: &str) -> Authorization {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let sent = v1::Authorization {
            server_time: at(0),
            refresh_time: at(30),
            expire_time: at(60),
            revision: revision.to_owned(),
            connection_tag: tag.to_owned(),
            ..v1::Authorization::default()
        };
        Authorization::new(Arc::new(key(thread).to_key()), sent, Instant::now()).unwrap()
    }

    fn cache(capacity: usize) -> (Cache, mpsc::UnboundedReceiver<Change>) {
        Cache::new(capacity, 300 * SECOND)
    }

    fn put(cache: &Cache, value: &Authorization) -> Arc<Entry> {
        assert!(cache.store(value, "", None, Instant::now()));
        cache.entry(value.key().borrowed()).unwrap()
    }

    /// The revision that a use is given, with a star where the next value is to be fetched.
    fn used(cache: &Cache, thread: &str, target: &str, least: Duration, watched: bool) -> String {
        match cache.find(key(thread), target, least, Instant::now(), watched) {
            Found::Nothing => String::new(),
            Found::Value(value) => value.revision().to_owned(),
            Found::Due(value, _) => format!("{}*", value.revision()),
        }
    }

    fn use_it(cache: &Cache, thread: &str) -> String {
        used(cache, thread, "", Duration::ZERO, false)
    }

    fn changes(receiver: &mut mpsc::UnboundedReceiver<Change>) -> Vec<String> {
        let said = |change| match change {
            Change::Added(entry) => format!("+{}", entry.key.thread),
            Change::Removed(subscription) => format!("-{subscription}"),
        };
        std::iter::from_fn(|| receiver.try_recv().ok()).map(said).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_used_until_its_end_and_fetched_once_when_due() {
        let (cache, _changes) = cache(9);
        put(&cache, &value("t", "a", ""));
        assert_eq!(used(&cache, "t", "", 59 * SECOND, false), "a");
        assert_eq!(used(&cache, "t", "", 60 * SECOND, false), "");
        assert_eq!(use_it(&cache, "other"), "");
        advance(30 * SECOND).await;
        assert_eq!(used(&cache, "t", "", Duration::ZERO, true), "a");
        assert_eq!(use_it(&cache, "t"), "a*");
        assert_eq!(use_it(&cache, "t"), "a", "one refresh at a time");
        put(&cache, &value("t", "b", ""));
        assert_eq!(use_it(&cache, "t"), "b");
        advance(60 * SECOND).await;
        assert_eq!(use_it(&cache, "t"), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_refresh_is_tried_again_after_a_wait_that_grows() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        advance(30 * SECOND).await;
        for least in [100, 200, 400] {
            assert_eq!(use_it(&cache, "t"), "a*");
            cache.refresh_failed(&entry, None, Instant::now());
            advance(Duration::from_millis(least - 1)).await;
            assert_eq!(use_it(&cache, "t"), "a", "too soon");
            advance(Duration::from_millis(least + 1)).await;
        }
        assert_eq!(use_it(&cache, "t"), "a*");
        cache.refresh_failed(&entry, Some(5 * SECOND), Instant::now());
        advance(Duration::from_millis(4_999)).await;
        assert_eq!(use_it(&cache, "t"), "a", "sooner than the broker said");
        advance(Duration::from_millis(1)).await;
        assert_eq!(use_it(&cache, "t"), "a*");
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_goes_first_and_those_with_connections_last() {
        let (cache, mut receiver) = cache(3);
        for thread in ["a", "b", "c"] {
            put(&cache, &value(thread, thread, ""));
            advance(SECOND).await;
        }
        use_it(&cache, "a");
        put(&cache, &value("d", "d", ""));
        assert_eq!(["a", "b", "c", "d"].map(|thread| use_it(&cache, thread)), ["a", "", "c", "d"]);
        advance(SECOND).await;
        let connected = put(&cache, &value("a", "a", ""));
        let breaks = connected.connect(&value("a", "a", "")).unwrap();
        advance(SECOND).await;
        use_it(&cache, "c");
        use_it(&cache, "d");
        put(&cache, &value("e", "e", ""));
        assert_eq!(use_it(&cache, "a"), "a");
        assert!(!breaks.has_changed().unwrap());
        assert_eq!(changes(&mut receiver)[..5], ["+a", "+b", "+c", "-2", "+d"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_goes_when_it_is_due() {
        let (cache, mut receiver) = Cache::new(9, 40 * SECOND);
        let began = Instant::now();
        let idle = put(&cache, &value("idle", "a", ""));
        let used = put(&cache, &value("used", "a", ""));
        let connected = put(&cache, &value("connected", "a", ""));
        let _breaks = connected.connect(&value("connected", "a", "")).unwrap();
        assert_eq!(cache.sweep(began, true).0, Some(began + 40 * SECOND));
        advance(40 * SECOND).await;
        use_it(&cache, "used");
        let (next, due) = cache.sweep(Instant::now(), true);
        assert_eq!((next, due.len()), (Some(began + 45 * SECOND), 0));
        assert_eq!(changes(&mut receiver), ["+idle", "+used", "+connected", "-1"]);
        // A value that comes for what is no longer there changes nothing.
        cache.take(&idle, value("idle", "b", ""), Instant::now());
        cache.take(&used, value("used", "b", ""), Instant::now());
        assert_eq!([use_it(&cache, "idle"), use_it(&cache, "used")], ["", "b"]);
        advance(5 * SECOND).await;
        let (_, due) = cache.sweep(Instant::now(), true);
        assert!(due.len() == 1 && Arc::ptr_eq(&due[0], &connected), "a connection keeps its value fresh");
        drop(Connected(connected));
        advance(300 * SECOND).await;
        assert_eq!(cache.sweep(Instant::now(), true).0, None);
        assert_eq!(cache.held(Instant::now()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_comes_for_an_idle_entry_lets_it_go() {
        let (cache, mut receiver) = Cache::new(9, 10 * SECOND);
        let entry = put(&cache, &value("t", "a", ""));
        advance(10 * SECOND).await;
        cache.take(&entry, value("t", "b", ""), Instant::now());
        assert_eq!(use_it(&cache, "t"), "");
        assert_eq!(changes(&mut receiver), ["+t", "-1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_breaks_with_its_tag_and_with_a_withdrawal() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", "one"));
        let breaks = entry.connect(&value("t", "a", "one")).unwrap();
        entry.replace(value("t", "b", "one"));
        assert_eq!(*breaks.borrow(), 0);
        entry.replace(value("t", "c", "two"));
        assert_eq!(*breaks.borrow(), 1);
        assert!(entry.connect(&value("t", "a", "one")).is_none(), "made with what is no longer held");
        entry.withdraw();
        assert_eq!(*breaks.borrow(), 2);
        entry.replace(value("t", "c", "two"));
        assert_eq!((*breaks.borrow(), use_it(&cache, "t").as_str()), (2, "c"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_a_withdrawal_overtook_is_not_kept() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        let seen = cache.withdrawals(key("t"));
        entry.withdraw();
        assert!(!cache.store(&value("t", "b", ""), "", Some(seen), Instant::now()));
        assert_eq!(use_it(&cache, "t"), "");
        assert!(cache.store(&value("t", "b", ""), "", Some(cache.withdrawals(key("t"))), Instant::now()));
        assert_eq!(use_it(&cache, "t"), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn eight_origins_are_remembered() {
        let (cache, _changes) = cache(9);
        put(&cache, &value("t", "a", ""));
        let named = |origin: usize| used(&cache, "t", &format!("https://{origin}:443"), Duration::ZERO, false);
        assert_eq!(named(0), "");
        for origin in 0..9 {
            cache.store(&value("t", "a", ""), &format!("https://{origin}:443"), None, Instant::now());
        }
        assert_eq!((named(0), named(1), named(8)), (String::new(), "a".to_owned(), "a".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_cache_keeps_nothing() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        let breaks = entry.connect(&value("t", "a", "")).unwrap();
        cache.close();
        assert_eq!(*breaks.borrow(), 1);
        cache.store(&value("t", "b", ""), "", None, Instant::now());
        assert_eq!(use_it(&cache, "t"), "");
    }
}
