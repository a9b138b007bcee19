//! What the clones of a client and its background work share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::calls::Calls;
use crate::authorization::{Authorization, Request};
use crate::builder::Builder;
use crate::cache::{Cache, Found, KeyRef};
use crate::error::BrokerError;
use crate::locks::lock;
use crate::origin::Origin;
use crate::presence::Presence;
use crate::tasks::Tasks;
use crate::transport::Channel;
use crate::v1::credential_broker_client::CredentialBrokerClient;
use crate::watch::watch;

pub(crate) struct Core {
    pub(crate) cache: Cache,
    pub(crate) tasks: Tasks,
    pub(crate) silence: Duration,
    pub(crate) presence: Presence,
    /// How many streams are up: two while one takes over from another.
    pub(crate) streams: AtomicUsize,
    pub(super) timeout: Duration,
    pub(super) channel: Channel,
    pub(super) calls: Calls,
    identity: String,
    origin: Uri,
    last_error: Mutex<Option<BrokerError>>,
}

impl Core {
    /// Makes it, and begins its background work.
    pub(super) fn begin(builder: Builder, channel: Channel, origin: Uri, tasks: Tasks) -> Arc<Self> {
        let (cache, changes) = Cache::new(builder.cache_size, builder.idle);
        let core = Arc::new(Self {
            cache,
            tasks,
            silence: builder.silence,
            presence: Presence::default(),
            streams: AtomicUsize::new(0),
            timeout: builder.timeout,
            channel,
            calls: Calls::default(),
            identity: builder.identity,
            origin,
            last_error: Mutex::default(),
        });
        if builder.watch {
            core.tasks.spawn(watch(Arc::clone(&core), changes));
        }
        core.tasks.spawn(Arc::clone(&core).sweep());
        core.tasks.spawn(Arc::clone(&core).tell_presence());
        core
    }

    pub(super) fn end(&self) {
        self.tasks.end();
        self.cache.close();
    }

    pub(crate) fn stub(&self) -> CredentialBrokerClient<Channel> {
        CredentialBrokerClient::with_origin(self.channel.clone(), self.origin.clone())
    }

    /// Keeps the last failure, for `state`.
    pub(crate) fn note(&self, error: BrokerError) {
        tracing::debug!(%error, "a call to the credential broker failed");
        if !error.reason_text.is_empty() {
            // A refusal comes from a broker that is there.
            self.presence.heard();
        }
        *lock(&self.last_error) = Some(error);
    }

    pub(super) fn last_error(&self) -> Option<BrokerError> {
        lock(&self.last_error).clone()
    }

    pub(super) fn is_watching(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0
    }

    /// The identity as it is asked for.
    pub(super) fn identity<'a>(&'a self, named: &'a str) -> &'a str {
        if named.is_empty() { &self.identity } else { named }
    }

    pub(super) fn key<'a>(&'a self, request: &Request<'a>) -> KeyRef<'a> {
        KeyRef { identity: self.identity(request.identity), scope: request.scope, thread: request.thread }
    }

    /// Looks into memory; begins a refresh where one is due.
    pub(super) fn find(self: &Arc<Self>, request: &Request<'_>) -> Option<Authorization> {
        let target = Origin::text_of(request.target_url);
        let found =
            self.cache.find(self.key(request), &target, request.min_validity, Instant::now(), self.is_watching());
        match found {
            Found::Nothing => None,
            Found::Value(value) => Some(value),
            Found::Due(value, entry) => {
                self.refresh(entry);
                Some(value)
            }
        }
    }
}
