//! Does what the conformance suite says, with the client's public API only. The protocol: tests/polyglot/README.md.

mod adapters;
mod answers;
mod traffic;

use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use credentialbroker::{Authorization, Client, Connection, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use answers::{Failure, authorization_json, result_json, task_json};
use traffic::Traffic;

/// One command. Members that a command does not have are not set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Command {
    id: u64,
    r#do: String,
    client: String,
    // open
    address: String,
    watch: Option<bool>,
    ca_file: String,
    certificate_file: String,
    private_key_file: String,
    server_name: String,
    plaintext: Option<bool>,
    cache_size: Option<usize>,
    idle_seconds: Option<f64>,
    silence_seconds: Option<f64>,
    env: bool,
    // authorization and what is like it
    scope: String,
    thread: String,
    identity: String,
    target_url: String,
    min_validity: f64,
    timeout: Option<f64>,
    count: Option<usize>,
    threads: Vec<String>,
    seconds: f64,
    held: u64,
    detail: String,
    // adapters
    adapter: String,
    origin: String,
    url: String,
    method: String,
    body: String,
    stream_body: bool,
    headers: HashMap<String, String>,
    follow_redirects: bool,
    target: String,
    // connections and traffic
    connection: String,
    wait: f64,
    traffic: String,
    rate: f64,
    workers: usize,
}

impl Command {
    /// The request, for the thread of the n-th of several uses.
    pub fn request(&self, n: usize) -> Request<'_> {
        let thread = if self.threads.is_empty() { &self.thread } else { &self.threads[n % self.threads.len()] };
        let request = Request::new(&self.scope, thread)
            .identity(&self.identity)
            .target_url(&self.target_url)
            .min_validity(Duration::from_secs_f64(self.min_validity));
        match self.timeout {
            Some(timeout) => request.timeout(Duration::from_secs_f64(timeout)),
            None => request,
        }
    }
}

#[derive(Default)]
struct Driver {
    clients: Mutex<HashMap<String, Client>>,
    held: Mutex<HashMap<u64, Authorization>>,
    connections: Mutex<HashMap<String, Arc<Connection>>>,
    traffic: Mutex<HashMap<String, Traffic>>,
}

type Answer = Result<Value, Failure>;

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .expect("a runtime");
    let (commands, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let command: Command = serde_json::from_str(&line).expect("a command is a JSON object");
            if commands.send(command).is_err() {
                return;
            }
        }
    });
    runtime.block_on(run(receiver));
}

async fn run(mut commands: mpsc::UnboundedReceiver<Command>) {
    let driver = Arc::new(Driver::default());
    while let Some(command) = commands.recv().await {
        let driver = Arc::clone(&driver);
        tokio::spawn(async move {
            let answer = driver.obey(&command).await;
            let line = match answer {
                Ok(ok) => json!({ "id": command.id, "ok": ok }),
                Err(failure) => json!({ "id": command.id, "error": failure.json() }),
            };
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        });
    }
    let clients: Vec<_> = driver.clients.lock().unwrap().drain().map(|(_, client)| client).collect();
    for client in clients {
        client.close().await;
    }
}

impl Driver {
    fn client(&self, command: &Command) -> Client {
        self.clients.lock().unwrap().get(&command.client).cloned().expect("a client that is open")
    }

    fn held(&self, id: u64) -> Authorization {
        self.held.lock().unwrap().get(&id).cloned().expect("an earlier authorization")
    }

    fn keep(&self, id: u64, authorization: Authorization) -> Value {
        let json = authorization_json(&authorization);
        self.held.lock().unwrap().insert(id, authorization);
        json
    }

