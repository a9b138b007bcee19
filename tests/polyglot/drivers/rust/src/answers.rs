//! What stands in answers.

use credentialbroker::v1::Task;
use credentialbroker::{ArgumentError, Authorization, BrokerError, Error};
use serde_json::{Value, json};

/// An error of the protocol.
pub struct Failure(Value);

impl Failure {
    pub fn new(kind: &str, message: &str) -> Self {
        Self(json!({ "type": kind, "message": message }))
    }

    /// A call to a backend that failed.
    pub fn of_call(status: &tonic::Status) -> Self {
        Self(json!({ "type": "other", "code": code(status.code()), "message": status.message() }))
    }

    pub fn json(self) -> Value {
        self.0
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Self(json!({
            "type": "broker",
            "reason": word(error.reason.as_str_name(), "ERROR_REASON_"),
            "reason_text": error.reason_text,
            "code": code(error.code),
            "message": error.message,
            "retry_delay": error.retry_delay.map(|delay| delay.as_secs_f64()),
            "metadata": error.metadata,
        }))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Broker(error) => (*error).into(),
            Error::Closed => Self::new("closed", &error.to_string()),
            other => Self::new("other", &other.to_string()),
        }
    }
}

impl From<ArgumentError> for Failure {
    fn from(error: ArgumentError) -> Self {
        Self::new("argument", &error.to_string())
    }
}

pub fn authorization_json(authorization: &Authorization) -> Value {
    let headers: Vec<_> = authorization
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), value.to_str().expect("header values are ASCII")]))
        .collect();
    json!({
        "headers": headers,
        "kind": word(authorization.kind().as_str_name(), "CREDENTIAL_KIND_"),
        "reason": word(authorization.reason().as_str_name(), "DECISION_REASON_"),
        "revision": authorization.revision(),
        "identity": authorization.identity(),
        "connection_tag": authorization.connection_tag(),
        "stale": authorization.stale(),
        "expires_in": authorization.expires_in().as_secs_f64(),
        "refresh_in": authorization.refresh_in().as_secs_f64(),
    })
}

pub fn task_json(task: &Task) -> Value {
    json!({
        "state": word(task.state().as_str_name(), "TASK_STATE_"),
        "thread_id": task.thread_id,
        "identity": task.identity,
    })
}

/// One of several results: the answer, or `{"error": ...}`.
pub fn result_json(result: Result<Value, Failure>) -> Value {
    result.unwrap_or_else(|failure| json!({ "error": failure.json() }))
}

fn word(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// `DEADLINE_EXCEEDED` of `DeadlineExceeded`.
fn code(code: tonic::Code) -> String {
    let mut word = String::new();
    for (index, letter) in format!("{code:?}").char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            word.push('_');
        }
        word.push(letter.to_ascii_uppercase());
    }
    word
}
