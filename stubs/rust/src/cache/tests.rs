//! What stays and what goes, without a broker.

use super::*;
use crate::v1;
use prost_types::Timestamp;
use tokio::time::advance;

const SECOND: Duration = Duration::from_secs(1);

fn key(thread: &str) -> KeyRef<'_> {
    KeyRef { identity: "", scope: "inference", thread }
}

/// A value that is due in 30 s and ends in 60 s.
fn value(thread: &str, revision: &str, tag: &str) -> Authorization {
    value_for(key(thread), "", revision, tag)
}

/// As `value`, under any key; `identity` is who the broker says that it belongs to.
fn value_for(key: KeyRef<'_>, identity: &str, revision: &str, tag: &str) -> Authorization {
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let sent = v1::Authorization {
        server_time: at(0),
        refresh_time: at(30),
        expire_time: at(60),
        revision: revision.to_owned(),
        identity: identity.to_owned(),
        connection_tag: tag.to_owned(),
        ..v1::Authorization::default()
    };
    Authorization::new(Arc::new(key.to_key()), sent, Instant::now()).unwrap()
}

fn cache(capacity: usize) -> (Cache, mpsc::UnboundedReceiver<Change>) {
    Cache::new(capacity, 300 * SECOND)
}

const PLAIN: Question<'_> = Question { target: "", least: Duration::ZERO, rejected: None, since: 0 };

/// Answers a question that was asked after so many changes; returns the revision that may be used.
fn answer(cache: &Cache, value: &Authorization, asked: &Question<'_>, since: u64) -> Option<String> {
    let given = cache.store(value, &Question { since, ..*asked }, Instant::now())?;
    Some(given.revision().to_owned())
}

fn put(cache: &Cache, value: &Authorization) -> Arc<Entry> {
    answer(cache, value, &PLAIN, cache.changes()).unwrap();
    cache.entry(value.key().borrowed()).unwrap()
}

/// The revision that a use is given, with a star where the next value is to be fetched.
fn used(cache: &Cache, thread: &str, target: &str, least: Duration, watched: bool) -> String {
    match cache.find(key(thread), target, least, Instant::now(), watched) {
        Found::Nothing => String::new(),
        Found::Value(value) => value.revision().to_owned(),
        Found::Due(value, _) => format!("{}*", value.revision()),
    }
}

fn use_it(cache: &Cache, thread: &str) -> String {
    used(cache, thread, "", Duration::ZERO, false)
}

fn changes(receiver: &mut mpsc::UnboundedReceiver<Change>) -> Vec<String> {
    let said = |change| match change {
        Change::Added(entry) => format!("+{}", entry.key.thread),
        Change::Removed(subscription) => format!("-{subscription}"),
    };
    std::iter::from_fn(|| receiver.try_recv().ok()).map(said).collect()
}

