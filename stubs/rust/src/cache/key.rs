//! What an entry is kept under, and how it is found without making a key.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::Equivalent;

use super::entry::Entry;

/// What an entry is kept under: the identity as it was asked for, empty where none was.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) identity: String,
    pub(crate) scope: String,
    pub(crate) thread: String,
}

/// A key to look up. Hashes as the key does.
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
pub(super) struct ByKey(pub(super) Arc<Entry>);

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
