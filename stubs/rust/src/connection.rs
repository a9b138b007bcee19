//! Connections that stay open, such as websockets and pools.

use std::fmt;

use http::HeaderMap;
use tokio::sync::watch;

use crate::authorization::Authorization;
use crate::cache::Connected;
use crate::client::Client;
use crate::error::Error;

/// The headers to open one connection with, and whether it may stay open. Drop it with the connection.
pub struct Connection {
    client: Client,
    authorization: Authorization,
    /// Keeps the entry from being idle.
    _connected: Connected,
    breaks: watch::Receiver<u64>,
    made_at: u64,
}

impl Connection {
    /// Returns `None` when the authorization is no longer held.
    pub(crate) fn new(client: Client, authorization: Authorization) -> Option<Self> {
        let (connected, breaks) = client.cache().connect(&authorization)?;
        let made_at = *breaks.borrow();
        Some(Self { client, authorization, _connected: connected, breaks, made_at })
    }

    /// The headers to open the connection with.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.authorization.headers()
    }

    /// All that was got for it.
    #[must_use]
    pub fn authorization(&self) -> &Authorization {
        &self.authorization
    }

    /// Whether the connection must be closed, and another one made: its `connection_tag` changed, or what it was opened
    /// with was withdrawn.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        *self.breaks.borrow() != self.made_at
    }

    /// Waits until the connection must be closed.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]: the client was closed.
    pub async fn changed(&self) -> Result<(), Error> {
        let mut breaks = self.breaks.clone();
        let wait = breaks.wait_for(|breaks| *breaks != self.made_at);
        let tasks = self.client.tasks();
        // The end of the client breaks connections too.
        tasks.unless_ended(wait).await.filter(|_| !tasks.have_ended()).map(drop).ok_or(Error::Closed)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("authorization", &self.authorization)
            .field("has_changed", &self.has_changed())
            .finish_non_exhaustive()
    }
}
