//! A broker in this process that answers at once and counts.

#![allow(dead_code, unreachable_pub)] // each test program uses a part of it

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use credentialbroker::v1::credential_broker_server::{CredentialBroker, CredentialBrokerServer};
use credentialbroker::v1::*;
use credentialbroker::{Builder, Client};
use prost_types::Timestamp;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

/// The identity of whoever names none.
pub const DEFAULT: &str = "agents";

/// What every header's value has in it.
pub const SECRET: &str = "secret-of";

/// What the broker was asked.
#[derive(Default)]
pub struct Counts {
    pub asked: AtomicUsize,
    pub reported: AtomicUsize,
    pub streams: AtomicUsize,
    /// What it answers to everything but a registration, in the place of an answer.
    pub fails: Mutex<Option<Code>>,
    /// To how many attempts for each thread it is UNAVAILABLE before it answers.
    pub puts_off: AtomicUsize,
    /// The attempts that were put off, by thread.
    pub put_off: Mutex<HashMap<String, usize>>,
    /// What it answers to a stream, in the place of one.
    pub stream_fails: Mutex<Option<Status>>,
    /// Whether the next stream says that it is closing, and breaks when another one is open.
    pub stream_closes: AtomicBool,
    /// What tasks were registered for.
    pub registered: Mutex<Vec<String>>,
    /// The threads whose task was ended.
    pub ended: Mutex<HashSet<String>>,
}

impl Counts {
    /// Has everything but a registration fail with this code, or nothing.
    pub fn fail_with(&self, code: Option<Code>) {
        *self.fails.lock().unwrap() = code;
    }

    fn check(&self) -> Result<(), Status> {
        self.fails.lock().unwrap().map_or(Ok(()), |code| Err(Status::new(code, "on purpose")))
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub fn reported(&self) -> usize {
        self.reported.load(Ordering::SeqCst)
    }

    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }
}

/// A running broker, on a runtime of its own; gone with its connections when it is dropped.
pub struct FakeBroker {
    pub address: SocketAddr,
    pub counts: Arc<Counts>,
    runtime: Option<Runtime>,
}

impl FakeBroker {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), Arc::default()).await
    }

    pub async fn start_at(address: SocketAddr, counts: Arc<Counts>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = CredentialBrokerServer::new(Service(Arc::clone(&counts)));
        let listening = runtime.spawn(async move {
            loop {
                // The one before may not be quite gone.
                match TcpListener::bind(address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                }
            }
        });
        let listener = listening.await.unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, counts, runtime: Some(runtime) }
    }

    pub fn builder(&self) -> Builder {
        Client::builder().address(self.address.to_string())
    }

    pub fn client(&self) -> Client {
        self.builder().build().unwrap()
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

struct Service(Arc<Counts>);

/// Counts a stream for as long as the broker has it.
struct OneStream(Arc<Counts>);

impl Drop for OneStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::SeqCst);
    }
}

fn authorization(thread: &str, identity: &str, revision: usize) -> Authorization {
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let header =
        |name: &str, value: String| Header { name: name.to_owned(), value, sensitive: name == "authorization" };
    Authorization {
        headers: vec![
            header("authorization", format!("AgentAssertion {SECRET}-{thread}-{revision}")),
            header("chatgpt-account-id", format!("{SECRET}-account")),
        ],
        kind: CredentialKind::AgentAssertion.into(),
        reason: DecisionReason::TaskAssertion.into(),
        server_time: at(1_000),
        refresh_time: at(1_030),
        expire_time: at(1_060),
        revision: format!("r{revision}"),
        identity: if identity.is_empty() { DEFAULT } else { identity }.to_owned(),
        connection_tag: "tag".to_owned(),
        ..Authorization::default()
    }
}

#[tonic::async_trait]
impl CredentialBroker for Service {
    async fn get_authorization(
        &self,
        request: Request<GetAuthorizationRequest>,
    ) -> Result<Response<GetAuthorizationResponse>, Status> {
        let asked = self.0.asked.fetch_add(1, Ordering::SeqCst);
        self.0.check()?;
        let request = request.into_inner();
        if self.0.ended.lock().unwrap().contains(&request.thread_id) {
            return Err(Status::failed_precondition("ended"));
        }
        {
            let mut put_off = self.0.put_off.lock().unwrap();
            let attempts = put_off.entry(request.thread_id.clone()).or_default();
            if *attempts < self.0.puts_off.load(Ordering::SeqCst) {
                *attempts += 1;
                return Err(Status::unavailable("later"));
            }
        }
        let authorization = Some(authorization(&request.thread_id, &request.identity, asked));
        Ok(Response::new(GetAuthorizationResponse { authorization }))
    }

    async fn report_rejected(
        &self,
        request: Request<ReportRejectedRequest>,
    ) -> Result<Response<ReportRejectedResponse>, Status> {
        self.0.check()?;
        let reported = self.0.reported.fetch_add(1, Ordering::SeqCst);
        let authorization = Some(authorization(&request.into_inner().thread_id, "", 1_000 + reported));
        Ok(Response::new(ReportRejectedResponse { authorization }))
    }

    type WatchAuthorizationsStream = Pin<Box<dyn Stream<Item = Result<WatchAuthorizationsResponse, Status>> + Send>>;

    async fn watch_authorizations(
        &self,
        request: Request<Streaming<WatchAuthorizationsRequest>>,
    ) -> Result<Response<Self::WatchAuthorizationsStream>, Status> {
        if let Some(status) = self.0.stream_fails.lock().unwrap().clone() {
            return Err(status);
        }
        self.0.streams.fetch_add(1, Ordering::SeqCst);
        if self.0.stream_closes.swap(false, Ordering::SeqCst) {
            let counts = Arc::clone(&self.0);
            let closing = watch_authorizations_response::Event::Closing(Closing::default());
            let closing = WatchAuthorizationsResponse { event: Some(closing), ..Default::default() };
            let broken = futures_util::stream::once(async move {
                until("another stream is open", || counts.streams() == 2).await;
                Err(Status::unavailable("it broke"))
            });
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(closing)).chain(broken))));
        }
        let counted = OneStream(Arc::clone(&self.0));
        let silent = request.into_inner().filter_map(move |_| {
            let _counted = &counted;
            None
        });
        Ok(Response::new(Box::pin(silent)))
    }

    async fn register_task(
        &self,
        request: Request<RegisterTaskRequest>,
    ) -> Result<Response<RegisterTaskResponse>, Status> {
        self.0.registered.lock().unwrap().push(format!("{:?}", request.into_inner().target));
        Ok(Response::new(RegisterTaskResponse::default()))
    }

    async fn end_task(&self, request: Request<EndTaskRequest>) -> Result<Response<EndTaskResponse>, Status> {
        self.0.check()?;
        let EndTaskRequest { thread_id, identity } = request.into_inner();
        self.0.ended.lock().unwrap().insert(thread_id.clone());
        let identity = if identity.is_empty() { DEFAULT.to_owned() } else { identity };
        let task = Some(Task { thread_id, identity, state: TaskState::Ended.into(), ..Task::default() });
        Ok(Response::new(EndTaskResponse { task }))
    }

    async fn explain_authorization(
        &self,
        _: Request<ExplainAuthorizationRequest>,
    ) -> Result<Response<ExplainAuthorizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_scopes(&self, _: Request<ListScopesRequest>) -> Result<Response<ListScopesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Waits until something is so; fails when it is not within five seconds.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never so: {what}");
}
