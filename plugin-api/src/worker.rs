//! The thread of a virtio backend that sleeps until a queue is kicked.

use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{QueueProgress, VirtQueue, VirtioRun};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::memory::GuestRam;

/// What a backend does with its queues, on the worker's thread.
pub trait QueueHandler: Send + 'static {
    /// The queue at `queues[at]` was kicked: take what is there. An error means the device can go
    /// on no longer.
    fn kicked(&mut self, queues: &mut [VirtQueue], at: usize, memory: &GuestRam) -> Result<()>;

    /// Something has happened to the descriptor at `events[at]` (see [`Worker::spawn`]).
    fn event(&mut self, queues: &mut [VirtQueue], at: usize, memory: &GuestRam) -> Result<()> {
        let _ = (queues, at, memory);
        Ok(())
    }

    /// The worker is to stop: finish what is in flight, or keep it to be saved.
    fn drain(&mut self, queues: &mut [VirtQueue], memory: &GuestRam) -> Result<()> {
        let _ = (queues, memory);
        Ok(())
    }
}

/// A descriptor that a [`Worker`] watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The handler hears of it for as long as it can be read.
    Readable(RawFd),
    /// The handler hears of it each time that it can be read or written again, or its other end goes,
    /// and once at first: whoever does not want to read now need not.
    Changes(RawFd),
}

/// The thread, from `start` to `quiesce`.
pub struct Worker<H> {
    thread: JoinHandle<(H, Vec<QueueProgress>, Result<()>)>,
    stop: EventFd,
}

const STOP: u64 = u64::MAX;
const EVENTS: u64 = 1 << 32;

impl<H: QueueHandler> Worker<H> {
    /// Starts a thread that hands kicks of the queues to `handler`, and what happens to the
    /// descriptors of `events`, which stay open as long as the worker runs.
    ///
    /// If the handler fails or panics, the host is told, and the thread only waits for its end.
    pub fn spawn(
        name: &str,
        host: Host,
        run: VirtioRun,
        mut handler: H,
        events: &[Watched],
    ) -> Result<Self> {
        let failed = |what: &str, e: std::io::Error| Error::io(what, &e);
        let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|e| failed("Cannot make an eventfd", e))?;
        let epoll = Epoll::new().map_err(|e| failed("Cannot make an epoll descriptor", e))?;
        let watch = |watched: Watched, token: u64| {
            let (fd, set) = match watched {
                Watched::Readable(fd) => (fd, EventSet::IN),
                Watched::Changes(fd) => {
                    (fd, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED)
                }
            };
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(set, token))
                .map_err(|e| failed("Cannot watch a descriptor", e))
        };
        watch(Watched::Readable(stop.as_raw_fd()), STOP)?;
        for (at, queue) in run.queues.iter().enumerate() {
            watch(Watched::Readable(queue.kick().as_raw_fd()), at as u64)?;
        }
        for (at, watched) in events.iter().enumerate() {
            watch(*watched, EVENTS + at as u64)?;
        }
        let VirtioRun {
            memory, mut queues, ..
        } = run;
        let thread = thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                let mut outcome = guarded(|| serve(&epoll, &mut queues, &memory, &mut handler));
                if let Err(error) = &outcome {
                    host.failed(&error.message);
                    wait_for_stop(&epoll);
                }
                if outcome.is_ok() {
                    outcome = guarded(|| handler.drain(&mut queues, &memory));
                }
                let progress = queues.iter().map(VirtQueue::progress).collect();
                (handler, progress, outcome)
            })
            .map_err(|e| failed("Cannot start a thread", e))?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread. Gives the handler back, how far the queues have come, and what went wrong.
    pub fn stop(self) -> Result<(H, Vec<QueueProgress>, Result<()>)> {
        self.stop
            .write(1)
            .map_err(|e| Error::io("Cannot signal a thread", &e))?;
        self.thread
            .join()
            .map_err(|_| Error::new(crate::ErrorKind::Panicked, "A worker thread panicked"))
    }

    /// What [`quiesce`](crate::VirtioDevice::quiesce) is for a device that needs nothing of its handler
    /// back: ends the worker, if there is one, and tells how far the queues have come.
    pub fn quiesce(worker: &mut Option<Self>) -> Result<Vec<QueueProgress>> {
        let Some(worker) = worker.take() else {
            return Ok(Vec::new());
        };
        let (_, progress, outcome) = worker.stop()?;
        outcome.map(|()| progress)
    }
}

fn serve<H: QueueHandler>(
    epoll: &Epoll,
    queues: &mut [VirtQueue],
    memory: &GuestRam,
    handler: &mut H,
) -> Result<()> {
    let mut ready = [EpollEvent::default(); 16];
    loop {
        for event in wait(epoll, &mut ready)? {
            match event.data() {
                STOP => return Ok(()),
                at if at >= EVENTS => handler.event(queues, (at - EVENTS) as usize, memory)?,
                at => {
                    let at = at as usize;
                    // Somebody else may have read it; the queue tells what there is to do.
                    let _ = queues[at].kick().read();
                    handler.kicked(queues, at, memory)?;
                }
            }
        }
    }
}

fn wait_for_stop(epoll: &Epoll) {
    let mut ready = [EpollEvent::default(); 16];
    while let Ok(events) = wait(epoll, &mut ready) {
        if events.iter().any(|e| e.data() == STOP) {
            return;
        }
        // A broken device's descriptors would be ready for ever.
        for event in events {
            let _ = epoll.ctl(ControlOperation::Delete, event.fd(), EpollEvent::default());
        }
        thread::yield_now();
    }
}

fn wait<'e>(epoll: &Epoll, ready: &'e mut [EpollEvent]) -> Result<&'e [EpollEvent]> {
    loop {
        match epoll.wait(-1, ready) {
            Ok(n) => return Ok(&ready[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("Cannot wait for a queue", &e)),
        }
    }
}

fn guarded(f: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        std::mem::forget(payload);
        Err(Error::new(
            crate::ErrorKind::Panicked,
            "Panicked in its worker thread",
        ))
    })
}
