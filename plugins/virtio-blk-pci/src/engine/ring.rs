//! Plain transfers and flushes by io_uring.
// An entry of the submission ring holds pointers that the kernel follows later, which is what needs
// `unsafe`: what they point to is kept in `slots` until the kernel says that the entry is done.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};

use baton_plugin_api::vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use baton_plugin_api::{Error, Result};
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;

use super::{Finished, Job, Operation};
use crate::image::Image;
use crate::transfer::ended_early;

/// A ring, and the jobs the kernel has.
pub(super) struct Ring {
    ring: IoUring,
    /// Readable when an entry is done.
    event: EventFd,
    /// A job is in the slot whose number its entry carries.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
}

struct Slot {
    job: Job,
    /// The data is written, what is under way is the flush of a durable write.
    flushing: bool,
}

impl Ring {
    /// A ring for so many jobs at once.
    pub(super) fn new(jobs: usize) -> io::Result<Self> {
        let ring = IoUring::new(jobs as u32)?;
        // Kernels older than 5.5, which lose what a full completion ring does not hold.
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::from(ErrorKind::Unsupported));
        }
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            event,
            slots: (0..jobs).map(|_| None).collect(),
            free: (0..jobs).collect(),
        })
    }

    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Puts a job into the ring; there are never more than it was made for.
    pub(super) fn push(&mut self, image: &Image, job: Job) {
        let Some(at) = self.free.pop() else {
            debug_assert!(false, "the engine counts its jobs");
            return;
        };
        let slot = self.slots[at].insert(Slot {
            job,
            flushing: false,
        });
        let entry = entry(image, slot, at);
        self.push_entry(&entry);
    }

    /// Hands the entries to the kernel.
    pub(super) fn submit(&mut self) -> Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if is_busy(&e) => {
                    // Done entries must be taken first, or memory be found: come here again.
                    let _ = self.event.write(1);
                    return Ok(());
                }
                Err(e) => return Err(Error::io("Cannot submit to io_uring", &e)),
            }
        }
        Ok(())
    }

    /// Adds the jobs that are over to `finished`, and goes on with those done in part.
    pub(super) fn reap(&mut self, image: &Image, finished: &mut VecDeque<Finished>) -> Result<()> {
        // Read first: an entry that ends in between makes it readable again.
        let _ = self.event.read();
        loop {
            let Some(done) = self.ring.completion().next() else {
                break;
            };
            self.advance(image, done.user_data() as usize, done.result(), finished);
        }
        self.submit()
    }

    /// Waits until the kernel has no job any more.
    pub(super) fn drain(&mut self, image: &Image, finished: &mut VecDeque<Finished>) {
        while self.free.len() < self.slots.len() {
            // A signal or a lack of memory passes. Nothing else is known to happen to a ring that
            // took the entries, and to go on without them would let the kernel write to memory
            // that is no longer the device's.
            let _ = self.ring.submit_and_wait(1);
            let _ = self.reap(image, finished);
        }
    }

    /// An entry is done: its job is over, or has another step.
    fn advance(
        &mut self,
        image: &Image,
        at: usize,
        result: i32,
        finished: &mut VecDeque<Finished>,
    ) {
        let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        match slot.step(result) {
            Step::Again => {
                let entry = entry(image, slot, at);
                self.push_entry(&entry);
            }
            Step::Over(outcome) => {
                self.free.push(at);
                if let Some(Slot { job, .. }) = self.slots[at].take() {
                    finished.push_back(Finished { job, outcome });
                }
            }
            Step::Dropped => {
                self.free.push(at);
                self.slots[at] = None;
            }
        }
    }

    fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points to the `iovec`s of a job in `slots` and by them to guest memory.
        // The job stays in its slot, and its `iovec`s unchanged, until the kernel says that the
        // entry is done; guest memory is mapped as long as the job's buffers exist.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // A job has one entry at most, and the ring has one for every job.
        debug_assert!(pushed.is_ok());
    }
}

/// How a job goes on.
enum Step {
    Again,
    Over(io::Result<()>),
    /// The kernel gave it up undone.
    Dropped,
}

impl Slot {
    fn step(&mut self, result: i32) -> Step {
        if result < 0 {
            return match Errno::from_raw(-result) {
                Errno::EINTR | Errno::EAGAIN => Step::Again,
                // The thread that submitted it ended too early: it counts as never begun.
                Errno::ECANCELED => Step::Dropped,
                e => Step::Over(Err(e.into())),
            };
        }
        if self.flushing {
            return Step::Over(Ok(()));
        }
        if let Operation::Read { offset, buffers } | Operation::Write { offset, buffers } =
            &mut self.job.operation
        {
            if result == 0 {
                return Step::Over(Err(ended_early()));
            }
            buffers.advance(result as usize);
            *offset += result as u64;
            if buffers.left() > 0 {
                return Step::Again;
            }
        }
        if self.job.durable {
            self.flushing = true;
            return Step::Again;
        }
        Step::Over(Ok(()))
    }
}

/// The entry for what a job needs next.
fn entry(image: &Image, slot: &Slot, at: usize) -> squeue::Entry {
    let file = types::Fd(image.file.as_raw_fd());
    let entry = match &slot.job.operation {
        Operation::Read { offset, buffers } if !slot.flushing => {
            let parts = buffers.parts();
            opcode::Readv::new(file, parts.as_ptr().cast(), parts.len() as u32)
                .offset(*offset)
                .build()
        }
        Operation::Write { offset, buffers } if !slot.flushing => {
            let parts = buffers.parts();
            opcode::Writev::new(file, parts.as_ptr().cast(), parts.len() as u32)
                .offset(*offset)
                .build()
        }
        _ => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    };
    entry.user_data(at as u64)
}

fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAGAIN | Errno::EBUSY)
    )
}
