//! What can go wrong, as values to switch on.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::v1::{ErrorReason, ErrorStatus};

/// The domain of the broker's own reasons.
const DOMAIN: &str = "credentialbroker.v1";

/// Why a client could not be made: an argument, a variable of the environment or a TLS file is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentError(String);

impl ArgumentError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for ArgumentError {}

/// Why there is no authorization.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused, or could not be asked.
    Broker(Box<BrokerError>),
    /// The client was closed.
    Closed,
}

impl Error {
    /// The broker's reason; `Unspecified` where it gave none.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        self.broker().map_or(ErrorReason::Unspecified, |error| error.reason)
    }

    /// The broker's answer, if that is what failed.
    #[must_use]
    pub fn broker(&self) -> Option<&BrokerError> {
        match self {
            Self::Broker(error) => Some(error),
            Self::Closed => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(error) => error.fmt(formatter),
            Self::Closed => formatter.write_str("the client of the credential broker is closed"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.broker().map(|error| error as _)
    }
}

impl From<BrokerError> for Error {
    fn from(error: BrokerError) -> Self {
        Self::Broker(Box::new(error))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        BrokerError::from(status).into()
    }
}

/// A failed call: the broker's reason where it gave one, else what happened on the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerError {
    /// The broker's reason. `Unspecified` where the failure was not the broker's word (a deadline, a connection), and
    /// where a newer broker sent one that this client does not know: [`reason_text`](Self::reason_text) has it.
    pub reason: ErrorReason,
    /// The broker's word for the reason, for example `TASK_ENDED`; empty where it gave none.
    pub reason_text: String,
    /// The gRPC status code. What a program does with an unknown reason follows from it.
    pub code: Code,
    /// For people; may change.
    pub message: String,
    /// How long to wait at least before trying again, where the broker said so.
    pub retry_delay: Option<Duration>,
    /// What belongs to the reason, for example the scope. Never holds a secret.
    pub metadata: HashMap<String, String>,
}

impl BrokerError {
    /// Whether the broker said no for now and for good, so that what is held must not be used either.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.code, Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound)
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason_text.as_str() {
            "" => write!(formatter, "credential broker: {}", self.message),
            reason => write!(formatter, "credential broker: {reason}: {}", self.message),
        }
    }
}

impl std::error::Error for BrokerError {}

impl From<Status> for BrokerError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let reason_text = info.map(|info| info.reason.clone()).unwrap_or_default();
        Self {
            reason: ErrorReason::from_str_name(&format!("ERROR_REASON_{reason_text}")).unwrap_or_default(),
            reason_text,
            code: status.code(),
            message: status.message().to_owned(),
            retry_delay: details.retry_info().and_then(|info| info.retry_delay),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
        }
    }
}

/// A failure that came on a stream.
impl From<ErrorStatus> for BrokerError {
    fn from(status: ErrorStatus) -> Self {
        let reason = status.reason();
        Self {
            reason,
            reason_text: match reason {
                ErrorReason::Unspecified => String::new(),
                known => known.as_str_name().trim_start_matches("ERROR_REASON_").to_owned(),
            },
            code: Code::from_i32(status.code),
            message: status.message,
            retry_delay: status.retry_delay.and_then(|delay| delay.try_into().ok()),
            metadata: HashMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(code: Code, domain: &str, reason: &str) -> Status {
        let metadata = HashMap::from([("scope".to_owned(), "inference".to_owned())]);
        let mut details = ErrorDetails::with_error_info(reason, domain, metadata);
        details.set_retry_info(Some(Duration::from_millis(1_500)));
        Status::with_error_details(code, "text", details)
    }

    #[test]
    fn the_details_of_a_status_are_unpacked() {
        let error = BrokerError::from(status(Code::FailedPrecondition, DOMAIN, "TASK_ENDED"));
        let expected = BrokerError {
            reason: ErrorReason::TaskEnded,
            reason_text: "TASK_ENDED".to_owned(),
            code: Code::FailedPrecondition,
            message: "text".to_owned(),
            retry_delay: Some(Duration::from_millis(1_500)),
            metadata: HashMap::from([("scope".to_owned(), "inference".to_owned())]),
        };
        assert_eq!(error, expected);
        assert_eq!(error.to_string(), "credential broker: TASK_ENDED: text");
    }

    #[test]
    fn a_newer_word_is_kept_as_text() {
        let error = BrokerError::from(status(Code::Aborted, DOMAIN, "MOON_PHASE"));
        assert_eq!((error.reason, error.reason_text.as_str()), (ErrorReason::Unspecified, "MOON_PHASE"));
    }

    #[test]
    fn reasons_of_others_and_of_the_runtime_are_not_the_brokers() {
        for status in [status(Code::Unavailable, "example.com", "TASK_ENDED"), Status::unavailable("gone")] {
            let error = BrokerError::from(status);
            assert_eq!((error.reason, error.reason_text.as_str()), (ErrorReason::Unspecified, ""));
        }
    }

    #[test]
    fn only_a_refusal_takes_away_what_is_held() {
        let refusals: Vec<_> =
            (0..17).map(Code::from_i32).filter(|code| BrokerError::from(Status::new(*code, "")).is_refusal()).collect();
        assert_eq!(refusals, [Code::InvalidArgument, Code::NotFound, Code::PermissionDenied, Code::FailedPrecondition]);
    }
}
