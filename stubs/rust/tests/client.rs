//! The client against a broker in this process: many tasks, its end, and what it leaves behind.

mod fake_broker;

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use credentialbroker::v1::TaskState;
use credentialbroker::{Client, Error, Request};
use fake_broker::{FakeBroker, SECRET, until};
use tokio::runtime::Handle;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const REQUEST: Request<'_> = Request::new("inference", "t");

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_share_what_is_held() {
    let broker = FakeBroker::start().await;
    let client = broker.client();
    let threads: Arc<Vec<String>> = Arc::new((0..16).map(|n| format!("t{n}")).collect());
    let uses = (0..64).map(|first| {
        let (client, threads) = (client.clone(), Arc::clone(&threads));
        tokio::spawn(async move {
            for n in first..first + 2_000 {
                let thread = &threads[n % threads.len()];
                let held = client.authorization(Request::new("inference", thread)).await.unwrap();
                let value = held.headers()["authorization"].to_str().unwrap();
                assert!(value.starts_with(&format!("AgentAssertion {SECRET}-{thread}-")), "another thread's headers");
            }
        })
    });
    for one in uses.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(broker.counts.asked(), threads.len());
    assert_eq!(client.state().held, threads.len());
}

#[tokio::test]
async fn the_last_client_takes_everything_with_it() {
    let broker = FakeBroker::start().await;
    let before = tasks();
    let client = broker.client();
    client.authorization(REQUEST).await.unwrap();
    until("the stream is up", || broker.counts.streams() == 1).await;
    let clone = client.clone();
    drop(client);
    assert!(clone.held(REQUEST).is_some());
    drop(clone);
    until("the stream has ended", || broker.counts.streams() == 0).await;
    until("all tasks have ended", || tasks() == before).await;
}

