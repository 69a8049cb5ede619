//! The tasks of one node, so that a shutdown can wait for all of them and end the last ones.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::{task::AbortHandle, time::timeout};
use tokio_util::task::TaskTracker;

/// Handles that are kept before the first look for those of ended tasks.
const FIRST_SWEEP: usize = 64;

/// Spawns tasks on the tokio runtime of the caller, and knows those that have not ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug)]
struct Running {
    handles: Vec<AbortHandle>,
    /// Number of handles at which those of ended tasks are dropped.
    sweep_at: usize,
}

impl Default for Running {
    fn default() -> Self {
        Self { handles: Vec::new(), sweep_at: FIRST_SWEEP }
    }
}

impl Tasks {
    /// Spawns a task. The handle can end it early.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let handle = self.tracker.spawn(future).abort_handle();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.handles.push(handle.clone());
        if running.handles.len() >= running.sweep_at {
            running.handles.retain(|handle| !handle.is_finished());
            running.sweep_at = running.handles.len() * 2 + FIRST_SWEEP;
        }
        handle
    }

    /// Waits until all tasks have ended, and ends those that take longer.
    pub(crate) async fn finish(&self, within: Duration) {
        self.tracker.close();
        while timeout(within, self.tracker.wait()).await.is_err() {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.handles.iter().for_each(AbortHandle::abort);
        }
    }
}

impl Runtime for Tasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        Tasks::spawn(self, future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

impl libp2p_swarm::Executor for Tasks {
    fn exec(&self, future: BoxFuture<'static, ()>) {
        self.spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_ended() {
        let tasks = Tasks::default();
        let held = Arc::new(());
        let inner = held.clone();
        tasks.spawn(async move {
            pending::<()>().await;
            drop(inner);
        });
        tasks.spawn(async {});
        tasks.finish(Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn handles_of_ended_tasks_do_not_pile_up() {
        let tasks = Tasks::default();
        for _ in 0..1_000 {
            tasks.spawn(async {});
            tokio::task::yield_now().await;
        }
        assert!(tasks.running.lock().unwrap().handles.len() <= FIRST_SWEEP);
    }
}