    async fn obey(&self, command: &Command) -> Answer {
        let seconds = Duration::from_secs_f64(command.seconds);
        match command.r#do.as_str() {
            "hello" => Ok(json!({
                "language": "rust",
                "runtime": "tokio",
                "client": env!("CARGO_PKG_VERSION"),
                "adapters": { "http": ["tower"], "grpc": ["interceptor"] },
            })),
            "open" => self.open(command),
            "close" => {
                let client = self.client(command);
                client.close().await;
                Ok(json!({}))
            }
            "authorization" => {
                let authorization = self.client(command).authorization(command.request(0)).await?;
                Ok(self.keep(command.id, authorization))
            }
            "cancel_after" => {
                let client = self.client(command);
                match tokio::time::timeout(seconds, client.authorization(command.request(0))).await {
                    Ok(authorization) => Ok(self.keep(command.id, authorization?)),
                    Err(_) => Err(Failure::new("cancelled", "the future was dropped")),
                }
            }
            "many" => {
                let client = self.client(command);
                many(command, move |command, n| {
                    let client = client.clone();
                    async move { Ok(authorization_json(&client.authorization(command.request(n)).await?)) }
                })
                .await
            }
            "report_rejected" => self.report_rejected(command).await,
            "register_task" => {
                Ok(task_json(&self.client(command).register_task(&command.thread, &command.identity).await?))
            }
            "end_task" => Ok(task_json(&self.client(command).end_task(&command.thread, &command.identity).await?)),
            "state" => {
                let state = self.client(command).state();
                Ok(json!({
                    "watching": state.watching,
                    "held": state.held,
                    "first_end_in": state.first_end_in.map(|time| time.as_secs_f64()),
                    "last_error": state.last_error.map(|error| Failure::from(error).json()),
                }))
            }
            "http" => {
                let client = self.client(command);
                if command.count.unwrap_or(1) == 1 {
                    return adapters::send_http(&client, command).await;
                }
                many(command, move |command, _| {
                    let client = client.clone();
                    async move { adapters::send_http(&client, &command).await }
                })
                .await
            }
            "grpc_echo" => adapters::call_echo(&self.client(command), command).await,
            "connect" => {
                let connection = self.client(command).connection(command.request(0)).await?;
                let answer = json!({
                    "headers": authorization_json(connection.authorization())["headers"],
                    "connection_tag": connection.authorization().connection_tag(),
                });
                self.connections.lock().unwrap().insert(command.connection.clone(), Arc::new(connection));
                Ok(answer)
            }
            "changed" => {
                let connection =
                    self.connections.lock().unwrap().get(&command.connection).cloned().expect("a connection");
                if command.wait == 0.0 {
                    return Ok(json!({ "changed": connection.has_changed() }));
                }
                match tokio::time::timeout(Duration::from_secs_f64(command.wait), connection.changed()).await {
                    Ok(changed) => changed.map(|()| json!({ "changed": true })).map_err(Failure::from),
                    Err(_) => Ok(json!({ "changed": false })),
                }
            }
            "disconnect" => {
                self.connections.lock().unwrap().remove(&command.connection);
                Ok(json!({}))
            }
            "traffic_start" => {
                let traffic = Traffic::start(&self.client(command), command);
                self.traffic.lock().unwrap().insert(command.traffic.clone(), traffic);
                Ok(json!({}))
            }
            "traffic_stop" => {
                let traffic = self.traffic.lock().unwrap().remove(&command.traffic).expect("traffic that runs");
                Ok(traffic.stop().await)
            }
            "burn" => self.burn(command).await,
            "show" => Ok(self.show(command)),
            "fork" => Ok(json!({ "unsupported": true })),
            "threads" => Ok(json!({ "count": threads() })),
            other => Err(Failure::new("other", &format!("there is no command {other:?}"))),
        }
    }

    fn open(&self, command: &Command) -> Answer {
        let client = if command.env {
            Client::new()?
        } else {
            let mut builder = Client::builder().identity(&command.identity).watch(command.watch.unwrap_or(true));
            if !command.address.is_empty() {
                builder = builder.address(&command.address);
            }
            let file = |name: &str| (!name.is_empty()).then(|| PathBuf::from(name));
            if let Some(path) = file(&command.ca_file) {
                builder = builder.ca_file(path);
            }
            if let Some(path) = file(&command.certificate_file) {
                builder = builder.certificate_file(path);
            }
            if let Some(path) = file(&command.private_key_file) {
                builder = builder.private_key_file(path);
            }
            if !command.server_name.is_empty() {
                builder = builder.server_name(&command.server_name);
            }
            if let Some(plaintext) = command.plaintext {
                builder = builder.plaintext(plaintext);
            }
            if let Some(timeout) = command.timeout {
                builder = builder.timeout(Duration::from_secs_f64(timeout));
            }
            if let Some(size) = command.cache_size {
                builder = builder.cache_size(size);
            }
            if let Some(idle) = command.idle_seconds {
                builder = builder.idle(Duration::from_secs_f64(idle));
            }
            if let Some(silence) = command.silence_seconds {
                builder = builder.silence(Duration::from_secs_f64(silence));
            }
            builder.build()?
        };
        self.clients.lock().unwrap().insert(command.client.clone(), client);
        Ok(json!({}))
    }

    async fn report_rejected(&self, command: &Command) -> Answer {
        let (client, held) = (self.client(command), self.held(command.held));
        if command.count.unwrap_or(1) == 1 {
            let better = client.report_rejected(&held, &command.detail).await?;
            return Ok(self.keep(command.id, better));
        }
        many(command, move |command, _| {
            let (client, held) = (client.clone(), held.clone());
            async move { Ok(authorization_json(&client.report_rejected(&held, &command.detail).await?)) }
        })
        .await
    }

    async fn burn(&self, command: &Command) -> Answer {
        let (client, count) = (self.client(command), command.count.unwrap_or(1));
        client.authorization(command.request(0)).await?;
        let began = Instant::now();
        for _ in 0..count {
            std::hint::black_box(client.authorization(command.request(0)).await?);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(json!({ "seconds": seconds, "nanoseconds_each": seconds * 1e9 / count as f64 }))
    }

    fn show(&self, command: &Command) -> Value {
        let (client, held) = (self.client(command), self.held(command.held));
        let mut texts = vec![
            format!("{held:?}"),
            format!("{held:#?}"),
            format!("{:?}", held.headers()),
            format!("{client:?}"),
            format!("{client:#?}"),
            format!("{:?}", client.stub()),
            format!("{:?}", client.state()),
        ];
        let connections = self.connections.lock().unwrap();
        texts.extend(connections.values().flat_map(|one| [format!("{one:?}"), format!("{one:#?}")]));
        json!({ "texts": texts })
    }
}

/// Begins `count` uses at once, each in a task of its own.
async fn many<F>(command: &Command, begin: impl Fn(Command, usize) -> F) -> Answer
where
    F: Future<Output = Answer> + Send + 'static,
{
    let began = Instant::now();
    let uses: Vec<_> = (0..command.count.unwrap_or(1)).map(|n| tokio::spawn(begin(command.clone(), n))).collect();
    let mut results = Vec::new();
    for one in uses {
        results.push(result_json(one.await.expect("no use panics")));
    }
    Ok(json!({ "results": results, "seconds": began.elapsed().as_secs_f64() }))
}

/// The threads of the process and the tasks of its runtime.
fn threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    threads + tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
