//! The adapters against a backend in this process.

mod fake_broker;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use credentialbroker::tower::{AuthorizationLayer, SendError};
use credentialbroker::{Interceptor, Request};
use fake_broker::FakeBroker;
use http::{HeaderMap, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::Code;
use tower::{Layer as _, Service as _, ServiceExt as _};
use tower_http::follow_redirect::FollowRedirectLayer;
use tower_http::follow_redirect::policy::SameOrigin;

const REQUEST: Request<'_> = Request::new("inference", "t");

/// An HTTP server: `/reject` is always 401, `/reject-once` the first time and
/// `/reject-then-cut` too, which then says nothing; `/redirect?URL` leads there, all else is 200.
struct Backend {
    origin: String,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Backend {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&kept);
                let answer = service_fn(move |request: http::Request<Incoming>| {
                    let seen = Arc::clone(&seen);
                    async move { answer(&request, &seen).ok_or("cut") }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Self { origin, seen }
    }

    fn seen(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(request: &http::Request<Incoming>, seen: &Mutex<Vec<HeaderMap>>) -> Option<Response<String>> {
    let mut seen = seen.lock().unwrap();
    seen.push(request.headers().clone());
    let builder = Response::builder();
    match request.uri().path() {
        "/reject-then-cut" if seen.len() == 2 => return None,
        "/reject" | "/reject-then-cut" => builder.status(401),
        "/reject-once" if seen.len() == 1 => builder.status(401),
        "/redirect" => builder.status(307).header("location", request.uri().query().unwrap()),
        _ => builder.status(200),
    }
    .body(request.uri().query().unwrap_or_default().to_owned())
    .ok()
}

fn http() -> legacy::Client<HttpConnector, String> {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

fn get(url: &str) -> http::Request<String> {
    http::Request::get(url).body(String::new()).unwrap()
}

#[tokio::test]
async fn a_401_is_reported_and_the_request_sent_once_more() {
    let (broker, backend) = (FakeBroker::start().await, Backend::start().await);
    let client = broker.client();
    let mut service = AuthorizationLayer::new(&client, &backend.origin, REQUEST).unwrap().layer(http());
    for (path, status, seen, reported) in [("/reject-once", 200, 2, 1), ("/", 200, 3, 1), ("/reject", 401, 5, 2)] {
        let answer = service.ready().await.unwrap().call(get(&format!("{}{path}", backend.origin))).await.unwrap();
        assert_eq!((answer.status().as_u16(), backend.seen().len()), (status, seen), "{path}");
        assert_eq!(broker.counts.reported(), reported, "{path}");
    }
    assert_eq!(broker.counts.asked(), 1);
    let values: Vec<_> = backend.seen().iter().map(|headers| headers["authorization"].clone()).collect();
    assert_ne!(values[0], values[1]);
    assert_eq!(values[1], values[2]);
}

#[tokio::test]
async fn a_second_attempt_that_is_cut_off_leaves_the_401_with_its_body() {
    let (broker, backend) = (FakeBroker::start().await, Backend::start().await);
    let client = broker.client();
    let layer = AuthorizationLayer::new(&client, &backend.origin, REQUEST).unwrap();
    let text = "rejected".repeat(1_000);
    // Not a GET, which hyper would try again by itself.
    let request = http::Request::post(format!("{}/reject-then-cut?{text}", backend.origin)).body(String::new());
    let answer = layer.layer(http()).oneshot(request.unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), backend.seen().len(), broker.counts.reported()), (401, 2, 1));
    assert_eq!(answer.body().size_hint().exact(), Some(8_000));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), text);
}

#[tokio::test]
async fn a_layer_asks_with_all_of_its_request() {
    let (broker, backend) = (FakeBroker::start().await, Backend::start().await);
    let client = broker.client();
    let long = REQUEST.min_validity(Duration::from_secs(100));
    let layer = AuthorizationLayer::new(&client, &backend.origin, long).unwrap();
    for asked in [1, 2] {
        layer.clone().layer(http()).oneshot(get(&format!("{}/", backend.origin))).await.unwrap();
        assert_eq!(broker.counts.asked(), asked, "what is held lasts for 60 s only");
    }
    let elsewhere = AuthorizationLayer::<String>::new(&client, &backend.origin, REQUEST.target_url("https://b.test/"));
    assert!(elsewhere.is_err());
}

#[tokio::test]
async fn a_body_that_cannot_be_sent_again_is_not() {
    let (broker, backend) = (FakeBroker::start().await, Backend::start().await);
    let client = broker.client();
    let layer = AuthorizationLayer::with_repeat(&client, &backend.origin, REQUEST, |_: &String| None).unwrap();
    let answer = layer.layer(http()).oneshot(get(&format!("{}/reject-once", backend.origin))).await.unwrap();
    assert_eq!((answer.status().as_u16(), backend.seen().len(), broker.counts.reported()), (401, 1, 1));
}

#[tokio::test]
async fn headers_take_the_place_of_any_of_their_name() {
    let (broker, backend) = (FakeBroker::start().await, Backend::start().await);
    let client = broker.client();
    let layer = AuthorizationLayer::new(&client, &backend.origin, REQUEST).unwrap();
    let mut request = get(&format!("{}/", backend.origin));
    for value in ["mine", "mine too"] {
        request.headers_mut().append("authorization", value.parse().unwrap());
    }
    request.headers_mut().insert("x-kept", "yes".parse().unwrap());
    layer.layer(http()).oneshot(request).await.unwrap();
    let seen = &backend.seen()[0];
    assert_eq!(seen.get_all("authorization").iter().count(), 1);
    assert_ne!(seen["authorization"], "mine");
    assert!(seen.contains_key("chatgpt-account-id") && seen.contains_key("x-kept"));
}

#[tokio::test]
async fn no_header_follows_a_redirect_to_another_origin() {
    let (broker, backend, trap) = (FakeBroker::start().await, Backend::start().await, Backend::start().await);
    let client = broker.client();
    let layer = AuthorizationLayer::new(&client, &backend.origin, REQUEST).unwrap();
    let request = || get(&format!("{}/redirect?{}/x", backend.origin, trap.origin));

    let kept = FollowRedirectLayer::with_policy(SameOrigin::new()).layer(layer.layer(http()));
    assert_eq!(kept.oneshot(request()).await.unwrap().status(), 307);
    let followed = FollowRedirectLayer::new().layer(layer.layer(http()));
    assert!(matches!(followed.oneshot(request()).await, Err(SendError::Origin)));
    let direct = layer.layer(http()).oneshot(get(&trap.origin)).await;
    assert!(matches!(direct, Err(SendError::Origin)));
    assert_eq!(backend.seen().len(), 2);
    assert!(trap.seen().is_empty());
}

#[tokio::test]
async fn the_interceptor_gives_what_is_held_and_only_for_tls() {
    let broker = FakeBroker::start().await;
    let client = broker.client();
    assert!(Interceptor::new(&client, &Uri::from_static("http://backend.test"), REQUEST).is_err());
    let backend = Uri::from_static("https://backend.test");
    let mut interceptor = Interceptor::new(&client, &backend, REQUEST).unwrap();
    let mut call = || tonic::service::Interceptor::call(&mut interceptor, tonic::Request::new(()));

    broker.counts.fail_with(Some(Code::PermissionDenied));
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..1_000 {
        assert_eq!(call().unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(tasks(), before + 1, "one fetch, however many calls");
    fake_broker::until("the refusal is known", || call().unwrap_err().code() == Code::PermissionDenied).await;
    // What may pass is UNAVAILABLE, which callers try again, whatever it is called by the broker.
    broker.counts.fail_with(Some(Code::Internal));
    fake_broker::until("it is told", || call().unwrap_err().message().contains("no authorization is held:")).await;
    assert_eq!(call().unwrap_err().code(), Code::Unavailable);
    broker.counts.fail_with(None);
    fake_broker::until("it is fetched in the background", || call().is_ok()).await;
    let metadata = call().unwrap().metadata().clone().into_headers();
    assert_eq!(&metadata, client.held(REQUEST).unwrap().headers());
    assert!(metadata.values().all(http::HeaderValue::is_sensitive));
}
