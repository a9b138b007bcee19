//! What is held in memory, and the rules by which it stays or goes. No I/O.
//!
//! Readers take no lock: the set of entries and the value of each are replaced as a whole.

mod entry;
mod key;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashSet;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::authorization::Authorization;
use crate::locks::lock;

pub(crate) use entry::{Connected, Entry};
use key::ByKey;
pub(crate) use key::{Key, KeyRef};

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
    /// Held while the set is replaced; counts the subscriptions.
    changing: Mutex<u64>,
    capacity: usize,
    idle: Duration,
    closed: AtomicBool,
    /// How many values were put and withdrawn so far; each change has its number.
    changed: AtomicU64,
    /// The number of the last withdrawal that may be about what is not held.
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
            closed: AtomicBool::new(false),
            changed: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            changes,
            stored: Arc::default(),
        };
        (cache, receiver)
    }

    // --- looking ---

    /// Looks for a value that lasts for `least`, and may go to `target` where one is named.
    pub(crate) fn find(&self, key: KeyRef<'_>, target: &str, least: Duration, now: Instant, watched: bool) -> Found {
        let entries = self.entries.load();
        let Some(ByKey(entry)) = entries.get(&key) else { return Found::Nothing };
        entry.touch(now);
        let Some(value) = entry.usable(target, least, now) else { return Found::Nothing };
        let watched = watched && entry.is_watched.load(Ordering::Relaxed);
        if now >= value.lifetime().due(watched) && entry.begin_refresh(now) {
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
        let held = self.entry(value.key().borrowed())?.usable("", Duration::ZERO, now)?;
        (held.revision() != value.revision()).then_some(held)
    }

    /// Counts a connection that was made with `value`, unless that is no longer held.
    pub(crate) fn connect(&self, value: &Authorization) -> Option<(Connected, watch::Receiver<u64>)> {
        Connected::new(self.entry(value.key().borrowed())?, value, Arc::clone(&self.stored))
    }

    /// How many values can be used now, and when the first of them ends.
    pub(crate) fn held(&self, now: Instant) -> (usize, Option<Instant>) {
        let entries = self.entries.load();
        let lifetimes = entries.iter().filter_map(|ByKey(entry)| entry.lifetime());
        let usable = lifetimes.filter(|lifetime| lifetime.lasts(now, Duration::ZERO));
        let ends: Vec<_> = usable.map(|lifetime| lifetime.expire()).collect();
        (ends.len(), ends.into_iter().min())
    }

    fn entry(&self, key: KeyRef<'_>) -> Option<Arc<Entry>> {
        self.entries.load().get(&key).map(|ByKey(entry)| Arc::clone(entry))
    }

    // --- keeping ---

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
            let entry = Entry::new(value.clone(), *subscriptions, self.next_change(), now);
            entry.allow(asked.target);
            self.add(entry);
            self.stored.notify_one();
            return Some(value.clone());
        };
        let _replacing = entry.replacing();
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

    /// Takes a value that came without being asked for, unless whoever brought it is not current any more. An entry that
    /// nobody uses goes instead.
    pub(crate) fn take(
        &self,
        entry: &Arc<Entry>,
        value: Authorization,
        now: Instant,
        is_current: impl FnOnce() -> bool,
    ) {
        if now >= self.idle_from(entry) && !entry.is_connected() {
            let _changing = lock(&self.changing);
            self.remove(std::slice::from_ref(entry));
        } else {
            let replacing = entry.replacing();
            if is_current() {
                entry.put(value, self.next_change());
            }
            drop(replacing);
            self.stored.notify_one();
        }
    }

    /// Adds an entry; the least recently used one goes where there are too many, those with connections last.
    /// `changing` is held.
    fn add(&self, entry: Arc<Entry>) {
        let mut entries = HashSet::clone(&self.entries.load());
        while entries.len() >= self.capacity {
            let used = |entry: &Entry| (entry.is_connected(), entry.used());
            let Some(oldest) = entries.iter().min_by_key(|ByKey(entry)| used(entry)).cloned() else { break };
            entries.remove(&oldest);
            self.part_with(&oldest.0);
        }
        entries.insert(ByKey(Arc::clone(&entry)));
        self.entries.store(Arc::new(entries));
        let _ = self.changes.send(Change::Added(entry));
    }

    // --- dropping ---

    /// Drops the value of an entry, which stays subscribed: another may follow. `follows`: a better one does, for what
    /// was rejected.
    pub(crate) fn withdraw(&self, entry: &Entry, follows: bool) {
        let replacing = entry.replacing();
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

    /// Withdraws what is held of a thread whose task was ended, in every scope, under the identity as it was asked for.
    pub(crate) fn end_task(&self, thread: &str, identity: &str) {
        let _changing = lock(&self.changing);
        for ByKey(entry) in self.entries.load().iter() {
            if entry.key.thread == thread && entry.key.identity == identity {
                self.withdraw(entry, false);
            }
        }
        // Also of what is asked for just now and not held yet. Who waits for another thread's first answer may be asked
        // for once more, which is the price of not remembering every task that ended.
        self.gone.store(self.next_change(), Ordering::Relaxed);
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
            self.remove(std::slice::from_ref(&entry));
        }
    }

    /// Drops entries, as far as they are still there; `changing` is held.
    fn remove(&self, gone: &[Arc<Entry>]) {
        let mut entries = HashSet::clone(&self.entries.load());
        for entry in gone {
            // Another entry may have come under the same key.
            if entries.get(&entry.key.borrowed()).is_some_and(|ByKey(held)| Arc::ptr_eq(held, entry)) {
                entries.remove(&entry.key.borrowed());
                self.part_with(entry);
            }
        }
        self.entries.store(Arc::new(entries));
    }

    /// Nothing will be heard of the entry any more.
    fn part_with(&self, entry: &Entry) {
        let replacing = entry.replacing();
        entry.forget();
        drop(replacing);
        self.gone.fetch_max(entry.withdrawn.load(Ordering::Relaxed), Ordering::Relaxed);
        let _ = self.changes.send(Change::Removed(entry.subscription));
    }

    fn idle_from(&self, entry: &Entry) -> Instant {
        entry.used() + self.idle
    }

    /// Drops the entries that are due and that nobody uses. Returns when to sweep again, and the entries with
    /// connections whose next value should be fetched, as `Found::Due` says.
    pub(crate) fn sweep(&self, now: Instant, watched: bool) -> (Option<Instant>, Vec<Arc<Entry>>) {
        let (mut next, mut idle, mut due) = (None, Vec::new(), Vec::new());
        let _changing = lock(&self.changing);
        for ByKey(entry) in self.entries.load().iter() {
            let lifetime = entry.lifetime();
            let at = if entry.is_connected() {
                let Some(lifetime) = lifetime else { continue };
                let at = lifetime.due(watched && entry.is_watched.load(Ordering::Relaxed));
                if now < at {
                    at
                } else {
                    if entry.begin_refresh(now) {
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
            self.remove(&idle);
        }
        (next, due)
    }

    /// Drops everything, for good.
    pub(crate) fn close(&self) {
        let _changing = lock(&self.changing);
        self.closed.store(true, Ordering::Relaxed);
        for ByKey(entry) in self.entries.swap(Arc::default()).iter() {
            let _replacing = entry.replacing();
            entry.forget();
        }
    }
}
