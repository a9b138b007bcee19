//! The calls to the broker, and what becomes of their answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tonic::{Code, Response, Status};

use super::core::Core;
use crate::authorization::{Authorization, Request};
use crate::cache::{Key, Question};
use crate::error::{BrokerError, Error};
use crate::flights::Flights;
use crate::lifetime::after;
use crate::origin::Origin;
use crate::v1::{
    EndTaskRequest, GetAuthorizationRequest, RegisterTaskRequest, ReportRejectedRequest, Task, TaskKind,
    register_task_request,
};

/// The longest `detail` of a report that the broker takes, in bytes.
const DETAIL: usize = 256;
/// How often a question is asked again because a withdrawal overtook its answer.
const AGAIN: usize = 3;

/// Those under way that others may wait for too.
#[derive(Default)]
pub(super) struct Calls {
    asks: Flights<Ask>,
    reports: Flights<Report>,
}

/// What one call asks the broker for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    key: Arc<Key>,
    target: String,
    min_validity: Duration,
}

impl Ask {
    /// Asks for what any use will do with.
    pub(super) fn plain(key: &Arc<Key>) -> Self {
        Self { key: Arc::clone(key), target: String::new(), min_validity: Duration::ZERO }
    }

    fn is_plain(&self) -> bool {
        self.target.is_empty() && self.min_validity.is_zero()
    }
}

/// Which value the backend answered 401 to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Report {
    key: Arc<Key>,
    revision: String,
}

impl Core {
    /// Asks the broker, with all others who ask the same.
    pub(super) async fn ask(self: &Arc<Self>, request: &Request<'_>) -> Result<Authorization, Error> {
        let ask = Ask {
            key: Arc::new(self.key(request).to_key()),
            target: Origin::text_of(request.target_url),
            min_validity: request.min_validity,
        };
        let deadline = after(Instant::now(), request.timeout.unwrap_or(self.timeout));
        // Whoever was first may have been answered since this one looked.
        let held = || self.cache.peek(ask.key.borrowed(), &ask.target, ask.min_validity, Instant::now());
        self.unless_ended(self.fly(&ask, deadline, held)).await
    }

    /// Asks, unless something that will do is `held` by now.
    pub(super) async fn fly(
        self: &Arc<Self>,
        ask: &Ask,
        deadline: Instant,
        held: impl Fn() -> Option<Authorization>,
    ) -> Result<Authorization, Error> {
        let begin = |deadline| {
            let (core, ask) = (Arc::clone(self), ask.clone());
            async move { core.get(&ask, deadline).await.inspect_err(|error| core.note_any(error)) }
        };
        self.in_time(self.calls.asks.join(ask.clone(), deadline, self.timeout, held, begin)).await
    }

    /// Calls `GetAuthorization`, again where the answer was overtaken by a withdrawal.
    async fn get(&self, ask: &Ask, deadline: Instant) -> Result<Authorization, Error> {
        for _ in 0..=AGAIN {
            let asked =
                Question { target: &ask.target, least: ask.min_validity, rejected: None, since: self.cache.changes() };
            let call = GetAuthorizationRequest {
                scope: ask.key.scope.clone(),
                thread_id: ask.key.thread.clone(),
                identity: ask.key.identity.clone(),
                target_url: ask.target.clone(),
                min_validity: Some(whole(ask.min_validity)),
                expected_account_id: String::new(),
            };
            let answer = self.answer(self.stub().get_authorization(until(deadline, call)).await);
            let answer = answer.inspect_err(|error| {
                if error.is_refusal() && ask.is_plain() {
                    self.cache.refuse(ask.key.borrowed(), &asked);
                }
            })?;
            let value = received(&ask.key, answer.authorization)?;
            if let Some(value) = self.cache.store(&value, &asked, Instant::now()) {
                return Ok(value);
            }
        }
        Err(Status::aborted("each answer was withdrawn before it came").into())
    }

    /// Reports a value, with all others who report the same; returns another one without a call if that is held.
    pub(super) async fn report(
        self: &Arc<Self>,
        rejected: &Authorization,
        detail: &str,
    ) -> Result<Authorization, Error> {
        if self.tasks.have_ended() {
            return Err(Error::Closed);
        }
        let report = Report { key: Arc::clone(rejected.key()), revision: rejected.revision().to_owned() };
        let begin = |deadline| {
            let (core, report, detail) = (Arc::clone(self), report.clone(), shortened(detail).to_owned());
            async move { core.report_rejected(&report, detail, deadline).await.inspect_err(|error| core.note_any(error)) }
        };
        let deadline = after(Instant::now(), self.timeout);
        let other = || self.cache.find_other(rejected, Instant::now());
        let better = self.calls.reports.join(report.clone(), deadline, self.timeout, other, begin);
        self.unless_ended(self.in_time(better)).await
    }

