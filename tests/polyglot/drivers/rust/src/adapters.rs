//! Requests and calls through the adapters.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use credentialbroker::tower::{AnswerBody, AuthorizationLayer, SendError};
use credentialbroker::v1::ListScopesRequest;
use credentialbroker::v1::credential_broker_client::CredentialBrokerClient;
use credentialbroker::{Client, Interceptor};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tonic::codegen::Bytes;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tower::{Layer as _, ServiceExt as _};
use tower_http::follow_redirect::FollowRedirectLayer;
use tower_http::follow_redirect::policy::SameOrigin;

use crate::Command;
use crate::answers::Failure;

/// A body; `once`: as if it were a stream that cannot be sent again.
#[derive(Default)]
struct Payload {
    body: Full<Bytes>,
    once: bool,
}

impl Payload {
    fn repeat(&self) -> Option<Self> {
        (!self.once).then(|| Self { body: self.body.clone(), once: false })
    }
}

impl http_body::Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }
}

pub async fn send_http(client: &Client, command: &Command) -> Result<Value, Failure> {
    let layer = AuthorizationLayer::with_repeat(client, &command.origin, command.request(0), Payload::repeat)?;
    let http = layer.layer(legacy::Client::builder(TokioExecutor::new()).build_http::<Payload>());
    let mut request = Request::builder().method(command.method.as_str()).uri(&command.url);
    for (name, value) in &command.headers {
        request = request.header(name, value);
    }
    let body = Payload { body: Full::from(command.body.clone()), once: command.stream_body };
    let request = request.body(body).map_err(|error| Failure::new("other", &error.to_string()))?;
    let answer = if command.follow_redirects {
        FollowRedirectLayer::with_policy(SameOrigin::new()).layer(http).oneshot(request).await
    } else {
        http.oneshot(request).await
    };
    answer_json(answer.map_err(failure)?).await
}

async fn answer_json(answer: Response<AnswerBody<hyper::body::Incoming>>) -> Result<Value, Failure> {
    let location = answer.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|error| Failure::new("other", &error.to_string()))?;
    Ok(json!({ "status": status, "body": String::from_utf8_lossy(&body.to_bytes()), "location": location }))
}

fn failure(error: SendError<legacy::Error>) -> Failure {
    match error {
        SendError::Origin => Failure::new("origin", &error.to_string()),
        SendError::Authorization(error) => error.into(),
        other => Failure::new("other", &format!("{other:?}")),
    }
}

pub async fn call_echo(client: &Client, command: &Command) -> Result<Value, Failure> {
    let other = |error: &dyn std::fmt::Debug| Failure::new("other", &format!("{error:?}"));
    let scheme = if command.ca_file.is_empty() { "http" } else { "https" };
    let mut endpoint =
        Endpoint::from_shared(format!("{scheme}://{}", command.target)).map_err(|error| other(&error))?;
    let interceptor = Interceptor::new(client, endpoint.uri(), command.request(0))?;
    if !command.ca_file.is_empty() {
        let authorities = std::fs::read(&command.ca_file).map_err(|error| other(&error))?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities));
        if !command.server_name.is_empty() {
            tls = tls.domain_name(&command.server_name);
        }
        endpoint = endpoint.tls_config(tls).map_err(|error| other(&error))?;
    }
    // An interceptor cannot wait: what can be had is fetched before. Without it the call itself must fail.
    let _ = client.authorization(command.request(0)).await;
    let channel = endpoint.connect().await.map_err(|error| other(&error))?;
    let mut echo = CredentialBrokerClient::with_interceptor(channel, interceptor);
    let mut results = Vec::new();
    for _ in 0..command.count.unwrap_or(1) {
        let answer = echo.list_scopes(ListScopesRequest::default()).await;
        let metadata: Vec<_> = answer
            .map_err(|status| Failure::of_call(&status))?
            .into_inner()
            .scopes
            .into_iter()
            .map(|rule| [rule.scope, rule.description])
            .collect();
        results.push(json!({ "metadata": metadata }));
    }
    Ok(json!({ "results": results }))
}
