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
    /// The numbers of its last change, of its last withdrawal, and of its last one that no better value follows.
    changed: AtomicU64,
    withdrawn: AtomicU64,
    revoked: AtomicU64,
    /// Whether a stream keeps it fresh, when one is up.
    pub(crate) is_watched: AtomicBool,
    connections: AtomicUsize,
    /// Counts how often connections made with the value had to go.
    breaks: watch::Sender<u64>,
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

    fn usable(&self, target: &str, least: Duration, now: Instant) -> Option<Authorization> {
        let value = match &*self.value.load() {
            Some(value) if value.lifetime.lasts(now, least) => Authorization(Arc::clone(value)),
            _ => return None,
        };
        (target.is_empty() || read(&self.origins).iter().any(|origin| origin == target)).then_some(value)
    }

    /// Replaces the value; `replacing` is held.
    fn put(&self, value: Authorization, change: u64) {
        let tag = value.connection_tag().to_owned();
        let before = self.value.swap(Some(value.0)).map(Authorization);
        if before.is_some_and(|before| before.connection_tag() != tag) {
            // They were allowed to another credential.
            write(&self.origins).clear();
            self.breaks.send_modify(|breaks| *breaks += 1);
        }
        self.changed.store(change, Ordering::Relaxed);
        lock(&self.refresh).reset();
        self.refresh_from.store(0, Ordering::Relaxed);
    }

    /// Drops the value, the origins that were allowed for it, and the connections made with it.
    fn drop_value(&self) {
        let _replacing = lock(&self.replacing);
        self.forget();
    }

    /// As `drop_value`; `replacing` is held.
    fn forget(&self) {
        self.value.store(None);
        write(&self.origins).clear();
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Remembers an origin that the broker allowed.
    fn allow(&self, target: &str) {
        let mut origins = write(&self.origins);
        if !target.is_empty() && !origins.iter().any(|origin| origin == target) {
            if origins.len() == ORIGINS {
                origins.remove(0);
            }
            origins.push(target.to_owned());
        }
    }

    /// A background refresh was answered, though perhaps not kept: another may begin.
    pub(crate) fn refreshed(&self) {
        let _ = self.refresh_from.compare_exchange(RUNNING, 0, Ordering::Relaxed, Ordering::Relaxed);
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

/// A question to the broker, of which the answer is to be kept.
pub(crate) struct Question<'a> {
    /// The origin that it named, or nothing.
    pub(crate) target: &'a str,
    /// How long the answer must last.
    pub(crate) least: Duration,
    /// The revision that was rejected, where the question is a report.
    pub(crate) rejected: Option<&'a str>,
    /// How many changes there were when it was asked.
    pub(crate) since: u64,
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
    /// How many values were put and withdrawn so far; each change has its number.
    changed: AtomicU64,
    /// The number of the last withdrawal of an entry that is gone.
    gone: AtomicU64,
    changes: mpsc::UnboundedSender<Change>,
    /// Says that the time of the next sweep may have changed.
    pub(crate) stored: Arc<Notify>,
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
            changed: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            changes,
            stored: Arc::default(),
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
        let Some(value) = entry.usable(target, least, now) else { return Found::Nothing };
        let watched = watched && entry.is_watched.load(Ordering::Relaxed);
        if now >= value.lifetime().due(watched) && self.begin_refresh(entry, now) {
            return Found::Due(value, Arc::clone(entry));
        }
        Found::Value(value)
    }

    /// As `find`, beside a use: it counts as none, and begins nothing.
    pub(crate) fn peek(&self, key: KeyRef<'_>, target: &str, least: Duration, now: Instant) -> Option<Authorization> {
        self.entry(key)?.usable(target, least, now)
    }

    /// Returns a value of another revision than the given one's, if that is what is held.
    pub(crate) fn find_other(&self, value: &Authorization, now: Instant) -> Option<Authorization> {
        let held = self.entry(value.key().borrowed())?.value()?;
        (held.revision() != value.revision() && held.lifetime().lasts(now, Duration::ZERO)).then_some(held)
    }

    /// Counts a connection that was made with `value`, unless that is no longer held.
    pub(crate) fn connect(&self, value: &Authorization) -> Option<(Connected, watch::Receiver<u64>)> {
        let entry = self.entry(value.key().borrowed())?;
        let replacing = lock(&entry.replacing);
        let held = entry.value().is_some_and(|held| held.connection_tag() == value.connection_tag());
        let breaks = held.then(|| {
            entry.connections.fetch_add(1, Ordering::Relaxed);
            entry.breaks.subscribe()
        })?;
        drop(replacing);
        Some((Connected { entry, stored: Arc::clone(&self.stored) }, breaks))
    }

    pub(crate) fn entry(&self, key: KeyRef<'_>) -> Option<Arc<Entry>> {
        self.entries.load().get(&key).map(|ByKey(entry)| Arc::clone(entry))
    }

    /// How many changes there were so far, for a question that is about to be asked.
    pub(crate) fn changes(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }

    /// Numbers a change.
    fn next_change(&self) -> u64 {
        self.changed.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps an answer. Returns what may be used: where the stream brought a newer value meanwhile, that; after a
    /// withdrawal nothing, for the broker may have answered before it, and is to be asked again.
    pub(crate) fn store(&self, value: &Authorization, asked: &Question<'_>, now: Instant) -> Option<Authorization> {
        let mut subscriptions = lock(&self.changing);
        if self.closed.load(Ordering::Relaxed) {
            return Some(value.clone());
        }
        let Some(entry) = self.entry(value.key().borrowed()) else {
            if self.gone.load(Ordering::Relaxed) > asked.since {
                return None;
            }
            *subscriptions += 1;
            let entry = self.add(value.clone(), *subscriptions, now);
            entry.allow(asked.target);
            self.stored.notify_one();
            return Some(value.clone());
        };
        let _replacing = lock(&entry.replacing);
        // The rejection itself withdraws what was rejected.
        let taken = if asked.rejected.is_some() { &entry.revoked } else { &entry.withdrawn };
        if taken.load(Ordering::Relaxed) > asked.since {
            return None;
        }
        let newer = entry.value().filter(|held| {
            entry.changed.load(Ordering::Relaxed) > asked.since
                && held.lifetime().lasts(now, Duration::ZERO)
                && asked.rejected.is_none_or(|rejected| held.revision() != rejected)
        });
        if let Some(held) = newer {
            if held.connection_tag() != value.connection_tag() && !asked.target.is_empty() {
                // The broker allowed the origin to another credential.
                return None;
            }
            entry.allow(asked.target);
            return Some(if held.lifetime().lasts(now, asked.least) { held } else { value.clone() });
        }
        entry.put(value.clone(), self.next_change());
        entry.allow(asked.target);
        self.stored.notify_one();
        Some(value.clone())
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
            changed: AtomicU64::new(self.next_change()),
            withdrawn: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
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
    fn remove(&self, entry: &Arc<Entry>) {
        let _changing = lock(&self.changing);
        self.remove_all(std::slice::from_ref(entry));
    }

    /// The broker refused a question of which the answer would be kept here: the entry goes, unless something newer came
    /// meanwhile, or it holds another revision than the one that was rejected.
    pub(crate) fn refuse(&self, key: KeyRef<'_>, question: &Question<'_>) {
        let _changing = lock(&self.changing);
        let Some(entry) = self.entry(key) else { return };
        let goes = match question.rejected {
            Some(rejected) => entry.value().is_some_and(|held| held.revision() == rejected),
            // What was withdrawn stays subscribed: the broker sends a value when there is one again.
            None => entry.value().is_some() && entry.changed.load(Ordering::Relaxed) <= question.since,
        };
        if goes {
            entry.withdrawn.store(self.next_change(), Ordering::Relaxed);
            self.remove_all(std::slice::from_ref(&entry));
        }
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
        entry.drop_value();
        self.gone.fetch_max(entry.withdrawn.load(Ordering::Relaxed), Ordering::Relaxed);
        let _ = self.changes.send(Change::Removed(entry.subscription));
    }

    /// Takes a value that came without being asked for. An entry that nobody uses goes instead.
    pub(crate) fn take(&self, entry: &Arc<Entry>, value: Authorization, now: Instant) {
        if now >= self.idle_from(entry) && !entry.is_connected() {
            self.remove(entry);
        } else {
            let replacing = lock(&entry.replacing);
            entry.put(value, self.next_change());
            drop(replacing);
            self.stored.notify_one();
        }
    }

    /// Drops the value of an entry, which stays subscribed: another may follow. `follows`: a better one does, for what
    /// was rejected.
    pub(crate) fn withdraw(&self, entry: &Entry, follows: bool) {
        let replacing = lock(&entry.replacing);
        let change = self.next_change();
        entry.changed.store(change, Ordering::Relaxed);
        entry.withdrawn.store(change, Ordering::Relaxed);
        if !follows {
            entry.revoked.store(change, Ordering::Relaxed);
        }
        entry.forget();
        drop(replacing);
        self.stored.notify_one();
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
                let at = lifetime.due(watched && entry.is_watched.load(Ordering::Relaxed));
                if now < at {
                    at
                } else {
                    if self.begin_refresh(entry, now) {
                        due.push(Arc::clone(entry));
                    }
                    now + Duration::from_secs(1)
                }
            } else {
                let at = lifetime.map_or(now, |value| value.refresh()).max(self.idle_from(entry));
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
            entry.drop_value();
        }
    }
}

/// One connection that was made with a value; dropped with it.
pub(crate) struct Connected {
    entry: Arc<Entry>,
    stored: Arc<Notify>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.entry.connections.fetch_sub(1, Ordering::Relaxed);
        // From now on the entry may be idle.
        self.stored.notify_one();
    }
}

