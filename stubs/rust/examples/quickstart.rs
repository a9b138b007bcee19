//! Calls a protected resource with the broker's headers: `cargo run --example quickstart --features tower -- URL`.

use credentialbroker::tower::AuthorizationLayer;
use credentialbroker::{Client, Request};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use tower::{Layer as _, ServiceExt as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or("http://127.0.0.1:8089/backend-api/codex/models".to_owned());
    let url = http::Uri::try_from(url)?;
    let origin = format!("{}://{}", url.scheme_str().unwrap_or_default(), url.authority().ok_or("no host")?);

    let broker = Client::new()?; // finds the broker by CREDENTIAL_BROKER_ADDRESS; one for the whole process
    let request = Request::new("inference", "quickstart"); // what the calls are for, and the conversation
    let http = legacy::Client::builder(TokioExecutor::new()).build_http::<String>();
    let backend = AuthorizationLayer::new(&broker, &origin, request)?.layer(http);

    let answer = backend.oneshot(http::Request::get(url).body(String::new())?).await?;
    let kind = broker.authorization(request).await?.kind(); // from memory
    println!("{} {}", kind.as_str_name().trim_start_matches("CREDENTIAL_KIND_"), answer.status().as_u16());
    broker.close().await;
    Ok(())
}
