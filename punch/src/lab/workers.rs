//! Threads that share the work, and end it on a signal.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use tokio::{
    runtime::{self, Runtime},
    sync::mpsc,
};

use crate::{exit::Failure, output::Progress, signal::Stop};

/// Threads for the work. Once they exist, Ctrl-C and SIGTERM end the work in order instead of the
/// program at once.
pub(super) struct Workers {
    runtime: Runtime,
    stop: Stop,
    size: usize,
}

impl Workers {
    /// Creates this number of threads.
    pub(super) fn new(size: usize) -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::error(format!("cannot start: {error}")))?;
        let stop = {
            let _inside = runtime.enter();
            Stop::new()?
        };
        Ok(Self { runtime, stop, size })
    }

    /// Does `work` for every task; returns the results in the order of the tasks.
    ///
    /// Long work must watch the flag that it gets, and end with a failure once the flag is set. A
    /// signal sets it, and so does the first failure, which is then returned.
    pub(super) fn run_all<T: Sync, R: Send>(
        &mut self,
        progress: &mut Progress,
        tasks: &[T],
        work: impl Fn(&T, &AtomicBool) -> Result<R, Failure> + Sync,
    ) -> Result<Vec<R>, Failure> {
        let flag = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let Self { runtime, stop, size } = self;
        let mut results: Vec<(usize, R)> = Vec::with_capacity(tasks.len());
        let mut failure = None;
        thread::scope(|scope| {
            let (flag, next, work) = (&flag, &next, &work);
            for _ in 0..(*size).min(tasks.len()) {
                let sender = sender.clone();
                scope.spawn(move || {
                    while !flag.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(index) else { break };
                        // The receiver is gone only after a panic.
                        if sender.send((index, work(task, flag))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            runtime.block_on(async {
                loop {
                    let result = tokio::select! {
                        () = stop.requested() => {
                            failure.get_or_insert_with(|| Failure::error("interrupted"));
                            flag.store(true, Ordering::Relaxed);
                            continue;
                        }
                        result = receiver.recv() => result,
                    };
                    match result {
                        Some((index, Ok(result))) => {
                            results.push((index, result));
                            progress.step();
                        }
                        Some((_, Err(error))) => {
                            failure.get_or_insert(error);
                            flag.store(true, Ordering::Relaxed);
                        }
                        None => break,
                    }
                }
            });
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_tasks() {
        let tasks: Vec<u64> = (0..100).collect();
        let mut workers = Workers::new(4).unwrap();
        let doubled = workers.run_all(&mut Progress::silent(), &tasks, |task, _| Ok(task * 2)).unwrap();
        assert_eq!(doubled, (0..100).map(|task| task * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_failure_ends_the_work() {
        let tasks: Vec<u64> = (0..1_000).collect();
        let done = AtomicUsize::new(0);
        let mut workers = Workers::new(1).unwrap();
        let result = workers.run_all(&mut Progress::silent(), &tasks, |task, flag| {
            // Until the failure is known, other tasks may be taken.
            while *task > 10 && !flag.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            done.fetch_add(1, Ordering::Relaxed);
            if *task == 10 { Err(Failure::error("ten")) } else { Ok(()) }
        });
        assert_eq!(result, Err(Failure::error("ten")));
        assert!(done.load(Ordering::Relaxed) <= 12);
    }

    #[test]
    fn workers_without_work_end() {
        let mut workers = Workers::new(4).unwrap();
        let none: Vec<()> = workers.run_all(&mut Progress::silent(), &[(); 0], |(), _| Ok(())).unwrap();
        assert!(none.is_empty());
    }
}