#[tokio::test]
async fn who_uses_a_closed_client_is_told_so() {
    let broker = FakeBroker::start().await;
    let client = broker.client();
    let held = client.authorization(REQUEST).await.unwrap();
    let connection = client.connection(REQUEST).await.unwrap();
    client.close().await;
    client.close().await;
    assert!(client.held(REQUEST).is_none());
    assert!(matches!(client.authorization(REQUEST).await, Err(Error::Closed)));
    assert!(matches!(client.report_rejected(&held, "").await, Err(Error::Closed)));
    assert!(matches!(client.register_task("t", "").await, Err(Error::Closed)));
    assert!(matches!(connection.changed().await, Err(Error::Closed)));
    assert_eq!(
        client.stub().list_scopes(credentialbroker::v1::ListScopesRequest::default()).await.unwrap_err().code(),
        Code::Cancelled
    );
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_left_when_close_returns_also_none_that_is_being_made() {
    // It takes connections and says nothing on them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let authorities = std::env::temp_dir().join(format!("credentialbroker-close-{}", std::process::id()));
    std::fs::write(&authorities, rcgen::generate_simple_self_signed([]).unwrap().cert.pem()).unwrap();
    let mut left = 0;
    for _ in 0..100 {
        let client = Client::builder().address(&address).ca_file(&authorities).build().unwrap();
        client.authorization(REQUEST.timeout(Duration::from_millis(1))).await.unwrap_err();
        let (mut accepted, _) = listener.accept().unwrap();
        client.close().await;
        accepted.set_nonblocking(true).unwrap();
        left += usize::from(
            accepted.read_to_end(&mut Vec::new()).is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
        );
    }
    std::fs::remove_file(&authorities).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_hundred_clients_leave_nothing_behind() {
    let broker = FakeBroker::start().await;
    let once = || async {
        let client = broker.client();
        client.authorization(REQUEST).await.unwrap();
        client.close().await;
    };
    once().await;
    until("the first has gone", || broker.counts.streams() == 0).await;
    let (tasks_before, files_before) = (tasks(), files());
    for _ in 0..100 {
        once().await;
    }
    until("all tasks have ended", || tasks() <= tasks_before).await;
    until("all files are closed", || files() <= files_before).await;
}

#[tokio::test]
async fn restarts_of_the_broker_leave_nothing_behind() {
    let mut broker = FakeBroker::start().await;
    let client = broker.client();
    client.authorization(REQUEST).await.unwrap();
    until("the stream is up", || broker.counts.streams() == 1).await;
    let (tasks_before, files_before) = (tasks(), files());
    // Each takes the wait before the next connection; the conformance suite restarts a broker a hundred times.
    for n in 0..10 {
        let (address, counts) = (broker.address, Arc::clone(&broker.counts));
        drop(broker);
        broker = FakeBroker::start_at(address, counts).await;
        client.authorization(Request::new("inference", &n.to_string())).await.unwrap();
        client.held(REQUEST).expect("what is held goes on");
    }
    until("one stream is up", || broker.counts.streams() == 1 && client.state().watching).await;
    until("tasks have ended", || tasks() <= tasks_before).await;
    until("files are closed", || files() <= files_before).await;
}

#[tokio::test]
async fn nothing_that_is_printed_shows_a_secret() {
    let broker = FakeBroker::start().await;
    let client = broker.client();
    let held = client.authorization(REQUEST).await.unwrap();
    let connection = client.connection(REQUEST).await.unwrap();
    let message = client.stub().get_authorization(credentialbroker::v1::GetAuthorizationRequest::default()).await;
    for text in [
        format!("{held:?}"),
        format!("{:?}", held.headers()),
        format!("{client:?}"),
        format!("{connection:?}"),
        format!("{:?}", client.state()),
        format!("{message:?}"),
    ] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_arguments_is_said_before_any_call() {
    let message = |builder: credentialbroker::Builder| builder.build().unwrap_err().to_string();
    assert!(message(Client::builder().address("nowhere")).contains("dns:///host:port"));
    assert!(message(Client::builder().address("broker.test:1")).contains("without TLS"));
    assert!(message(Client::builder().address("127.0.0.1:1").certificate_file("/c")).contains("private key"));
    assert!(
        message(Client::builder().address("127.0.0.1:1").certificate_file("/c").private_key_file("/k"))
            .contains("authorities")
    );
    assert!(message(Client::builder().address("127.0.0.1:1").ca_file("/none.pem")).contains("/none.pem"));
    assert!(Client::builder().address("broker.test:1").plaintext(true).build().is_ok());
}

#[tokio::test]
async fn an_empty_text_is_as_if_it_were_not_given() {
    let builder = Client::builder().address("").server_name("").ca_file("").certificate_file("").private_key_file("");
    assert!(builder.build().is_ok());
}

#[tokio::test]
async fn a_task_of_no_thread_is_background_work() {
    let broker = FakeBroker::start().await;
    let client = broker.client();
    for thread in ["t", ""] {
        client.register_task(thread, "").await.unwrap();
    }
    assert_eq!(*broker.counts.registered.lock().unwrap(), ["Some(ThreadId(\"t\"))", "Some(Kind(Background))"]);
}

#[tokio::test]
async fn the_end_of_a_task_drops_what_is_held_of_its_thread() {
    let broker = FakeBroker::start().await;
    let client = broker.builder().watch(false).build().unwrap();
    let requests = [REQUEST, Request::new("other", "t"), REQUEST.identity("others"), Request::new("inference", "u")];
    for request in requests {
        client.authorization(request).await.unwrap();
    }
    let held = || requests.map(|request| client.held(request).is_some());

    broker.counts.fail_with(Some(Code::PermissionDenied));
    assert!(client.end_task("t", "").await.is_err());
    assert_eq!(held(), [true; 4], "one that fails leaves everything as it is");
    assert_eq!(client.state().last_error.unwrap().code, Code::PermissionDenied);

    broker.counts.fail_with(None);
    let task = client.end_task("t", "").await.unwrap();
    assert_eq!((task.state(), task.identity.as_str()), (TaskState::Ended, fake_broker::DEFAULT));
    assert_eq!(held(), [false, false, true, true]);
    let refused = client.authorization(REQUEST).await.unwrap_err();
    assert_eq!(refused.broker().unwrap().code, Code::FailedPrecondition);
}

/// However often the broker puts a call off, it stays one call: the attempts are four a thread, not four a use.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_put_off_is_tried_again_once_for_all_who_wait() {
    let broker = FakeBroker::start().await;
    broker.counts.puts_off.store(3, Ordering::SeqCst);
    let client = broker.client();
    let uses = (0..50).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.authorization(Request::new("inference", &(n % 5).to_string())).await })
    });
    for one in uses.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    assert_eq!(broker.counts.asked(), 5 * 4);
}

