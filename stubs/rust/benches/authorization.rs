//! What a use costs when it is answered from memory, and what the RPC costs. Needs a broker (`CREDENTIAL_BROKER_ADDRESS`).

use std::path::Path;

use credentialbroker::v1::GetAuthorizationRequest;
use credentialbroker::{Client, Request};
use criterion::Criterion;
use serde_json::{Value, json};

const REQUEST: Request<'_> = Request::new("inference", "benchmark");

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("criterion");
    let mut criterion = Criterion::default().sample_size(30).output_directory(&folder).configure_from_args();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().expect("a runtime");
    let broker = runtime.block_on(async { Client::new() }).expect("a client");
    runtime.block_on(broker.authorization(REQUEST)).expect("an authorization");

    criterion.bench_function("cached", |bencher| {
        bencher.to_async(&runtime).iter(|| async { broker.authorization(REQUEST).await.expect("it is held") });
    });
    let asked = GetAuthorizationRequest {
        scope: "inference".to_owned(),
        thread_id: "benchmark".to_owned(),
        ..GetAuthorizationRequest::default()
    };
    criterion.bench_function("rpc", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| async { broker.stub().get_authorization(asked.clone()).await.expect("an answer") });
    });
    criterion.final_summary();
    runtime.block_on(broker.close());

    let (cached, rpc) = (mean(&folder, "cached"), mean(&folder, "rpc"));
    println!("{}", json!({ "cached_ns": cached, "rpc_ns": rpc, "ratio": rpc / cached }));
}

/// The mean that criterion has just written, in nanoseconds.
fn mean(folder: &Path, name: &str) -> f64 {
    let text = std::fs::read(folder.join(name).join("new/estimates.json")).expect("criterion's estimates");
    let estimates: Value = serde_json::from_slice(&text).expect("JSON");
    estimates["mean"]["point_estimate"].as_f64().expect("a number")
}
