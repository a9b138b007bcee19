//! The headers as metadata of gRPC calls.

use http::Uri;
use tonic::{Request, Status};

use crate::authorization;
use crate::client::Client;
use crate::error::ArgumentError;

/// Attaches the headers of an authorization to every gRPC call, as a [`tonic::service::Interceptor`].
///
/// An interceptor cannot wait: it answers from what the client holds, and fails a call with `UNAVAILABLE` where that is
/// nothing. Call [`Client::authorization`] once before, which also says what is wrong. While calls go on the value is
/// kept fresh; after a longer rest the first call may fail, and has the next value fetched.
#[derive(Clone, Debug)]
pub struct Interceptor {
    client: Client,
    scope: String,
    thread: String,
    identity: String,
}

impl Interceptor {
    /// Makes an interceptor for the channel to `backend`, with the scope, thread and identity of `request`.
    ///
    /// # Errors
    ///
    /// `backend` is not an `https` URL: the headers are not sent without TLS.
    pub fn new(client: &Client, backend: &Uri, request: authorization::Request<'_>) -> Result<Self, ArgumentError> {
        if backend.scheme_str() != Some("https") {
            return Err(ArgumentError::new(format!("headers are sent over TLS only, and {backend} is not https")));
        }
        Ok(Self {
            client: client.clone(),
            scope: request.scope.to_owned(),
            thread: request.thread.to_owned(),
            identity: request.identity.to_owned(),
        })
    }

    fn request(&self) -> authorization::Request<'_> {
        authorization::Request::new(&self.scope, &self.thread).identity(&self.identity)
    }
}

impl tonic::service::Interceptor for Interceptor {
    fn call(&mut self, mut call: Request<()>) -> Result<Request<()>, Status> {
        let Some(held) = self.client.held(self.request()) else {
            let this = self.clone();
            self.client.tasks().spawn(async move { drop(this.client.authorization(this.request()).await) });
            return Err(Status::unavailable("no authorization of the credential broker is held"));
        };
        held.attach(call.metadata_mut().as_mut());
        Ok(call)
    }
}
