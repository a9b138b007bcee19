//! Uses that go on until they are stopped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use credentialbroker::Client;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::Command;

pub struct Traffic {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Seen>>,
}

/// What one worker saw.
#[derive(Default)]
struct Seen {
    calls: usize,
    failed: usize,
    errors: HashMap<String, usize>,
    slowest: Duration,
    longest_expired: Duration,
    revisions: HashSet<String>,
}

impl Traffic {
    pub fn start(client: &Client, command: &Command) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = command.workers.max(1);
        let every = Duration::from_secs_f64(workers as f64 / command.rate);
        let workers = (0..workers)
            .map(|n| tokio::spawn(work(client.clone(), command.clone(), n, workers, every, Arc::clone(&stop))))
            .collect();
        Self { stop, workers }
    }

    pub async fn stop(self) -> Value {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for worker in self.workers {
            let seen = worker.await.expect("no worker panics");
            all.calls += seen.calls;
            all.failed += seen.failed;
            for (text, count) in seen.errors {
                *all.errors.entry(text).or_default() += count;
            }
            all.slowest = all.slowest.max(seen.slowest);
            all.longest_expired = all.longest_expired.max(seen.longest_expired);
            all.revisions.extend(seen.revisions);
        }
        json!({
            "calls": all.calls,
            "failed": all.failed,
            "errors": all.errors,
            "slowest_seconds": all.slowest.as_secs_f64(),
            "longest_expired_seconds": all.longest_expired.as_secs_f64(),
            "revisions": all.revisions.len(),
        })
    }
}

async fn work(
    client: Client,
    command: Command,
    first: usize,
    step: usize,
    every: Duration,
    stop: Arc<AtomicBool>,
) -> Seen {
    let mut seen = Seen::default();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut n = first;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let began = Instant::now();
        let answer = client.authorization(command.request(n)).await;
        n += step;
        seen.calls += 1;
        seen.slowest = seen.slowest.max(began.elapsed());
        match answer {
            Ok(authorization) => {
                // Counted to when the use began: what this task waited for afterwards is not the client's doing.
                let expired = began.saturating_duration_since(authorization.expires_at());
                seen.longest_expired = seen.longest_expired.max(expired);
                seen.revisions.insert(authorization.revision().to_owned());
            }
            Err(error) => {
                seen.failed += 1;
                *seen.errors.entry(error.to_string()).or_default() += 1;
            }
        }
    }
    seen
}
