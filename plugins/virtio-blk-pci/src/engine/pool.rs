//! Threads that do one job each at a time. They exist between the first job and the next drain.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use baton_plugin_api::vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use baton_plugin_api::{Error, Result};

use super::{Finished, Job};

/// As many as keep a disk busy that does several things at once.
const THREADS_MAX: usize = 16;

type Perform = dyn Fn(&mut Job) -> io::Result<()> + Send + Sync;

/// The threads and what they share.
pub(super) struct Pool {
    name: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    perform: Box<Perform>,
    /// Readable when a job is over.
    event: EventFd,
    state: Mutex<State>,
    /// There is a job, or the end.
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    finished: VecDeque<Finished>,
    /// Threads that wait for a job.
    idle: usize,
    ending: bool,
}

impl Pool {
    pub(super) fn new(
        name: &str,
        perform: impl Fn(&mut Job) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|e| Error::io("Cannot make an eventfd", &e))?;
        Ok(Self {
            // What the kernel keeps of a thread's name.
            name: name.chars().take(15).collect(),
            shared: Arc::new(Shared {
                perform: Box::new(perform),
                event,
                state: Mutex::default(),
                wake: Condvar::new(),
            }),
            threads: Vec::new(),
        })
    }

    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Has a thread do `job`, or does it here if there can be none.
    pub(super) fn push(&mut self, job: Job) {
        let mut state = self.shared.state();
        state.waiting.push_back(job);
        let short = state.waiting.len() > state.idle && self.threads.len() < THREADS_MAX;
        drop(state);
        if short {
            let shared = self.shared.clone();
            let thread = thread::Builder::new().name(self.name.clone());
            match thread.spawn(move || shared.work()) {
                Ok(thread) => self.threads.push(thread),
                Err(_) if self.threads.is_empty() => self.shared.do_one(),
                // The others will come to it.
                Err(_) => {}
            }
        }
        self.shared.wake.notify_one();
    }

    /// Adds the jobs that are over to `finished`.
    pub(super) fn reap(&mut self, finished: &mut VecDeque<Finished>) {
        // Read first: a job that ends in between makes it readable again.
        let _ = self.shared.event.read();
        finished.append(&mut self.shared.state().finished);
    }

    /// Ends the threads once they have done what they have begun, which is added to `finished`; the
    /// jobs nobody has begun are dropped.
    pub(super) fn drain(&mut self, finished: &mut VecDeque<Finished>) {
        let mut state = self.shared.state();
        state.waiting.clear();
        state.ending = true;
        drop(state);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // It panics nowhere; were it to, its job stays without an answer.
            let _ = thread.join();
        }
        self.shared.state().ending = false;
        self.reap(finished);
    }
}

impl Shared {
    /// What a thread does until the end.
    fn work(&self) {
        let mut state = self.state();
        while !state.ending {
            if state.waiting.is_empty() {
                state.idle += 1;
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                drop(state);
                self.do_one();
                state = self.state();
            }
        }
    }

    fn do_one(&self) {
        let Some(mut job) = self.state().waiting.pop_front() else {
            return;
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.perform)(&mut job)))
            .unwrap_or_else(|_| Err(io::Error::other("A thread of the device panicked")));
        self.state().finished.push_back(Finished { job, outcome });
        // It fails only when it was signalled 2^64 times, and then it is readable.
        let _ = self.event.write(1);
    }

    /// What a panic cannot leave half done, so that it is good after one.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::engine::{Operation, Ticket};
    use baton_plugin_api::vm_memory::GuestAddress;

    fn job(head: u16) -> Job {
        Job {
            ticket: Ticket {
                at: 0,
                head,
                status_at: GuestAddress(0),
                writable: 0,
            },
            operation: Operation::Flush,
            durable: false,
        }
    }

    fn heads(finished: &VecDeque<Finished>) -> Vec<u16> {
        let mut heads: Vec<u16> = finished.iter().map(|f| f.job.ticket.head).collect();
        heads.sort_unstable();
        heads
    }

    #[test]
    fn a_drain_waits_for_what_has_begun_and_drops_what_has_not() {
        let (begun, begins) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let mut pool = Pool::new("test", move |job| {
            begun.send(job.ticket.head).unwrap();
            // Nobody goes through before the gate is gone.
            let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            Ok(())
        })
        .unwrap();
        for head in 0..100 {
            pool.push(job(head));
        }
        let mut under_way: Vec<u16> = begins.iter().take(THREADS_MAX).collect();
        under_way.sort_unstable();
        let shared = pool.shared.clone();
        let drain = thread::spawn(move || {
            let mut finished = VecDeque::new();
            pool.drain(&mut finished);
            (pool, finished)
        });
        // The drain has begun once it has dropped what waits.
        while !shared.state().ending {
            thread::yield_now();
        }
        assert!(!drain.is_finished());
        drop(open);
        let (mut pool, finished) = drain.join().unwrap();
        assert_eq!(heads(&finished), under_way);

        // And it works again.
        pool.push(job(7));
        let mut finished = VecDeque::new();
        while finished.is_empty() {
            pool.reap(&mut finished);
            thread::yield_now();
        }
        assert_eq!(heads(&finished), [7]);
        pool.drain(&mut finished);
    }

    #[test]
    fn a_job_that_panics_is_one_that_failed() {
        let mut pool = Pool::new("test", |_| panic!("as the test wants")).unwrap();
        pool.push(job(3));
        let mut finished = VecDeque::new();
        while finished.is_empty() {
            pool.reap(&mut finished);
            thread::yield_now();
        }
        assert!(finished[0].outcome.is_err());
        pool.drain(&mut finished);
    }
}
