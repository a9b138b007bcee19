//! The headers as metadata of gRPC calls.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use http::Uri;
use tonic::{Request, Status};

use crate::authorization::{self, OwnedRequest};
use crate::client::Client;
use crate::error::{ArgumentError, BrokerError};
use crate::locks::lock;

/// Attaches the headers of an authorization to every gRPC call, as a [`tonic::service::Interceptor`].
///
/// An interceptor cannot wait: it answers from what the client holds. Where that is nothing it fails the call with
/// `UNAVAILABLE` and has the headers fetched, or with the code of the broker's refusal where the last fetch was refused.
/// Call [`Client::authorization`] once before, which also says what is wrong. While calls go on the value is kept fresh;
/// after a longer rest the first call may fail, and has the next value fetched.
#[derive(Clone)]
pub struct Interceptor {
    client: Client,
    request: OwnedRequest,
    fetch: Arc<Fetch>,
}

/// The fetch of headers that were not held.
#[derive(Default)]
struct Fetch {
    is_running: AtomicBool,
    /// Why the last one failed.
    failure: Mutex<Option<BrokerError>>,
}

impl Interceptor {
    /// Makes an interceptor for the channel to `backend`, which asks with `request`.
    ///
    /// # Errors
    ///
    /// `backend` is not an `https` URL: the headers are not sent without TLS.
    pub fn new(client: &Client, backend: &Uri, request: authorization::Request<'_>) -> Result<Self, ArgumentError> {
        if backend.scheme_str() != Some("https") {
            return Err(ArgumentError::new(format!("headers are sent over TLS only, and {backend} is not https")));
        }
        Ok(Self { client: client.clone(), request: OwnedRequest::of(request), fetch: Arc::default() })
    }

    /// Has the headers fetched, once at a time. Returns what a call fails with meanwhile.
    fn fetch(&self) -> Status {
        let failure = lock(&self.fetch.failure).clone();
        if !self.fetch.is_running.swap(true, Ordering::AcqRel) {
            let running = Running(Arc::clone(&self.fetch));
            self.client.fetch(self.request.clone(), move |failure| *lock(&running.0.failure) = failure);
        }
        match failure {
            Some(error) if error.is_refusal() => Status::new(error.code, error.to_string()),
            Some(error) => Status::unavailable(format!("no authorization is held: {error}")),
            None => Status::unavailable("no authorization of the credential broker is held yet"),
        }
    }
}

/// Ends a fetch, also one that the end of the client cut off.
struct Running(Arc<Fetch>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::Release);
    }
}

impl tonic::service::Interceptor for Interceptor {
    fn call(&mut self, mut call: Request<()>) -> Result<Request<()>, Status> {
        let held = self.client.held(self.request.borrowed()).ok_or_else(|| self.fetch())?;
        held.attach(call.metadata_mut().as_mut());
        Ok(call)
    }
}

impl fmt::Debug for Interceptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Interceptor")
            .field("client", &self.client)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
