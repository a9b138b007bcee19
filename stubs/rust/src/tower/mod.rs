//! The headers on HTTP requests, as a tower layer.

mod answer;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use hyper::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::authorization::{self, OwnedRequest};
use crate::client::Client;
use crate::error::ArgumentError;
use crate::origin::Origin;

pub use answer::AnswerBody;

/// So much of a 401 is read before the request is sent again.
const AHEAD: usize = 64 * 1024;

/// Attaches the headers of an authorization to every request, and after a 401 reports it and sends the request once
/// more.
///
/// Made for one origin: a request to any other fails before anything is sent. Lay it directly around the HTTP client.
///
/// # Redirects
///
/// **The HTTP client itself must follow none**: it would take the headers along, below this layer, where nothing can
/// keep them back. hyper's follows none; reqwest's follows ten unless it is made with `redirect::Policy::none()`.
///
/// A layer above that follows redirects sends a request of its own for each, which this layer cannot tell from any
/// other: one to another origin fails with [`SendError::Origin`]. With tower-http's policy `SameOrigin` that redirect is
/// the answer.
pub struct AuthorizationLayer<B>(Arc<Settings<B>>);

struct Settings<B> {
    client: Client,
    origin: Origin,
    request: OwnedRequest,
    repeat: fn(&B) -> Option<B>,
}

impl<B: Clone> AuthorizationLayer<B> {
    /// Makes a layer for requests to `origin` (for example `https://backend.example.com`), which asks with `request`.
    ///
    /// # Errors
    ///
    /// `origin` is not an `http` or `https` URL without a path, or `request` names another target.
    pub fn new(client: &Client, origin: &str, request: authorization::Request<'_>) -> Result<Self, ArgumentError> {
        Self::with_repeat(client, origin, request, |body| Some(body.clone()))
    }
}

impl<B> AuthorizationLayer<B> {
    /// As [`new`](Self::new), for bodies that not all can be sent again: `repeat` returns a copy of one, or `None`.
    /// Where it returns `None` the 401 is returned after the report.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_repeat(
        client: &Client,
        origin: &str,
        request: authorization::Request<'_>,
        repeat: fn(&B) -> Option<B>,
    ) -> Result<Self, ArgumentError> {
        let parsed = Origin::parse(origin)
            .ok_or_else(|| ArgumentError::new(format!("{origin:?} is not an http or https URL without a path")))?;
        let target = request.target_url;
        if !target.is_empty() && target.parse().ok().and_then(|url| Origin::of(&url)).as_ref() != Some(&parsed) {
            return Err(ArgumentError::new(format!("the request is for {target:?}, and the layer for {origin:?}")));
        }
        Ok(Self(Arc::new(Settings {
            client: client.clone(),
            request: OwnedRequest::of(request.target_url(&parsed.to_string())),
            origin: parsed,
            repeat,
        })))
    }
}

impl<B, S> Layer<S> for AuthorizationLayer<B> {
    type Service = AuthorizationService<S, B>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthorizationService { inner, settings: Arc::clone(&self.0) }
    }
}

/// What [`AuthorizationLayer`] makes of an HTTP client.
pub struct AuthorizationService<S, B> {
    inner: S,
    settings: Arc<Settings<B>>,
}

/// Why a request was not sent, or not answered.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError<E> {
    /// It goes to another origin than the layer is made for. Nothing was sent.
    Origin,
    /// There is no authorization. Nothing was sent.
    Authorization(crate::Error),
    /// The HTTP client failed.
    Http(E),
}

impl<E: fmt::Display> fmt::Display for SendError<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Origin => formatter.write_str(
                "the request, or a redirect that was followed, goes to another origin than the headers are for",
            ),
            Self::Authorization(error) => error.fmt(formatter),
            Self::Http(error) => error.fmt(formatter),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for SendError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Origin => None,
            Self::Authorization(error) => Some(error),
            Self::Http(error) => Some(error),
        }
    }
}

impl<S, B, R> Service<Request<B>> for AuthorizationService<S, B>
where
    S: Service<Request<B>, Response = Response<R>, Future: Send> + Clone + Send + 'static,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data: Send, Error: Send> + Send + Unpin,
{
    type Response = Response<AnswerBody<R>>;
    type Error = SendError<S::Error>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(SendError::Http)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that is ready is the one to call; its clone waits for the next call.
        let next = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, next);
        let settings = Arc::clone(&self.settings);
        Box::pin(async move { settings.send(ready, request).await })
    }
}

impl<B> Settings<B> {
    async fn send<S, R>(
        &self,
        mut http: S,
        mut request: Request<B>,
    ) -> Result<Response<AnswerBody<R>>, SendError<S::Error>>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body + Unpin,
    {
        if Origin::of(request.uri()).as_ref() != Some(&self.origin) {
            return Err(SendError::Origin);
        }
        let held = self.client.authorization(self.request.borrowed()).await.map_err(SendError::Authorization)?;
        let again = self.copy(&request);
        held.attach(request.headers_mut());
        let mut answer = http.call(request).await.map_err(SendError::Http)?.map(AnswerBody::new);
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        if again.is_some() {
            // Its connection is free then, for the second attempt too.
            answer.body_mut().read_ahead(AHEAD).await;
        }
        let better = self.client.report_rejected(&held, "").await;
        let (Ok(better), Some(mut again)) = (better, again) else { return Ok(answer) };
        better.attach(again.headers_mut());
        // Whatever keeps the second from being answered, the first was.
        if poll_fn(|context| http.poll_ready(context)).await.is_err() {
            return Ok(answer);
        }
        Ok(http.call(again).await.map_or(answer, |second| second.map(AnswerBody::new)))
    }

    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        let mut copy = Request::new((self.repeat)(request.body())?);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }
}

impl<B> Clone for AuthorizationLayer<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Clone, B> Clone for AuthorizationService<S, B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), settings: Arc::clone(&self.settings) }
    }
}

impl<B> fmt::Debug for Settings<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Settings").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for AuthorizationLayer<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("AuthorizationLayer").field(&self.0.origin.to_string()).finish()
    }
}

impl<S: fmt::Debug, B> fmt::Debug for AuthorizationService<S, B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AuthorizationService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
