//! The client: answers from memory, asks the broker for the rest, and keeps what it holds fresh.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

use crate::authorization::{Authorization, OwnedRequest, Request};
use crate::builder::Builder;
use crate::cache::{Cache, Change, Entry, Found, Key, KeyRef, Question, lock};
use crate::connection::Connection;
use crate::error::{ArgumentError, BrokerError, Error};
use crate::flights::Flights;
use crate::lifetime::after;
use crate::origin::Origin;
use crate::presence::Presence;
use crate::tasks::Tasks;
use crate::transport::Channel;
use crate::v1::credential_broker_client::CredentialBrokerClient;
use crate::v1::{
    EndTaskRequest, GetAuthorizationRequest, RegisterTaskRequest, ReportRejectedRequest, Task, TaskKind,
    register_task_request,
};
use crate::watch::watch;

/// The longest `detail` of a report that the broker takes, in bytes.
const DETAIL: usize = 256;
/// How often a question is asked again because a withdrawal overtook its answer.
const AGAIN: usize = 3;

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

/// What the clones of a client and its background work share.
pub(crate) struct Core {
    pub(crate) cache: Cache,
    pub(crate) tasks: Tasks,
    pub(crate) silence: Duration,
    pub(crate) presence: Presence,
    /// How many streams are up: two while one takes over from another.
    pub(crate) streams: AtomicUsize,
    identity: String,
    timeout: Duration,
    channel: Channel,
    origin: Uri,
    asks: Flights<Ask>,
    reports: Flights<(Arc<Key>, String)>,
    last_error: Mutex<Option<BrokerError>>,
}

/// What one call asks the broker for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Ask {
    key: Arc<Key>,
    target: String,
    min_validity: Duration,
}

impl Ask {
    fn is_plain(&self) -> bool {
        self.target.is_empty() && self.min_validity.is_zero()
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
        let (cache, changes) = Cache::new(builder.cache_size, builder.idle);
        let core = Arc::new(Core {
            cache,
            tasks,
            silence: builder.silence,
            presence: Presence::default(),
            streams: AtomicUsize::new(0),
            identity: builder.identity,
            timeout: builder.timeout,
            channel,
            origin,
            asks: Flights::new(),
            reports: Flights::new(),
            last_error: Mutex::default(),
        });
        core.begin(builder.watch.then_some(changes));
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
        let target = target(request.target_url);
        match self.core.find(&request, &target) {
            Some(held) => Ok(held),
            // Boxed, so that the future of a use that is answered from memory stays small.
            None => Box::pin(self.core.ask(&request, target)).await,
        }
    }

    /// Returns the headers if they are held: without waiting, for code that is not async.
    ///
    /// A value that is due is refreshed in the background, as with [`authorization`](Self::authorization).
    #[must_use]
    pub fn held(&self, request: Request<'_>) -> Option<Authorization> {
        self.core.find(&request, &target(request.target_url))
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
        let target = Some(match thread {
            "" => register_task_request::Target::Kind(TaskKind::Background.into()),
            thread => register_task_request::Target::ThreadId(thread.to_owned()),
        });
        let request = RegisterTaskRequest { target, identity: self.core.identity(identity).to_owned() };
        let mut stub = self.stub();
        let answer = self.core.unless_ended(async { Ok(stub.register_task(request).await?) }).await?;
        Ok(answer.into_inner().task.unwrap_or_default())
    }