/// Nothing that is guarded here is left half-way by a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(guarded: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    guarded.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(guarded: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    guarded.write().unwrap_or_else(PoisonError::into_inner)
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

    const PLAIN: Question<'_> = Question { target: "", least: Duration::ZERO, rejected: None, since: 0 };

    /// Answers a question that was asked after so many changes; returns the revision that may be used.
    fn answer(cache: &Cache, value: &Authorization, asked: &Question<'_>, since: u64) -> Option<String> {
        let given = cache.store(value, &Question { since, ..*asked }, Instant::now())?;
        Some(given.revision().to_owned())
    }

    fn put(cache: &Cache, value: &Authorization) -> Arc<Entry> {
        answer(cache, value, &PLAIN, cache.changes()).unwrap();
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
        cache.entry(key("t")).unwrap().is_watched.store(true, Ordering::Relaxed);
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
        let (_connected, breaks) = cache.connect(&value("a", "a", "")).unwrap();
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
        let (connection, _breaks) = cache.connect(&value("connected", "a", "")).unwrap();
        connected.is_watched.store(true, Ordering::Relaxed);
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
        drop(connection);
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
        let (_connected, breaks) = cache.connect(&value("t", "a", "one")).unwrap();
        cache.take(&entry, value("t", "b", "one"), Instant::now());
        assert_eq!(*breaks.borrow(), 0);
        cache.take(&entry, value("t", "c", "two"), Instant::now());
        assert_eq!(*breaks.borrow(), 1);
        assert!(cache.connect(&value("t", "a", "one")).is_none(), "made with what is no longer held");
        cache.withdraw(&entry, false);
        assert_eq!(*breaks.borrow(), 2);
        cache.take(&entry, value("t", "c", "two"), Instant::now());
        assert_eq!((*breaks.borrow(), use_it(&cache, "t").as_str()), (2, "c"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_a_withdrawal_overtook_is_not_kept() {
        let (cache, _changes) = cache(9);
        let before = cache.changes();
        let entry = put(&cache, &value("t", "a", ""));
        let seen = cache.changes();
        cache.withdraw(&entry, true);
        for since in [before, seen] {
            assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, since), None);
        }
        assert_eq!(use_it(&cache, "t"), "");
        // Also when the entry itself has gone since.
        advance(300 * SECOND).await;
        cache.sweep(Instant::now(), true);
        assert!(cache.entry(key("t")).is_none());
        assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, seen), None);
        assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, cache.changes()).as_deref(), Some("b"));
        assert_eq!(use_it(&cache, "t"), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_a_report_outlives_the_withdrawal_of_what_was_rejected_and_no_other() {
        let report = Question { rejected: Some("a"), ..PLAIN };
        for (follows, kept) in [(true, Some("b")), (false, None)] {
            let (cache, _changes) = cache(9);
            let entry = put(&cache, &value("t", "a", ""));
            let seen = cache.changes();
            cache.withdraw(&entry, follows);
            assert_eq!(answer(&cache, &value("t", "b", ""), &report, seen).as_deref(), kept);
            assert_eq!(use_it(&cache, "t"), kept.unwrap_or_default());
        }
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        let seen = cache.changes();
        cache.take(&entry, value("t", "c", ""), Instant::now());
        assert_eq!(answer(&cache, &value("t", "b", ""), &report, seen).as_deref(), Some("c"), "what came is newer");
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_answer_does_not_replace_what_the_stream_brought() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        let seen = cache.changes();
        cache.take(&entry, value("t", "pushed", ""), Instant::now());
        assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, seen).as_deref(), Some("pushed"));
        // What is held is too short for this one, which has the answer for itself.
        let long = Question { least: 60 * SECOND, ..PLAIN };
        assert_eq!(answer(&cache, &value("t", "b", ""), &long, seen).as_deref(), Some("b"));
        assert_eq!(use_it(&cache, "t"), "pushed");
        advance(60 * SECOND).await;
        assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, seen).as_deref(), Some("b"));
        assert_eq!(use_it(&cache, "t"), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_drops_what_it_is_about() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        let question = Question { since: cache.changes(), ..PLAIN };
        cache.take(&entry, value("t", "b", ""), Instant::now());
        cache.refuse(key("t"), &question);
        cache.refuse(key("t"), &Question { rejected: Some("a"), ..PLAIN });
        assert_eq!(use_it(&cache, "t"), "b", "something newer came");
        cache.withdraw(&entry, true);
        cache.refuse(key("t"), &Question { rejected: Some("b"), ..PLAIN });
        cache.refuse(key("t"), &Question { since: cache.changes(), ..PLAIN });
        assert!(cache.entry(key("t")).is_some(), "the next value is still to come");
        cache.take(&entry, value("t", "c", ""), Instant::now());
        cache.refuse(key("t"), &Question { rejected: Some("c"), ..PLAIN });
        assert!(cache.entry(key("t")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn origins_go_with_a_withdrawal_and_with_another_tag() {
        let (cache, _changes) = cache(9);
        let origin = "https://a:443";
        let asked = Question { target: origin, ..PLAIN };
        let named = || used(&cache, "t", origin, Duration::ZERO, false);
        answer(&cache, &value("t", "a", "one"), &asked, cache.changes());
        let entry = cache.entry(key("t")).unwrap();
        cache.take(&entry, value("t", "b", "one"), Instant::now());
        assert_eq!(named(), "b");
        let seen = cache.changes();
        cache.take(&entry, value("t", "c", "two"), Instant::now());
        assert_eq!(named(), "");
        // An answer for the credential of before allows nothing to this one.
        assert_eq!(answer(&cache, &value("t", "b", "one"), &asked, seen), None);
        assert_eq!(named(), "");
        answer(&cache, &value("t", "d", "two"), &asked, cache.changes());
        assert_eq!(named(), "d");
        cache.withdraw(&entry, false);
        cache.take(&entry, value("t", "d", "two"), Instant::now());
        assert_eq!(named(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_withdrawn_goes_when_it_is_idle_and_has_no_connection() {
        let (cache, mut receiver) = Cache::new(9, 5 * SECOND);
        let entry = put(&cache, &value("t", "a", ""));
        let (connected, _breaks) = cache.connect(&value("t", "a", "")).unwrap();
        cache.withdraw(&entry, false);
        cache.stored.notified().await;
        assert_eq!(cache.sweep(Instant::now(), true).0, None);
        drop(connected);
        cache.stored.notified().await;
        assert_eq!(cache.sweep(Instant::now(), true).0, Some(Instant::now() + 5 * SECOND));
        advance(5 * SECOND).await;
        cache.sweep(Instant::now(), true);
        assert_eq!(changes(&mut receiver), ["+t", "-1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_whose_answer_was_not_kept_is_followed_by_another() {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        advance(30 * SECOND).await;
        assert_eq!(use_it(&cache, "t"), "a*");
        entry.refreshed();
        assert_eq!(use_it(&cache, "t"), "a*");
    }

    #[tokio::test(start_paused = true)]
    async fn eight_origins_are_remembered() {
        let (cache, _changes) = cache(9);
        put(&cache, &value("t", "a", ""));
        let named = |origin: usize| used(&cache, "t", &format!("https://{origin}:443"), Duration::ZERO, false);
        assert_eq!(named(0), "");
        for origin in 0..9 {
            let target = format!("https://{origin}:443");
            answer(&cache, &value("t", "a", ""), &Question { target: &target, ..PLAIN }, cache.changes());
        }
        assert_eq!((named(0), named(1), named(8)), (String::new(), "a".to_owned(), "a".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_cache_keeps_nothing() {
        let (cache, _changes) = cache(9);
        put(&cache, &value("t", "a", ""));
        let (_connected, breaks) = cache.connect(&value("t", "a", "")).unwrap();
        cache.close();
        assert_eq!(*breaks.borrow(), 1);
        answer(&cache, &value("t", "b", ""), &PLAIN, cache.changes());
        assert_eq!(use_it(&cache, "t"), "");
    }
}
