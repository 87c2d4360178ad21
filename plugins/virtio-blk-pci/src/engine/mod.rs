//! Who does the jobs: the kernel by io_uring, or threads that wait for it.

mod pool;
mod ring;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use baton_plugin_api::vm_memory::GuestAddress;
use baton_plugin_api::{Error, Result};

use crate::buffers::Buffers;
use crate::image::Image;
use crate::properties::{Aio, Options};
use crate::request::Range;
use crate::transfer::{must_bounce, perform};

use pool::Pool;
use ring::Ring;

/// How many jobs are taken at once; the others wait in their queues.
const JOBS_MAX: usize = 256;

/// Something to do with the image, and for whom.
pub(crate) struct Job {
    pub(crate) ticket: Ticket,
    pub(crate) operation: Operation,
    /// Whether it must be on stable storage before it is answered.
    pub(crate) durable: bool,
}

/// Who waits for a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    /// The place of the queue among those the device was started with.
    pub(crate) at: usize,
    pub(crate) head: u16,
    pub(crate) status_at: GuestAddress,
    /// As in [`crate::request::Request`].
    pub(crate) writable: u32,
}

/// What is done. Offsets are in bytes of the image.
pub(crate) enum Operation {
    Read { offset: u64, buffers: Buffers },
    Write { offset: u64, buffers: Buffers },
    Flush,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

impl Operation {
    /// For messages: what failed when it fails.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::Flush => "flush",
            Operation::Discard(_) => "discard in",
            Operation::WriteZeroes(_) => "write zeroes to",
        }
    }
}

/// A job that is over.
pub(crate) struct Finished {
    pub(crate) job: Job,
    pub(crate) outcome: io::Result<()>,
}

/// Does jobs, some at once.
pub(crate) struct Engine {
    image: Arc<Image>,
    ring: Option<Ring>,
    /// For what the ring does not do, or for all.
    pool: Pool,
    jobs: usize,
}

impl Engine {
    /// The engine that `options` ask for.
    pub(crate) fn new(image: Arc<Image>, options: &Options) -> Result<Self> {
        let ring = match options.aio {
            Aio::Threads => None,
            Aio::Automatic | Aio::IoUring => match Ring::new(JOBS_MAX) {
                Ok(ring) => Some(ring),
                // A container's or the system's policy; it costs some speed and nothing else.
                Err(_) if options.aio == Aio::Automatic => None,
                Err(e) => {
                    return Err(Error::invalid(format!(
                        "Cannot set up io_uring for '{}': {e}; allow it (sysctl \
                         kernel.io_uring_disabled, seccomp), or say aio=threads",
                        image.name
                    )));
                }
            },
        };
        // Blocks are freed only if the drive says so.
        let unmap = options.drive.discard;
        let pool = {
            let image = image.clone();
            Pool::new(&options.id, move |job| perform(&image, unmap, job))?
        };
        Ok(Self {
            image,
            ring,
            pool,
            jobs: 0,
        })
    }

    /// Descriptors that become readable when a job is over.
    pub(crate) fn events(&self) -> Vec<RawFd> {
        let ring = self.ring.iter().map(Ring::event);
        ring.chain([self.pool.event()]).collect()
    }

    /// Whether no more jobs are taken until some are over.
    pub(crate) fn is_full(&self) -> bool {
        self.jobs >= JOBS_MAX
    }

    /// Takes a job, if it [is not full](Self::is_full).
    pub(crate) fn take(&mut self, job: Job) {
        self.jobs += 1;
        match &mut self.ring {
            Some(ring) if for_ring(&self.image, &job) => ring.push(&self.image, job),
            _ => self.pool.push(job),
        }
    }

    /// Hands what was taken to the kernel.
    pub(crate) fn submit(&mut self) -> Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    /// Gives the jobs that are over.
    pub(crate) fn reap(&mut self) -> Result<VecDeque<Finished>> {
        let mut finished = VecDeque::new();
        self.pool.reap(&mut finished);
        if let Some(ring) = &mut self.ring {
            ring.reap(&self.image, &mut finished)?;
        }
        self.jobs -= finished.len();
        Ok(finished)
    }

    /// Waits for what has begun, gives it, and forgets what has not. After that nothing touches
    /// guest memory or the image.
    pub(crate) fn drain(&mut self) -> VecDeque<Finished> {
        let mut finished = VecDeque::new();
        self.pool.drain(&mut finished);
        if let Some(ring) = &mut self.ring {
            ring.drain(&self.image, &mut finished);
        }
        self.jobs = 0;
        finished
    }
}

impl Drop for Engine {
    /// Guest memory may go away after this.
    fn drop(&mut self) {
        self.drain();
    }
}

/// The ring does plain transfers, which are what a disk is busy with; the rest are rare, and no
/// faster there.
fn for_ring(image: &Image, job: &Job) -> bool {
    match &job.operation {
        Operation::Read { buffers, .. } | Operation::Write { buffers, .. } => {
            buffers.left() > 0 && !must_bounce(image, buffers)
        }
        Operation::Flush => true,
        Operation::Discard(_) | Operation::WriteZeroes(_) => false,
    }
}