    /// Ends the task of a thread: the broker gives no authorization for it any more, and withdraws what is held.
    ///
    /// # Errors
    ///
    /// As [`authorization`](Self::authorization).
    pub async fn end_task(&self, thread: &str, identity: &str) -> Result<Task, Error> {
        let request =
            EndTaskRequest { thread_id: thread.to_owned(), identity: self.core.identity(identity).to_owned() };
        let mut stub = self.stub();
        let answer = self.core.unless_ended(async { Ok(stub.end_task(request).await?) }).await?;
        Ok(answer.into_inner().task.unwrap_or_default())
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
            last_error: lock(&self.core.last_error).clone(),
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
            let request = request.borrowed();
            let outcome = core.ask(&request, target(request.target_url)).await;
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

impl Core {
    fn begin(self: &Arc<Self>, changes: Option<mpsc::UnboundedReceiver<Change>>) {
        if let Some(changes) = changes {
            self.tasks.spawn(watch(Arc::clone(self), changes));
        }
        self.tasks.spawn(Arc::clone(self).sweep());
        self.tasks.spawn(Arc::clone(self).tell_presence());
    }

    fn end(&self) {
        self.tasks.end();
        self.cache.close();
    }

    pub(crate) fn stub(&self) -> CredentialBrokerClient<Channel> {
        CredentialBrokerClient::with_origin(self.channel.clone(), self.origin.clone())
    }

    /// Keeps the last failure, for `state`.
    pub(crate) fn note(&self, error: BrokerError) {
        tracing::debug!(%error, "a call to the credential broker failed");
        *lock(&self.last_error) = Some(error);
    }

    fn is_watching(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0
    }

    /// The identity as it is asked for.
    fn identity<'a>(&'a self, named: &'a str) -> &'a str {
        if named.is_empty() { &self.identity } else { named }
    }

    fn key<'a>(&'a self, request: &Request<'a>) -> KeyRef<'a> {
        KeyRef { identity: self.identity(request.identity), scope: request.scope, thread: request.thread }
    }

    /// Looks into memory; begins a refresh where one is due.
    fn find(self: &Arc<Self>, request: &Request<'_>, target: &str) -> Option<Authorization> {
        let now = Instant::now();
        match self.cache.find(self.key(request), target, request.min_validity, now, self.is_watching()) {
            Found::Nothing => None,
            Found::Value(value) => Some(value),
            Found::Due(value, entry) => {
                self.refresh(entry);
                Some(value)
            }
        }
    }

    /// Asks the broker, with all others who ask the same.
    async fn ask(self: &Arc<Self>, request: &Request<'_>, target: String) -> Result<Authorization, Error> {
        let key = Arc::new(self.key(request).to_key());
        let deadline = after(Instant::now(), request.timeout.unwrap_or(self.timeout));
        let ask = Ask { key, target, min_validity: request.min_validity };
        // Whoever was first may have been answered since this one looked.
        let held = || self.cache.peek(ask.key.borrowed(), &ask.target, ask.min_validity, Instant::now());
        self.unless_ended(self.fly(&ask, deadline, held)).await
    }

    /// Asks, unless something that will do is `held` by now.
    async fn fly(
        self: &Arc<Self>,
        ask: &Ask,
        deadline: Instant,
        held: impl Fn() -> Option<Authorization>,
    ) -> Result<Authorization, Error> {
        let begin = |deadline| {
            let (core, ask) = (Arc::clone(self), ask.clone());
            async move { core.get(ask, deadline).await.inspect_err(|error| core.note_any(error)) }
        };
        self.in_time(self.asks.join(ask.clone(), deadline, self.timeout, held, begin)).await
    }

    /// Calls `GetAuthorization`, again where the answer was overtaken by a withdrawal.
    async fn get(&self, ask: Ask, deadline: Instant) -> Result<Authorization, Error> {
        for _ in 0..=AGAIN {
            let asked =
                Question { target: &ask.target, least: ask.min_validity, rejected: None, since: self.cache.changes() };
            let mut call = tonic::Request::new(GetAuthorizationRequest {
                scope: ask.key.scope.clone(),
                thread_id: ask.key.thread.clone(),
                identity: ask.key.identity.clone(),
                target_url: ask.target.clone(),
                min_validity: Some(whole(ask.min_validity)),
                expected_account_id: String::new(),
            });
            call.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = match self.stub().get_authorization(call).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    let error = BrokerError::from(status);
                    if error.is_refusal() && ask.is_plain() {
                        self.cache.refuse(ask.key.borrowed(), &asked);
                    }
                    return Err(error.into());
                }
            };
            self.presence.heard();
            let value = received(&ask.key, answer.authorization)?;
            if let Some(value) = self.cache.store(&value, &asked, Instant::now()) {
                return Ok(value);
            }
        }
        Err(Status::aborted("each answer was withdrawn before it came").into())
    }

