//! A gRPC channel that behaves as `service_config.json` says.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

use super::connect::Connector;
use super::replicas::{Connected, Replicas};
use crate::address::Address;
use crate::backoff::Backoff;

const GUARD: HeaderName = HeaderName::from_static("x-credential-broker");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const AGENT: &str = concat!("credentialbroker-rust/", env!("CARGO_PKG_VERSION"));
const WATCH: &str = "/credentialbroker.v1.CredentialBroker/WatchAuthorizations";
const ATTEMPTS: usize = 4;

/// The way to the broker, for the generated clients. Clones are cheap and share all connections.
///
/// Every call carries the guard metadata. A unary call waits for a connection, has a deadline (10 s, unless the client
/// or `tonic::Request::set_timeout` says otherwise), and is sent up to four times while the broker is UNAVAILABLE.
#[derive(Clone)]
pub struct Channel(Arc<Shared>);

/// A whole answer.
type Whole = (http::response::Parts, http_body_util::Collected<tonic::codegen::Bytes>);

struct Shared {
    address: Address,
    timeout: Duration,
    connector: Connector,
    replicas: Arc<Replicas>,
    begun: Once,
}

impl Channel {
    pub(crate) fn new(address: Address, timeout: Duration, connector: Connector) -> Self {
        Self(Arc::new(Shared { address, timeout, connector, replicas: Replicas::new(), begun: Once::new() }))
    }

    /// Says when connections come and go.
    pub(crate) fn connected(&self) -> tokio::sync::watch::Receiver<Connected> {
        self.0.replicas.subscribe()
    }

    /// Connects, if nothing did yet: making a client does no I/O.
    fn begin(&self) {
        self.0.begun.call_once(|| {
            let Shared { address, connector, replicas, .. } = &*self.0;
            connector.tasks.spawn(Arc::clone(replicas).keep(address.clone(), connector.clone()));
        });
    }

    async fn send(self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        self.begin();
        self.0.connector.look();
        request.headers_mut().insert(GUARD, HeaderValue::from_static("1"));
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if request.uri().path() == WATCH {
            return self.attempt(request, false).await;
        }
        let asked = request.headers().get(TIMEOUT).and_then(parse_timeout);
        let deadline = Instant::now() + asked.unwrap_or(self.0.timeout);
        self.send_until(deadline, request).await
    }

    /// Sends a unary call until it is answered, other than with UNAVAILABLE.
    async fn send_until(&self, deadline: Instant, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut backoff = Backoff::of_call();
        for attempt in 1.. {
            let mut request = Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
            request.headers_mut().insert(TIMEOUT, write_timeout(deadline - Instant::now()));
            let answer = timeout_at(deadline, self.attempt_whole(request)).await;
            let Ok(answer) = answer else { return Err(self.too_late()) };
            let wait = backoff.next(fastrand::f64());
            if attempt == ATTEMPTS || !is_unavailable(&answer) || Instant::now() + wait >= deadline {
                let (head, body) = answer?;
                return Ok(Response::from_parts(head, Body::new(body.map_err(|never: Infallible| match never {}))));
            }
            sleep(wait).await;
        }
        unreachable!("the last attempt returns")
    }

    /// Sends a unary call once and reads the whole answer, so that its status is known.
    async fn attempt_whole(&self, request: Request<Body>) -> Result<Whole, Status> {
        let (head, body) = self.attempt(request, true).await?.into_parts();
        Ok((head, body.collect().await?))
    }

    /// Sends once. A connection that takes no more calls was never asked, so that the next one is: no attempt is lost.
    async fn attempt(&self, mut request: Request<Body>, wait: bool) -> Result<Response<Body>, Status> {
        loop {
            let mut replica = self.0.replicas.pick(wait).await?;
            if replica.sender.ready().await.is_err() {
                self.0.replicas.remove(replica.id);
                continue;
            }
            match replica.sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| Body::new(body.map_err(|error| lost(&error))))),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => {
                        self.0.replicas.remove(replica.id);
                        request = unsent;
                    }
                    None => return Err(lost(error.error())),
                },
            }
        }
    }

    /// What a call ends with that had no answer in time.
    pub(crate) fn too_late(&self) -> Status {
        Status::deadline_exceeded(match self.0.replicas.failure() {
            Some(failure) => format!("no connection in time: {failure}"),
            None => "no answer in time".to_owned(),
        })
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Channel").field("address", &self.0.address.to_string()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let tasks = this.0.connector.tasks.clone();
            tasks
                .unless_ended(this.send(request))
                .await
                .unwrap_or_else(|| Err(Status::cancelled("the client is closed")))
        })
    }
}

/// A connection that broke, as gRPC says it.
fn lost(error: &hyper::Error) -> Status {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Status::unavailable(format!("the connection was lost: {text}"))
}

/// Whether the broker, or a proxy before it, says that the same call may succeed a little later.
fn is_unavailable(answer: &Result<Whole, Status>) -> bool {
    let (head, body) = match answer {
        Err(status) => return status.code() == Code::Unavailable,
        Ok(whole) => whole,
    };
    let code = |headers: &HeaderMap| headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    match code(&head.headers).or_else(|| body.trailers().and_then(code)) {
        Some(code) => code == Code::Unavailable,
        None => matches!(head.status.as_u16(), 429 | 502 | 503 | 504),
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = u64::from(number.parse::<u32>().ok()?);
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Writes `grpc-timeout` in the finest unit that fits.
fn write_timeout(left: Duration) -> HeaderValue {
    const LIMIT: u128 = 100_000_000;
    let text = match left {
        left if left.as_micros() < LIMIT => format!("{}u", left.as_micros()),
        left if left.as_millis() < LIMIT => format!("{}m", left.as_millis()),
        left => format!("{}S", u128::from(left.as_secs()).min(LIMIT - 1)),
    };
    HeaderValue::try_from(text).expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn timeouts_are_written_as_they_are_read() {
        for (left, text) in [
            (Duration::ZERO, "0u"),
            (Duration::from_millis(1_500), "1500000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
        ] {
            assert_eq!(write_timeout(left), text);
            assert_eq!(parse_timeout(&write_timeout(left)), Some(left));
        }
        assert_eq!(write_timeout(Duration::MAX), "99999999S");
        for text in ["", "u", "1", "1x", "-1S", "99999999999S"] {
            assert_eq!(parse_timeout(&HeaderValue::from_static(text)), None, "{text}");
        }
    }

    #[test]
    fn the_channel_does_what_the_shipped_service_config_says() {
        let mut call = Backoff::of_call();
        let waits: Vec<_> = (0..6).map(|_| call.next(1.0).as_secs_f64()).collect();
        assert_eq!(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]);
        let expected = json!({
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": [{"service": "credentialbroker.v1.CredentialBroker"}],
                    "waitForReady": true,
                    "timeout": format!("{}s", crate::builder::TIMEOUT.as_secs()),
                    "retryPolicy": {
                        "maxAttempts": ATTEMPTS,
                        "initialBackoff": format!("{}s", waits[0]),
                        "maxBackoff": format!("{}s", waits[5]),
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                },
                {
                    "name": [{"service": "credentialbroker.v1.CredentialBroker", "method": "WatchAuthorizations"}],
                    "waitForReady": false,
                },
            ],
        });
        let shipped: serde_json::Value = serde_json::from_str(include_str!("../../service_config.json")).unwrap();
        assert_eq!(shipped, expected);
    }
}