#[tokio::test(start_paused = true)]
async fn a_value_is_used_until_its_end_and_fetched_once_when_due() {
    let (cache, _changes) = cache(9);
    put(&cache, &value("t", "a", ""));
    assert_eq!(used(&cache, "t", "", 59 * SECOND, false), "a");
    assert_eq!(used(&cache, "t", "", 60 * SECOND, false), "");
    assert_eq!(use_it(&cache, "other"), "");
    advance(30 * SECOND).await;
    cache.entry(key("t")).unwrap().is_watched.store(true, Ordering::Relaxed);
    assert_eq!(used(&cache, "t", "", Duration::ZERO, true), "a");
    assert_eq!(use_it(&cache, "t"), "a*");
    assert_eq!(use_it(&cache, "t"), "a", "one refresh at a time");
    put(&cache, &value("t", "b", ""));
    assert_eq!(use_it(&cache, "t"), "b");
    advance(60 * SECOND).await;
    assert_eq!(use_it(&cache, "t"), "");
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_is_tried_again_after_a_wait_that_grows() {
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", ""));
    advance(30 * SECOND).await;
    for least in [100, 200, 400] {
        assert_eq!(use_it(&cache, "t"), "a*");
        entry.refresh_failed(None, Instant::now());
        advance(Duration::from_millis(least - 1)).await;
        assert_eq!(use_it(&cache, "t"), "a", "too soon");
        advance(Duration::from_millis(least + 1)).await;
    }
    assert_eq!(use_it(&cache, "t"), "a*");
    entry.refresh_failed(Some(5 * SECOND), Instant::now());
    advance(Duration::from_millis(4_999)).await;
    assert_eq!(use_it(&cache, "t"), "a", "sooner than the broker said");
    advance(Duration::from_millis(1)).await;
    assert_eq!(use_it(&cache, "t"), "a*");
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_goes_first_and_those_with_connections_last() {
    let (cache, mut receiver) = cache(3);
    for thread in ["a", "b", "c"] {
        put(&cache, &value(thread, thread, ""));
        advance(SECOND).await;
    }
    use_it(&cache, "a");
    put(&cache, &value("d", "d", ""));
    assert_eq!(["a", "b", "c", "d"].map(|thread| use_it(&cache, thread)), ["a", "", "c", "d"]);
    advance(SECOND).await;
    let (_connected, breaks) = cache.connect(&value("a", "a", "")).unwrap();
    advance(SECOND).await;
    use_it(&cache, "c");
    use_it(&cache, "d");
    put(&cache, &value("e", "e", ""));
    assert_eq!(use_it(&cache, "a"), "a");
    assert!(!breaks.has_changed().unwrap());
    assert_eq!(changes(&mut receiver)[..5], ["+a", "+b", "+c", "-2", "+d"]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_goes_when_it_is_due() {
    let (cache, mut receiver) = Cache::new(9, 40 * SECOND);
    let began = Instant::now();
    let idle = put(&cache, &value("idle", "a", ""));
    let used = put(&cache, &value("used", "a", ""));
    let connected = put(&cache, &value("connected", "a", ""));
    let (connection, _breaks) = cache.connect(&value("connected", "a", "")).unwrap();
    connected.is_watched.store(true, Ordering::Relaxed);
    assert_eq!(cache.sweep(began, true).0, Some(began + 40 * SECOND));
    advance(40 * SECOND).await;
    use_it(&cache, "used");
    let (next, due) = cache.sweep(Instant::now(), true);
    assert_eq!((next, due.len()), (Some(began + 45 * SECOND), 0));
    assert_eq!(changes(&mut receiver), ["+idle", "+used", "+connected", "-1"]);
    // A value that comes for what is no longer there changes nothing.
    cache.take(&idle, value("idle", "b", ""), Instant::now(), || true);
    cache.take(&used, value("used", "b", ""), Instant::now(), || true);
    assert_eq!([use_it(&cache, "idle"), use_it(&cache, "used")], ["", "b"]);
    advance(5 * SECOND).await;
    let (_, due) = cache.sweep(Instant::now(), true);
    assert!(due.len() == 1 && Arc::ptr_eq(&due[0], &connected), "a connection keeps its value fresh");
    drop(connection);
    advance(300 * SECOND).await;
    assert_eq!(cache.sweep(Instant::now(), true).0, None);
    assert_eq!(cache.held(Instant::now()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_comes_for_an_idle_entry_lets_it_go() {
    let (cache, mut receiver) = Cache::new(9, 10 * SECOND);
    let entry = put(&cache, &value("t", "a", ""));
    advance(10 * SECOND).await;
    cache.take(&entry, value("t", "b", ""), Instant::now(), || true);
    assert_eq!(use_it(&cache, "t"), "");
    assert_eq!(changes(&mut receiver), ["+t", "-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_breaks_with_its_tag_and_with_a_withdrawal() {
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", "one"));
    let (_connected, breaks) = cache.connect(&value("t", "a", "one")).unwrap();
    cache.take(&entry, value("t", "b", "one"), Instant::now(), || true);
    assert_eq!(*breaks.borrow(), 0);
    cache.take(&entry, value("t", "c", "two"), Instant::now(), || true);
    assert_eq!(*breaks.borrow(), 1);
    assert!(cache.connect(&value("t", "a", "one")).is_none(), "made with what is no longer held");
    cache.withdraw(&entry, false);
    assert_eq!(*breaks.borrow(), 2);
    cache.take(&entry, value("t", "c", "two"), Instant::now(), || true);
    assert_eq!((*breaks.borrow(), use_it(&cache, "t").as_str()), (2, "c"));
}

#[test]
fn what_a_stream_brings_while_its_successor_withdraws_is_gone() {
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", ""));
    std::thread::scope(|scope| {
        let is_current = || {
            scope.spawn(|| cache.withdraw(&entry, false));
            std::thread::sleep(Duration::from_millis(50));
            true
        };
        cache.take(&entry, value("t", "b", ""), Instant::now(), is_current);
    });
    assert_eq!(use_it(&cache, "t"), "");
    cache.take(&entry, value("t", "b", ""), Instant::now(), || false);
    assert_eq!(use_it(&cache, "t"), "");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_withdrawal_overtook_is_not_kept() {
    let (cache, _changes) = cache(9);
    let before = cache.changes();
    let entry = put(&cache, &value("t", "a", ""));
    let seen = cache.changes();
    cache.withdraw(&entry, true);
    for since in [before, seen] {
        assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, since), None);
    }
    assert_eq!(use_it(&cache, "t"), "");
    // Also when the entry itself has gone since.
    advance(300 * SECOND).await;
    cache.sweep(Instant::now(), true);
    assert!(cache.entry(key("t")).is_none());
    assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, seen), None);
    assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, cache.changes()).as_deref(), Some("b"));
    assert_eq!(use_it(&cache, "t"), "b");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_task_withdraws_what_is_held_of_its_thread_under_its_identity() {
    let (cache, mut receiver) = cache(9);
    let keys = [("", "a", "t"), ("", "b", "t"), ("others", "a", "t"), ("", "a", "u")]
        .map(|(identity, scope, thread)| KeyRef { identity, scope, thread });
    let held = || keys.map(|key| cache.peek(key, "", Duration::ZERO, Instant::now()).is_some());
    for key in keys {
        put(&cache, &value_for(key, "agents", "r", ""));
    }
    assert_eq!(held(), [true; 4]);
    cache.end_task("t", "");
    assert_eq!(held(), [false, false, true, true]);
    assert!(changes(&mut receiver).iter().all(|change| change.starts_with('+')), "they stay subscribed");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_end_of_its_task_overtook_is_not_kept() {
    let report = Question { rejected: Some("a"), ..PLAIN };
    for (held, asked) in [(false, PLAIN), (true, PLAIN), (true, report)] {
        let (cache, _changes) = cache(9);
        if held {
            put(&cache, &value("t", "a", ""));
        }
        let seen = cache.changes();
        cache.end_task("t", "");
        assert_eq!(answer(&cache, &value("t", "b", ""), &asked, seen), None);
        assert_eq!(use_it(&cache, "t"), "");
        assert_eq!(answer(&cache, &value("t", "c", ""), &asked, cache.changes()).as_deref(), Some("c"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_report_outlives_the_withdrawal_of_what_was_rejected_and_no_other() {
    let report = Question { rejected: Some("a"), ..PLAIN };
    for (follows, kept) in [(true, Some("b")), (false, None)] {
        let (cache, _changes) = cache(9);
        let entry = put(&cache, &value("t", "a", ""));
        let seen = cache.changes();
        cache.withdraw(&entry, follows);
        assert_eq!(answer(&cache, &value("t", "b", ""), &report, seen).as_deref(), kept);
        assert_eq!(use_it(&cache, "t"), kept.unwrap_or_default());
    }
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", ""));
    let seen = cache.changes();
    cache.take(&entry, value("t", "c", ""), Instant::now(), || true);
    assert_eq!(answer(&cache, &value("t", "b", ""), &report, seen).as_deref(), Some("c"), "what came is newer");
}

#[tokio::test(start_paused = true)]
async fn an_older_answer_does_not_replace_what_the_stream_brought() {
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", ""));
    let seen = cache.changes();
    cache.take(&entry, value("t", "pushed", ""), Instant::now(), || true);
    assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, seen).as_deref(), Some("pushed"));
    // What is held is too short for this one, which has the answer for itself.
    let long = Question { least: 60 * SECOND, ..PLAIN };
    assert_eq!(answer(&cache, &value("t", "b", ""), &long, seen).as_deref(), Some("b"));
    assert_eq!(use_it(&cache, "t"), "pushed");
    advance(60 * SECOND).await;
    assert_eq!(answer(&cache, &value("t", "b", ""), &PLAIN, seen).as_deref(), Some("b"));
    assert_eq!(use_it(&cache, "t"), "b");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_drops_what_it_is_about() {
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", ""));
    let question = Question { since: cache.changes(), ..PLAIN };
    cache.take(&entry, value("t", "b", ""), Instant::now(), || true);
    cache.refuse(key("t"), &question);
    cache.refuse(key("t"), &Question { rejected: Some("a"), ..PLAIN });
    assert_eq!(use_it(&cache, "t"), "b", "something newer came");
    cache.withdraw(&entry, true);
    cache.refuse(key("t"), &Question { rejected: Some("b"), ..PLAIN });
    cache.refuse(key("t"), &Question { since: cache.changes(), ..PLAIN });
    assert!(cache.entry(key("t")).is_some(), "the next value is still to come");
    cache.take(&entry, value("t", "c", ""), Instant::now(), || true);
    cache.refuse(key("t"), &Question { rejected: Some("c"), ..PLAIN });
    assert!(cache.entry(key("t")).is_none());
}

#[tokio::test(start_paused = true)]
async fn origins_go_with_a_withdrawal_and_with_another_tag() {
    let (cache, _changes) = cache(9);
    let origin = "https://a:443";
    let asked = Question { target: origin, ..PLAIN };
    let named = || used(&cache, "t", origin, Duration::ZERO, false);
    answer(&cache, &value("t", "a", "one"), &asked, cache.changes());
    let entry = cache.entry(key("t")).unwrap();
    cache.take(&entry, value("t", "b", "one"), Instant::now(), || true);
    assert_eq!(named(), "b");
    let seen = cache.changes();
    cache.take(&entry, value("t", "c", "two"), Instant::now(), || true);
    assert_eq!(named(), "");
    // An answer for the credential of before allows nothing to this one.
    assert_eq!(answer(&cache, &value("t", "b", "one"), &asked, seen), None);
    assert_eq!(named(), "");
    answer(&cache, &value("t", "d", "two"), &asked, cache.changes());
    assert_eq!(named(), "d");
    cache.withdraw(&entry, false);
    cache.take(&entry, value("t", "d", "two"), Instant::now(), || true);
    assert_eq!(named(), "");
}

#[test]
fn no_origin_is_given_what_another_credential_was_allowed_there() {
    let (cache, _changes) = cache(9);
    let origin = "https://a:443";
    let asked = Question { target: origin, ..PLAIN };
    let (one, two) = (value("t", "a", "one"), value("t", "b", "two"));
    let entry = put(&cache, &one);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50_000 {
                answer(&cache, &one, &asked, cache.changes());
                cache.take(&entry, two.clone(), Instant::now(), || true);
            }
            ended.store(true, Ordering::Relaxed);
        });
        let mut wrong = 0;
        while !ended.load(Ordering::Relaxed) {
            let given = cache.peek(key("t"), origin, Duration::ZERO, Instant::now());
            wrong += usize::from(given.is_some_and(|given| given.connection_tag() == "two"));
        }
        assert_eq!(wrong, 0);
    });
}

#[tokio::test(start_paused = true)]
async fn what_was_withdrawn_goes_when_it_is_idle_and_has_no_connection() {
    let (cache, mut receiver) = Cache::new(9, 5 * SECOND);
    let entry = put(&cache, &value("t", "a", ""));
    let (connected, _breaks) = cache.connect(&value("t", "a", "")).unwrap();
    cache.withdraw(&entry, false);
    cache.stored.notified().await;
    assert_eq!(cache.sweep(Instant::now(), true).0, None);
    drop(connected);
    cache.stored.notified().await;
    assert_eq!(cache.sweep(Instant::now(), true).0, Some(Instant::now() + 5 * SECOND));
    advance(5 * SECOND).await;
    cache.sweep(Instant::now(), true);
    assert_eq!(changes(&mut receiver), ["+t", "-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_whose_answer_was_not_kept_is_followed_by_another() {
    let (cache, _changes) = cache(9);
    let entry = put(&cache, &value("t", "a", ""));
    advance(30 * SECOND).await;
    assert_eq!(use_it(&cache, "t"), "a*");
    entry.refreshed();
    assert_eq!(use_it(&cache, "t"), "a*");
}

#[tokio::test(start_paused = true)]
async fn eight_origins_are_remembered() {
    let (cache, _changes) = cache(9);
    put(&cache, &value("t", "a", ""));
    let named = |origin: usize| used(&cache, "t", &format!("https://{origin}:443"), Duration::ZERO, false);
    assert_eq!(named(0), "");
    for origin in 0..9 {
        let target = format!("https://{origin}:443");
        answer(&cache, &value("t", "a", ""), &Question { target: &target, ..PLAIN }, cache.changes());
    }
    assert_eq!((named(0), named(1), named(8)), (String::new(), "a".to_owned(), "a".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_closed_cache_keeps_nothing() {
    let (cache, _changes) = cache(9);
    put(&cache, &value("t", "a", ""));
    let (_connected, breaks) = cache.connect(&value("t", "a", "")).unwrap();
    cache.close();
    assert_eq!(*breaks.borrow(), 1);
    answer(&cache, &value("t", "b", ""), &PLAIN, cache.changes());
    assert_eq!(use_it(&cache, "t"), "");
}