    /// Fetches the next value of an entry in the background.
    fn refresh(self: &Arc<Self>, entry: Arc<Entry>) {
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            let ask = Ask { key: Arc::clone(&entry.key), target: String::new(), min_validity: Duration::ZERO };
            let next = || entry.value().filter(|value| Instant::now() < value.lifetime().refresh());
            match core.fly(&ask, after(Instant::now(), core.timeout), next).await {
                Ok(_) => entry.refreshed(),
                Err(error) => {
                    let wait = error.broker().and_then(|error| error.retry_delay);
                    core.cache.refresh_failed(&entry, wait, Instant::now());
                }
            }
        });
    }

    async fn report(self: &Arc<Self>, rejected: &Authorization, detail: &str) -> Result<Authorization, Error> {
        if self.tasks.have_ended() {
            return Err(Error::Closed);
        }
        let (key, revision) = (rejected.key(), rejected.revision().to_owned());
        let request = ReportRejectedRequest {
            scope: key.scope.clone(),
            thread_id: key.thread.clone(),
            revision: revision.clone(),
            http_status: 401,
            detail: shortened(detail).to_owned(),
        };
        let begin = |deadline| {
            let (core, key, request) = (Arc::clone(self), Arc::clone(key), request.clone());
            async move { core.call_report(&key, request, deadline).await.inspect_err(|error| core.note_any(error)) }
        };
        let deadline = after(Instant::now(), self.timeout);
        let other = || self.cache.find_other(rejected, Instant::now());
        let report = self.reports.join((Arc::clone(key), revision), deadline, self.timeout, other, begin);
        self.unless_ended(self.in_time(report)).await
    }

    async fn call_report(
        &self,
        key: &Arc<Key>,
        request: ReportRejectedRequest,
        deadline: Instant,
    ) -> Result<Authorization, Error> {
        let revision = request.revision.clone();
        let asked =
            Question { target: "", least: Duration::ZERO, rejected: Some(&revision), since: self.cache.changes() };
        let mut call = tonic::Request::new(request);
        call.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = match self.stub().report_rejected(call).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let error = BrokerError::from(status);
                // What is wrong with the report says nothing about what is held.
                if error.is_refusal() && error.code != Code::InvalidArgument {
                    self.cache.refuse(key.borrowed(), &asked);
                }
                return Err(error.into());
            }
        };
        let value = received(key, answer.authorization)?;
        if let Some(value) = self.cache.store(&value, &asked, Instant::now()) {
            return Ok(value);
        }
        // Something else than the rejection withdrew it meanwhile.
        let ask = Ask { key: Arc::clone(key), target: String::new(), min_validity: Duration::ZERO };
        self.get(ask, deadline).await
    }

    fn note_any(&self, error: &Error) {
        if let Some(error) = error.broker() {
            self.note(error.clone());
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<Result<T, Error>, Elapsed>>) -> Result<T, Error> {
        work.await.unwrap_or_else(|_| Err(self.channel.too_late().into()))
    }

    /// Whatever fails because the client ends, or after, fails as that.
    async fn unless_ended<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let outcome = self.tasks.unless_ended(work).await.unwrap_or(Err(Error::Closed));
        outcome.map_err(|error| if self.tasks.have_ended() { Error::Closed } else { error })
    }

    /// Lets go of what nobody uses, and refreshes what connections stand on.
    async fn sweep(self: Arc<Self>) {
        loop {
            let (next, due) = self.cache.sweep(Instant::now(), self.is_watching());
            for entry in due {
                self.refresh(entry);
            }
            let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.cache.stored.notified() => {}
            }
        }
    }

    /// Tells what connections say of the broker. One counts only when the broker has said a word on it.
    async fn tell_presence(self: Arc<Self>) {
        let mut connected = self.channel.connected();
        let mut before = None;
        while connected.changed().await.is_ok() {
            let up = connected.borrow_and_update().is_up();
            match up {
                Some(true) if up != before => self.presence.heard(),
                Some(false) => self.presence.lost(&self.cache),
                _ => {}
            }
            before = up;
        }
    }
}

/// What a target is remembered as: its origin. What has none is for the broker to refuse.
fn target(url: &str) -> String {
    if url.is_empty() {
        return String::new();
    }
    let origin = url.parse().ok().and_then(|url: Uri| Origin::of(&url));
    origin.map_or_else(|| url.to_owned(), |origin| origin.to_string())
}

/// As much of a text as a report takes.
fn shortened(text: &str) -> &str {
    let end = (0..=DETAIL.min(text.len())).rfind(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// A time as the broker takes it; what is too long for a message is so for the broker too, which then says so.
fn whole(time: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX).min(315_576_000_000);
    prost_types::Duration { seconds, nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default() }
}

fn received(key: &Arc<Key>, sent: Option<crate::v1::Authorization>) -> Result<Authorization, Error> {
    Ok(Authorization::new(Arc::clone(key), sent.unwrap_or_default(), Instant::now())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(200)), "é".repeat(128));
        assert_eq!(shortened(&format!("x{}", "é".repeat(200))).len(), 255);
    }

    #[test]
    fn a_target_is_its_origin() {
        assert_eq!(target("https://A.example/path?query"), "https://a.example:443");
        assert_eq!(target("no url"), "no url");
        assert_eq!(target(""), "");
    }
}
