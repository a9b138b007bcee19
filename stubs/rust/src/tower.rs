//! The headers on HTTP requests, as a tower layer.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use crate::authorization;
use crate::client::Client;
use crate::error::ArgumentError;
use crate::origin::Origin;

/// Attaches the headers of an authorization to every request, and after a 401 reports it and sends the request once
/// more.
///
/// Made for one origin: a request to any other fails before anything is sent. Lay it directly around the HTTP client,
/// below whatever follows redirects, and let that client follow none itself: then a redirect comes back through this
/// layer, which lets it pass to the same origin only.
pub struct AuthorizationLayer<B>(Arc<Settings<B>>);

struct Settings<B> {
    client: Client,
    origin: Origin,
    target_url: String,
    scope: String,
    thread: String,
    identity: String,
    repeat: fn(&B) -> Option<B>,
}

impl<B: Clone> AuthorizationLayer<B> {
    /// Makes a layer for requests to `origin` (for example `https://backend.example.com`), with the scope, thread and
    /// identity of `request`.
    ///
    /// # Errors
    ///
    /// `origin` is not an `http` or `https` URL without a path.
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
        Ok(Self(Arc::new(Settings {
            client: client.clone(),
            target_url: parsed.to_string(),
            origin: parsed,
            scope: request.scope.to_owned(),
            thread: request.thread.to_owned(),
            identity: request.identity.to_owned(),
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
            Self::Origin => formatter.write_str("the request goes to another origin than the headers are for"),
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
    R: Send,
{
    type Response = Response<R>;
    type Error = SendError<S::Error>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Self::Error>> + Send>>;

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
    async fn send<S, R>(&self, mut http: S, mut request: Request<B>) -> Result<Response<R>, SendError<S::Error>>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        if Origin::of(request.uri()).as_ref() != Some(&self.origin) {
            return Err(SendError::Origin);
        }
        let asked = authorization::Request::new(&self.scope, &self.thread).identity(&self.identity);
        let held = self.client.authorization(asked.target_url(&self.target_url)).await;
        let held = held.map_err(SendError::Authorization)?;
        let again = self.copy(&request);
        held.attach(request.headers_mut());
        let answer = http.call(request).await.map_err(SendError::Http)?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let better = self.client.report_rejected(&held, "").await;
        let (Ok(better), Some(mut again)) = (better, again) else { return Ok(answer) };
        better.attach(again.headers_mut());
        // Whatever keeps the second from being answered, the first was.
        if poll_fn(|context| http.poll_ready(context)).await.is_err() {
            return Ok(answer);
        }
        Ok(http.call(again).await.unwrap_or(answer))
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
