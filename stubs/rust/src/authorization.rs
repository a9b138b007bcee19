//! What callers ask for and get.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::Code;

use crate::cache::Key;
use crate::error::BrokerError;
use crate::lifetime::Lifetime;
use crate::v1;
use crate::v1::{CredentialKind, DecisionReason};

/// What an authorization is asked for. Costs nothing to make: it borrows its texts.
///
/// ```
/// # use credentialbroker::Request;
/// # use std::time::Duration;
/// let request = Request::new("inference", "thread-1").identity("agents").min_validity(Duration::from_secs(10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Request<'a> {
    pub(crate) scope: &'a str,
    pub(crate) thread: &'a str,
    pub(crate) identity: &'a str,
    pub(crate) target_url: &'a str,
    pub(crate) min_validity: Duration,
    pub(crate) timeout: Option<Duration>,
}

impl<'a> Request<'a> {
    /// What the call is for, and the conversation or run that it belongs to; an empty `thread` for work of none.
    pub const fn new(scope: &'a str, thread: &'a str) -> Self {
        Self { scope, thread, identity: "", target_url: "", min_validity: Duration::ZERO, timeout: None }
    }

    /// The identity. Unset: the client's, else the caller's default at the broker.
    pub const fn identity(self, identity: &'a str) -> Self {
        Self { identity, ..self }
    }

    /// Where the headers will be sent. The broker refuses origins that are not the backend's, and is asked once for each.
    pub const fn target_url(self, target_url: &'a str) -> Self {
        Self { target_url, ..self }
    }

    /// How long the headers must at least last.
    pub const fn min_validity(self, min_validity: Duration) -> Self {
        Self { min_validity, ..self }
    }

    /// How long this use waits at most, instead of as long as the client says. The broker's own limit is 10 s.
    pub const fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }
}

/// A request that is kept.
#[derive(Clone, Debug)]
pub(crate) struct OwnedRequest {
    scope: String,
    thread: String,
    identity: String,
    target_url: String,
    min_validity: Duration,
    timeout: Option<Duration>,
}

impl OwnedRequest {
    pub(crate) fn of(request: Request<'_>) -> Self {
        Self {
            scope: request.scope.to_owned(),
            thread: request.thread.to_owned(),
            identity: request.identity.to_owned(),
            target_url: request.target_url.to_owned(),
            min_validity: request.min_validity,
            timeout: request.timeout,
        }
    }

    pub(crate) fn borrowed(&self) -> Request<'_> {
        Request {
            scope: &self.scope,
            thread: &self.thread,
            identity: &self.identity,
            target_url: &self.target_url,
            min_validity: self.min_validity,
            timeout: self.timeout,
        }
    }
}

/// The headers to attach to calls of one scope, all of them or none, until [`expires_in`](Self::expires_in) is over.
///
/// Clones are cheap and share the headers. Nothing that prints it shows a header's value.
#[derive(Clone)]
pub struct Authorization(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    key: Arc<Key>,
    headers: HeaderMap,
    pub(crate) lifetime: Lifetime,
    kind: CredentialKind,
    reason: DecisionReason,
    fallback_from: CredentialKind,
    stale: bool,
    revision: String,
    identity: String,
    connection_tag: String,
}

impl Authorization {
    /// Takes what the broker sent for `key`, received at `received`.
    pub(crate) fn new(key: Arc<Key>, sent: v1::Authorization, received: Instant) -> Result<Self, BrokerError> {
        let mut headers = HeaderMap::with_capacity(sent.headers.len());
        for header in &sent.headers {
            let malformed =
                || BrokerError::from(tonic::Status::new(Code::Internal, "the broker sent a malformed header"));
            let name = HeaderName::try_from(&header.name).map_err(|_| malformed())?;
            let mut value = HeaderValue::try_from(&header.value).map_err(|_| malformed())?;
            // Also those that are no secret by themselves: none is to be seen in a log.
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let lifetime = Lifetime::new(sent.server_time, sent.refresh_time, sent.expire_time, received);
        Ok(Self(Arc::new(Inner {
            key,
            headers,
            lifetime,
            kind: sent.kind(),
            reason: sent.reason(),
            fallback_from: sent.fallback_from(),
            stale: sent.stale,
            revision: sent.revision,
            identity: sent.identity,
            connection_tag: sent.connection_tag,
        })))
    }

    pub(crate) fn key(&self) -> &Arc<Key> {
        &self.0.key
    }

    pub(crate) fn lifetime(&self) -> &Lifetime {
        &self.0.lifetime
    }

    /// All headers. Each takes the place of any header of its name. The values are marked as sensitive.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// Puts all headers into `target`, each in the place of any of its name.
    pub fn attach(&self, target: &mut HeaderMap) {
        for name in self.0.headers.keys() {
            target.remove(name);
        }
        for (name, value) in &self.0.headers {
            target.append(name, value.clone());
        }
    }

    /// What the headers authenticate with.
    #[must_use]
    pub fn kind(&self) -> CredentialKind {
        self.0.kind
    }

    /// Why it is of this kind.
    #[must_use]
    pub fn reason(&self) -> DecisionReason {
        self.0.reason
    }

    /// The kind that the scope asks for and that was not given; `Unspecified` when nothing was downgraded.
    #[must_use]
    pub fn fallback_from(&self) -> CredentialKind {
        self.0.fallback_from
    }

    /// Whether the broker's answer may lag behind. The headers are usable all the same.
    #[must_use]
    pub fn stale(&self) -> bool {
        self.0.stale
    }

    /// Names the credential: equal for all headers signed with it. Opaque.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.0.revision
    }

    /// Name of the identity that the headers belong to.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.0.identity
    }

    /// Equal as long as connections that were authenticated with the headers may be shared. Opaque.
    #[must_use]
    pub fn connection_tag(&self) -> &str {
        &self.0.connection_tag
    }

    /// When the headers must no longer be used.
    #[must_use]
    pub fn expires_at(&self) -> std::time::Instant {
        self.0.lifetime.expire().into_std()
    }

    /// How long the headers may still be used.
    #[must_use]
    pub fn expires_in(&self) -> Duration {
        self.0.lifetime.expire().saturating_duration_since(Instant::now())
    }

    /// How long until the next value is due. The client fetches it; nobody needs to wait for this.
    #[must_use]
    pub fn refresh_in(&self) -> Duration {
        self.0.lifetime.refresh().saturating_duration_since(Instant::now())
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Authorization")
            .field("headers", &self.0.headers.keys().collect::<Vec<_>>())
            .field("kind", &self.0.kind)
            .field("reason", &self.0.reason)
            .field("identity", &self.0.identity)
            .field("stale", &self.0.stale)
            .field("expires_in", &self.expires_in())
            .finish_non_exhaustive()
    }
}