#[tokio::test]
async fn a_report_that_is_refused_drops_what_it_is_about_unless_the_report_is_what_is_wrong() {
    let broker = FakeBroker::start().await;
    let client = broker.client();
    let held = client.authorization(REQUEST).await.unwrap();
    for (code, stays) in [(Code::InvalidArgument, true), (Code::Unknown, true), (Code::PermissionDenied, false)] {
        broker.counts.fail_with(Some(code));
        assert_eq!(client.report_rejected(&held, "").await.unwrap_err().broker().unwrap().code, code);
        assert_eq!(client.held(REQUEST).is_some(), stays, "{code:?}");
    }
}

/// What the log is told in one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(move || writer.clone()).finish())
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_broker_that_says_why_it_ends_the_stream_is_not_away() {
    let word = ErrorDetails::with_error_info("WATCH_LIMIT", "credentialbroker.v1", HashMap::new());
    let said = Status::with_error_details(Code::ResourceExhausted, "too many", word);
    for (status, away) in [(said, false), (Status::internal("it broke"), true)] {
        let log = Log::default();
        let _listening = log.listen();
        let broker = FakeBroker::start().await;
        *broker.counts.stream_fails.lock().unwrap() = Some(status);
        let client = broker.client();
        client.authorization(REQUEST).await.unwrap();
        until("the stream has failed", || client.state().last_error.is_some()).await;
        assert_eq!(log.text().contains("the broker is away"), away);
    }
}

#[tokio::test]
async fn a_broker_that_refuses_is_back() {
    let log = Log::default();
    let _listening = log.listen();
    let broker = FakeBroker::start().await;
    *broker.counts.stream_fails.lock().unwrap() = Some(Status::internal("it broke"));
    let client = broker.client();
    client.authorization(REQUEST).await.unwrap();
    until("the broker is away", || log.text().contains("the broker is away")).await;
    broker.counts.fail_with(Some(Code::PermissionDenied));
    client.authorization(Request::new("inference", "u")).await.unwrap_err();
    assert!(!log.text().contains("the broker is back"), "that may be anybody's word");
    let word = ErrorDetails::with_error_info("WATCH_LIMIT", "credentialbroker.v1", HashMap::new());
    let said = Status::with_error_details(Code::ResourceExhausted, "too many", word);
    *broker.counts.stream_fails.lock().unwrap() = Some(said);
    until("the broker is back", || log.text().contains("the broker is back")).await;
}

#[tokio::test]
async fn the_last_error_may_be_that_there_was_no_answer_in_time() {
    let client = Client::builder().address("127.0.0.1:1").build().unwrap();
    let short = REQUEST.timeout(Duration::from_millis(50));
    assert_eq!(client.authorization(short).await.unwrap_err().broker().unwrap().code, Code::DeadlineExceeded);
    assert_eq!(client.state().last_error.unwrap().code, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_broker_whose_old_stream_breaks_while_the_new_one_is_up_is_not_away() {
    let log = Log::default();
    let _listening = log.listen();
    let broker = FakeBroker::start().await;
    broker.counts.stream_closes.store(true, Ordering::SeqCst);
    let client = broker.client();
    client.authorization(REQUEST).await.unwrap();
    until("the old stream has broken", || client.state().last_error.is_some()).await;
    until("the new one is up", || client.state().watching).await;
    assert!(!log.text().contains("the broker is away"), "{}", log.text());
}

#[tokio::test]
async fn times_may_be_for_ever() {
    let broker = FakeBroker::start().await;
    let ever = Duration::MAX;
    let client = broker.builder().timeout(ever).idle(ever).silence(ever).build().unwrap();
    client.authorization(REQUEST.timeout(ever)).await.unwrap();
    // The fake broker does not mind what is asked for; a client that forgot it would answer the second from memory.
    for asked in [2, 3] {
        client.authorization(REQUEST.timeout(ever).min_validity(ever)).await.unwrap();
        assert_eq!(broker.counts.asked(), asked);
    }
    until("a stream is up", || client.state().watching).await;
}

#[test]
fn without_a_runtime_there_is_no_client() {
    assert!(Client::builder().address("127.0.0.1:1").build().unwrap_err().to_string().contains("tokio runtime"));
}
