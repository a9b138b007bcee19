//! What a client does beside its uses: refreshing, letting go, and saying whether the broker is there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::calls::Ask;
use super::core::Core;
use crate::cache::Entry;
use crate::lifetime::after;

impl Core {
    /// Fetches the next value of an entry in the background.
    pub(super) fn refresh(self: &Arc<Self>, entry: Arc<Entry>) {
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            let next = || entry.value().filter(|value| Instant::now() < value.lifetime().refresh());
            match core.fly(&Ask::plain(&entry.key), after(Instant::now(), core.timeout), next).await {
                Ok(_) => entry.refreshed(),
                Err(error) => {
                    let wait = error.broker().and_then(|error| error.retry_delay);
                    entry.refresh_failed(wait, Instant::now());
                }
            }
        });
    }

    /// Lets go of what nobody uses, and refreshes what connections stand on.
    pub(super) async fn sweep(self: Arc<Self>) {
        loop {
            let (next, due) = self.cache.sweep(Instant::now(), self.is_watching());
            for entry in due {
                self.refresh(entry);
            }
            let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.cache.stored.notified() => {}
            }
        }
    }

    /// Tells what connections say of the broker. One counts only when the broker has said a word on it.
    pub(super) async fn tell_presence(self: Arc<Self>) {
        let mut connected = self.channel.connected();
        let mut before = None;
        while connected.changed().await.is_ok() {
            let up = connected.borrow_and_update().is_up();
            match up {
                Some(true) if up != before => self.presence.heard(),
                Some(false) => self.presence.lost(&self.cache),
                _ => {}
            }
            before = up;
        }
    }
}