    /// Calls `ReportRejected`.
    async fn report_rejected(
        &self,
        report: &Report,
        detail: String,
        deadline: Instant,
    ) -> Result<Authorization, Error> {
        let Report { key, revision } = report;
        let asked =
            Question { target: "", least: Duration::ZERO, rejected: Some(revision), since: self.cache.changes() };
        let call = ReportRejectedRequest {
            scope: key.scope.clone(),
            thread_id: key.thread.clone(),
            revision: revision.clone(),
            http_status: 401,
            detail,
        };
        let answer = self.answer(self.stub().report_rejected(until(deadline, call)).await);
        let answer = answer.inspect_err(|error| {
            // What is wrong with the report says nothing about what is held.
            if error.is_refusal() && error.code != Code::InvalidArgument {
                self.cache.refuse(key.borrowed(), &asked);
            }
        })?;
        let value = received(key, answer.authorization)?;
        if let Some(value) = self.cache.store(&value, &asked, Instant::now()) {
            return Ok(value);
        }
        // Something else than the rejection withdrew it meanwhile.
        self.get(&Ask::plain(key), deadline).await
    }

    /// Calls `RegisterTask`.
    pub(super) async fn register_task(&self, thread: &str, identity: &str) -> Result<Task, Error> {
        let target = Some(match thread {
            "" => register_task_request::Target::Kind(TaskKind::Background.into()),
            thread => register_task_request::Target::ThreadId(thread.to_owned()),
        });
        let request = RegisterTaskRequest { target, identity: self.identity(identity).to_owned() };
        let mut stub = self.stub();
        let call = async { Ok(self.answer(stub.register_task(request).await)?) };
        let answer = self.unless_ended(call).await.inspect_err(|error| self.note_any(error))?;
        Ok(answer.task.unwrap_or_default())
    }

    /// Calls `EndTask`, and withdraws what is held of the thread.
    pub(super) async fn end_task(&self, thread: &str, identity: &str) -> Result<Task, Error> {
        let identity = self.identity(identity);
        let request = EndTaskRequest { thread_id: thread.to_owned(), identity: identity.to_owned() };
        let mut stub = self.stub();
        let call = async { Ok(self.answer(stub.end_task(request).await)?) };
        let answer = self.unless_ended(call).await.inspect_err(|error| self.note_any(error))?;
        self.cache.end_task(thread, identity);
        Ok(answer.task.unwrap_or_default())
    }

    /// Unpacks the answer of a unary call, which is a word of the broker.
    fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, BrokerError> {
        let answer = answer?.into_inner();
        self.presence.heard();
        Ok(answer)
    }

    fn note_any(&self, error: &Error) {
        if let Some(error) = error.broker() {
            self.note(error.clone());
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<Result<T, Error>, Elapsed>>) -> Result<T, Error> {
        work.await.unwrap_or_else(|_| {
            // The call itself ends with the last who waits for it, and then says nothing.
            let error = BrokerError::from(self.channel.too_late());
            self.note(error.clone());
            Err(error.into())
        })
    }

    /// Whatever fails because the client ends, or after, fails as that.
    async fn unless_ended<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let outcome = self.tasks.unless_ended(work).await.unwrap_or(Err(Error::Closed));
        outcome.map_err(|error| if self.tasks.have_ended() { Error::Closed } else { error })
    }
}

/// A call that must be answered by then.
fn until<T>(deadline: Instant, request: T) -> tonic::Request<T> {
    let mut call = tonic::Request::new(request);
    call.set_timeout(deadline.saturating_duration_since(Instant::now()));
    call
}

/// As much of a text as a report takes.
fn shortened(text: &str) -> &str {
    let end = (0..=DETAIL.min(text.len())).rfind(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// A time as the broker takes it; what is too long for a message is so for the broker too, which then says so.
fn whole(time: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX).min(315_576_000_000);
    prost_types::Duration { seconds, nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default() }
}

fn received(key: &Arc<Key>, sent: Option<crate::v1::Authorization>) -> Result<Authorization, BrokerError> {
    Authorization::new(Arc::clone(key), sent.unwrap_or_default(), Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(200)), "é".repeat(128));
        assert_eq!(shortened(&format!("x{}", "é".repeat(200))).len(), 255);
    }
}
