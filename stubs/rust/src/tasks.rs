//! The background work of one client, which ends with it.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts tasks on the runtime that the client was made in, and ends them all.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    runtime: Handle,
    running: TaskTracker,
    end: CancellationToken,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, running: TaskTracker::new(), end: CancellationToken::new() }
    }

    /// Runs `work` until it is done or the client ends.
    pub(crate) fn spawn(&self, work: impl Future<Output: Send> + Send + 'static) -> AbortHandle {
        let end = self.end.clone();
        let work = async move { end.run_until_cancelled(work).await.map(drop) };
        self.running.spawn_on(work, &self.runtime).abort_handle()
    }

    /// Waits for `work`; `None` when the client ends first.
    pub(crate) async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.end.run_until_cancelled(work).await
    }

    pub(crate) fn have_ended(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Tells every task to end.
    pub(crate) fn end(&self) {
        self.end.cancel();
    }

    /// Waits until every task has ended.
    pub(crate) async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, work: F) {
        self.spawn(work);
    }
}
