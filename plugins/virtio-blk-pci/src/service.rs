//! The queues' thread: takes requests, has them done, gives them back.

use std::collections::VecDeque;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use baton_plugin_api::virtio_queue::desc::split::Descriptor;
use baton_plugin_api::vm_memory::Bytes;
use baton_plugin_api::{Error, GuestRam, QueueHandler, Result, VirtQueue};

use crate::buffers::{Buffers, Segment};
use crate::engine::{Engine, Finished, Job, Operation, Ticket};
use crate::fault_log::FaultLog;
use crate::properties::SERIAL_BYTES;
use crate::request::{Limits, Request, Status, Work};
use crate::state::InFlight;

/// What the device is, as the thread needs it.
pub(crate) struct Disk {
    pub(crate) limits: Arc<Limits>,
    pub(crate) serial: [u8; SERIAL_BYTES],
    /// Whether the guest's flushes mean something to the host.
    pub(crate) flushes: bool,
    /// Whether writes may wait for a flush; the driver may change it at any time.
    pub(crate) write_cache: Arc<AtomicBool>,
}

/// The thread's state.
pub(crate) struct Service {
    disk: Disk,
    engine: Engine,
    /// Taken and not given back.
    in_flight: InFlight,
    /// Those of `in_flight` that were taken before this start and are not with the engine yet.
    before: VecDeque<(u16, u16)>,
    /// The engine was full before all was taken.
    behind: bool,
    /// Which queue is next to be first, when all are looked at.
    turn: usize,
    /// By the queues' places: whether something was given back since the last interrupt.
    answered: Vec<bool>,
    log: FaultLog,
}

impl Service {
    pub(crate) fn new(disk: Disk, engine: Engine, in_flight: InFlight, log: FaultLog) -> Self {
        Self {
            disk,
            engine,
            before: in_flight.iter().copied().collect(),
            in_flight,
            behind: false,
            turn: 0,
            answered: Vec::new(),
            log,
        }
    }

    /// Ends it: the engine, for the next start, and what is to be done then.
    pub(crate) fn into_parts(mut self) -> (Engine, InFlight) {
        // Only after a failure is there anything left to wait for.
        self.engine.drain();
        (self.engine, self.in_flight)
    }

    /// Takes what the queues at `places` have, as far as the engine does.
    fn take_from(
        &mut self,
        queues: &mut [VirtQueue],
        places: impl Iterator<Item = usize>,
        memory: &GuestRam,
    ) -> Result<()> {
        self.behind = false;
        self.take_from_before(queues, memory)?;
        for at in places {
            self.take_from_queue(queues, at, memory)?;
        }
        self.engine.submit()?;
        self.interrupt(queues, memory)
    }

    /// The requests from before this start come first.
    fn take_from_before(&mut self, queues: &mut [VirtQueue], memory: &GuestRam) -> Result<()> {
        while !self.engine.is_full()
            && let Some((index, head)) = self.before.pop_front()
        {
            let at = queues
                .iter()
                .position(|queue| queue.index() == index)
                .ok_or_else(|| {
                    Error::state(format!(
                        "Queue {index} has requests in flight and is disabled"
                    ))
                })?;
            let chain = queues[at].chain_at(memory, head)?;
            self.begin(queues, at, head, chain, memory)?;
        }
        Ok(())
    }

    fn take_from_queue(
        &mut self,
        queues: &mut [VirtQueue],
        at: usize,
        memory: &GuestRam,
    ) -> Result<()> {
        // A guest that adds requests as fast as they are answered must not keep the thread from
        // the other queues, nor from its end.
        for _ in 0..queues[at].size() {
            if self.engine.is_full() {
                self.behind = true;
                return Ok(());
            }
            let Some(chain) = queues[at].pop(memory)? else {
                if queues[at].rearm(memory)? {
                    continue;
                }
                return Ok(());
            };
            let (index, head) = (queues[at].index(), chain.head_index());
            if !self.in_flight.insert((index, head)) {
                return Err(Error::state(format!(
                    "Queue {index}: the driver made descriptor {head} available while it was in \
                     use; reset the device"
                )));
            }
            self.begin(queues, at, head, chain, memory)?;
        }
        queues[at]
            .kick()
            .write(1)
            .map_err(|e| Error::io("Cannot signal a thread", &e))
    }

    /// Has a request done, or answers it at once.
    fn begin(
        &mut self,
        queues: &mut [VirtQueue],
        at: usize,
        head: u16,
        chain: impl Iterator<Item = Descriptor>,
        memory: &GuestRam,
    ) -> Result<()> {
        let request = Request::parse(memory, chain, &self.disk.limits).map_err(|e| {
            Error::state(format!(
                "Queue {}: {}; reset the device",
                queues[at].index(),
                e.message
            ))
        })?;
        let ticket = Ticket {
            at,
            head,
            status_at: request.status_at,
            writable: request.writable,
        };
        match self.operation(memory, request.work) {
            Ok(Begun::Operation(operation)) => {
                let durable = self.durable(&operation);
                self.engine.take(Job {
                    ticket,
                    operation,
                    durable,
                });
                Ok(())
            }
            Ok(Begun::Done { written }) => self.answer(queues, ticket, Status::Ok, written, memory),
            Err(status) => self.answer(queues, ticket, status, 0, memory),
        }
    }

