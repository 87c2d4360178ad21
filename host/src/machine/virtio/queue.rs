//! A queue as the transport knows it: what the driver has configured, and its eventfds.

use baton_plugin_api::bus::{QueueProgress, QueueSetup};
use std::os::fd::AsRawFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::machine::interrupts::{Interrupts, Vector};
use std::sync::Arc;

/// The vector that means none (VIRTIO 1.3 section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// What the driver has configured of a queue, and how far the device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

/// A queue of the device.
pub(super) struct Queue {
    pub(super) max_size: u16,
    pub(super) registers: QueueRegisters,
    /// What the driver's notification signals.
    pub(super) kick: EventFd,
    /// What interrupts the driver.
    pub(super) call: Vector,
}

impl QueueRegisters {
    pub(super) fn reset(max_size: u16) -> Self {
        Self {
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            next_avail: 0,
            next_used: 0,
        }
    }
}

impl Queue {
    pub(super) fn new(max_size: u16, interrupts: &Arc<Interrupts>) -> std::io::Result<Self> {
        Ok(Self {
            max_size,
            registers: QueueRegisters::reset(max_size),
            kick: eventfd()?,
            call: interrupts.vector(eventfd()?),
        })
    }

    pub(super) fn setup(&self, index: usize) -> QueueSetup {
        let r = &self.registers;
        QueueSetup {
            index: index as u16,
            size: r.size,
            desc_table: r.desc_table,
            avail_ring: r.avail_ring,
            used_ring: r.used_ring,
            next_avail: r.next_avail,
            next_used: r.next_used,
            kick: self.kick.as_raw_fd(),
            call: self.call.event().as_raw_fd(),
        }
    }

    pub(super) fn came_to(&mut self, progress: QueueProgress) {
        self.registers.next_avail = progress.next_avail;
        self.registers.next_used = progress.next_used;
    }
}

pub(super) fn eventfd() -> std::io::Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
}

/// Adds one to an eventfd; a counter at its maximum is signalled as it is.
pub(super) fn signal(event: &EventFd) {
    if let Err(e) = event.write(1)
        && e.kind() != std::io::ErrorKind::WouldBlock
    {
        tracing::error!("cannot signal an eventfd: {e}");
    }
}
