//! The client as its users see it.

mod calls;
mod core;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use crate::authorization::{Authorization, OwnedRequest, Request};
use crate::builder::Builder;
use crate::cache::Cache;
use crate::connection::Connection;
use crate::error::{ArgumentError, BrokerError, Error};
use crate::tasks::Tasks;
use crate::transport::Channel;
use crate::v1::Task;
use crate::v1::credential_broker_client::CredentialBrokerClient;

pub(crate) use self::core::Core;

/// A client of the credential broker: made once for a process and shared by everything in it. Clones are cheap.
///
/// Runs on the tokio runtime that it is made in. [`close`](Self::close), or dropping the last clone, ends its
/// connections and background work.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    _end: Arc<End>,
}

/// Ends the background work, which holds the core too, with the last client.
struct End(Arc<Core>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What a client says of itself at a moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct State {
    /// Whether the stream of the watch is up.
    pub watching: bool,
    /// How many authorizations are held that can be used.
    pub held: usize,
    /// In what time the first of them ends.
    pub first_end_in: Option<Duration>,
    /// The last failure of a call or of the stream. It may be long over.
    pub last_error: Option<BrokerError>,
}

impl Client {
    /// Makes a client from the environment; see [`Builder`]. Does no I/O but reading the TLS files.
    ///
    /// # Errors
    ///
    /// A variable or a file is wrong, or this is not called within a tokio runtime.
    pub fn new() -> Result<Self, ArgumentError> {
        Self::builder().build()
    }

    /// Begins to make a client with settings of its own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn start(builder: Builder, channel: Channel, origin: Uri, tasks: Tasks) -> Self {
        let core = Core::begin(builder, channel, origin, tasks);
        Self { _end: Arc::new(End(Arc::clone(&core))), core }
    }

    /// Returns the headers for a call: from memory when they are held, else from the broker.
    ///
    /// # Errors
    ///
    /// [`Error::Broker`]: the broker refused, or did not answer in time. [`Error::Closed`]: the client is closed.
    ///
    /// Dropping the future cancels this use alone; others who wait for the same answer go on.
    pub async fn authorization(&self, request: Request<'_>) -> Result<Authorization, Error> {
        match self.core.find(&request) {
            Some(held) => Ok(held),
            // Boxed, so that the future of a use that is answered from memory stays small.
            None => Box::pin(self.core.ask(&request)).await,
        }
    }

    /// Returns the headers if they are held: without waiting, for code that is not async.
    ///
    /// A value that is due is refreshed in the background, as with [`authorization`](Self::authorization).
    #[must_use]
    pub fn held(&self, request: Request<'_>) -> Option<Authorization> {
        self.core.find(&request)
    }

    /// Tells the broker that the backend answered 401 to these headers, and returns better ones.
    ///
    /// If other ones are held by now they are returned without a call. `detail` is what the backend said, for the audit
    /// record; at most 256 bytes of it are sent. Never put a header's value into it.
    ///
    /// # Errors
    ///
    /// As [`authorization`](Self::authorization). When the broker refuses, nothing is held any more.
    pub async fn report_rejected(&self, rejected: &Authorization, detail: &str) -> Result<Authorization, Error> {
        self.core.report(rejected, detail).await
    }

    /// Returns the headers to open a connection with that stays open, and watches whether it may.
    ///
    /// # Errors
    ///
    /// As [`authorization`](Self::authorization).
    pub async fn connection(&self, request: Request<'_>) -> Result<Connection, Error> {
        loop {
            let authorization = self.authorization(request).await?;
            if let Some(connection) = Connection::new(self.clone(), authorization) {
                return Ok(connection);
            }
            // It was withdrawn meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// Makes sure that a thread has a live task, so that later uses need not wait for one. Nobody has to call it. An empty
    /// `thread` is background work, an empty `identity` the client's.
    ///
    /// # Errors
    ///
    /// As [`authorization`](Self::authorization).
    pub async fn register_task(&self, thread: &str, identity: &str) -> Result<Task, Error> {
        self.core.register_task(thread, identity).await
    }

    /// Ends the task of a thread: the broker gives no authorization for it any more, and what is held for it is dropped,
    /// in every scope. An empty `identity` is the client's.
    ///
    /// # Errors
    ///
    /// As [`authorization`](Self::authorization).
    pub async fn end_task(&self, thread: &str, identity: &str) -> Result<Task, Error> {
        self.core.end_task(thread, identity).await
    }

    /// Says how the client is.
    #[must_use]
    pub fn state(&self) -> State {
        let now = Instant::now();
        let (held, first_end) = self.core.cache.held(now);
        State {
            watching: self.core.is_watching(),
            held,
            first_end_in: first_end.map(|end| end.saturating_duration_since(now)),
            last_error: self.core.last_error(),
        }
    }

    /// The generated client over this client's connections, for the RPCs that have no method here: guard metadata,
    /// deadline and retries are the same. Its errors become a [`BrokerError`] by `BrokerError::from(status)`.
    #[must_use]
    pub fn stub(&self) -> CredentialBrokerClient<Channel> {
        self.core.stub()
    }

    /// Ends the stream, the connections and all background work, and waits until they have ended. Who waits for an
    /// answer gets [`Error::Closed`]. Closing twice is fine.
    pub async fn close(&self) {
        self.core.end();
        self.core.tasks.ended().await;
    }

    /// Fetches headers in the background, for code that cannot wait.
    pub(crate) fn fetch(&self, request: OwnedRequest, done: impl FnOnce(Option<BrokerError>) + Send + 'static) {
        // Not the client itself: that it is wanted no more ends the work.
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move {
            let outcome = core.ask(&request.borrowed()).await;
            done(outcome.err().and_then(|error| error.broker().cloned()));
        });
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.core.cache
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.core.tasks
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("channel", &self.core.channel).finish_non_exhaustive()
    }
}