    fn operation(
        &self,
        memory: &GuestRam,
        work: std::result::Result<Work, Status>,
    ) -> std::result::Result<Begun, Status> {
        let buffers = |data: &[Segment], written| {
            // An address among them that is no memory.
            Buffers::new(memory, data, written).ok_or(Status::IoError)
        };
        Ok(Begun::Operation(match work? {
            Work::Read { offset, data } => Operation::Read {
                offset,
                buffers: buffers(&data, true)?,
            },
            Work::Write { offset, data } => Operation::Write {
                offset,
                buffers: buffers(&data, false)?,
            },
            Work::Flush if self.disk.flushes => Operation::Flush,
            Work::Flush => return Ok(Begun::Done { written: 0 }),
            Work::Discard(ranges) => Operation::Discard(ranges),
            Work::WriteZeroes(ranges) => Operation::WriteZeroes(ranges),
            Work::GetId { data } => {
                let mut place = buffers(&data, true)?;
                let n = SERIAL_BYTES.min(place.left());
                place.copy_from(&self.disk.serial[..n]);
                place.mark_written();
                return Ok(Begun::Done { written: n as u32 });
            }
        }))
    }

    /// Without a write cache, a write is only answered once it is on stable storage.
    fn durable(&self, operation: &Operation) -> bool {
        let writes = matches!(
            operation,
            Operation::Write { .. } | Operation::WriteZeroes(_)
        );
        writes && self.disk.flushes && !self.disk.write_cache.load(Ordering::Relaxed)
    }

    fn finish(
        &mut self,
        queues: &mut [VirtQueue],
        finished: VecDeque<Finished>,
        memory: &GuestRam,
    ) -> Result<()> {
        for Finished { job, outcome } in finished {
            let status = match &outcome {
                Ok(()) => Status::Ok,
                Err(error) => {
                    self.log.failed(job.operation.verb(), error);
                    Status::IoError
                }
            };
            let mut written = 0;
            if let Operation::Read { buffers, .. } = &job.operation {
                buffers.mark_written();
                if status == Status::Ok {
                    written = job.ticket.writable;
                }
            }
            self.answer(queues, job.ticket, status, written, memory)?;
        }
        Ok(())
    }

    /// Gives a request back, the first `written` bytes of its data written.
    fn answer(
        &mut self,
        queues: &mut [VirtQueue],
        ticket: Ticket,
        status: Status,
        written: u32,
        memory: &GuestRam,
    ) -> Result<()> {
        let queue = &mut queues[ticket.at];
        memory
            .write_obj(status as u8, ticket.status_at)
            .map_err(|_| {
                Error::state(format!(
                    "Queue {}: the status of a request is at {:#x}, which is no memory; reset the \
                     device",
                    queue.index(),
                    ticket.status_at.0
                ))
            })?;
        // Section 2.7.8.2: from the first byte on, as many as are surely written. The status comes
        // after the data.
        let written = if written == ticket.writable {
            written.saturating_add(1)
        } else {
            written
        };
        self.in_flight.remove(&(queue.index(), ticket.head));
        queue.complete(memory, ticket.head, written)?;
        self.answered.resize(queues.len(), false);
        self.answered[ticket.at] = true;
        Ok(())
    }

    fn interrupt(&mut self, queues: &mut [VirtQueue], memory: &GuestRam) -> Result<()> {
        for (queue, answered) in queues.iter_mut().zip(&mut self.answered) {
            if std::mem::take(answered) {
                queue.notify(memory)?;
            }
        }
        Ok(())
    }

    /// A device that has failed lets go of guest memory at once.
    fn checked(&mut self, outcome: Result<()>) -> Result<()> {
        if outcome.is_err() {
            self.engine.drain();
        }
        outcome
    }
}

enum Begun {
    Operation(Operation),
    Done { written: u32 },
}

impl QueueHandler for Service {
    fn kicked(&mut self, queues: &mut [VirtQueue], at: usize, memory: &GuestRam) -> Result<()> {
        let outcome = self.take_from(queues, iter::once(at), memory);
        self.checked(outcome)
    }

    fn event(&mut self, queues: &mut [VirtQueue], _at: usize, memory: &GuestRam) -> Result<()> {
        let outcome = self.engine.reap().and_then(|finished| {
            self.finish(queues, finished, memory)?;
            if self.behind {
                // From all, since it is not known which were passed over.
                let (first, count) = (self.turn, queues.len());
                self.turn = (first + 1) % count.max(1);
                let places = (0..count).map(|at| (first + at) % count);
                self.take_from(queues, places, memory)
            } else {
                self.interrupt(queues, memory)
            }
        });
        self.checked(outcome)
    }

    fn drain(&mut self, queues: &mut [VirtQueue], memory: &GuestRam) -> Result<()> {
        let finished = self.engine.drain();
        self.finish(queues, finished, memory)?;
        self.interrupt(queues, memory)
    }
}
