//! The driver's side of a split virtqueue (VIRTIO 1.3 section 2.7).

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{DEADLINE, TestRam};
use crate::bus::{QueueProgress, QueueSetup};
use crate::fd::borrow;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: true,
        }
    }
}

/// A chain that the device has given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Which one.
    pub head: u16,
    /// How many bytes the device says it has written.
    pub written: u32,
}

/// A virtqueue, as a driver has it.
pub struct GuestQueue {
    ram: Arc<TestRam>,
    size: u16,
    setup: QueueSetup,
    kick: EventFd,
    call: EventFd,
    event_idx: bool,
    free: Vec<u16>,
    /// The descriptors of each chain the device has, by its head.
    chains: BTreeMap<u16, Vec<u16>>,
    avail_idx: u16,
    /// The index at the last look at whether to kick.
    avail_told: u16,
    used_idx: u16,
}

impl GuestQueue {
    /// An empty queue of `size` descriptors, which has its rings from `base` of the RAM on, in
    /// less than 32 bytes a descriptor and 64 more.
    pub fn new(ram: &Arc<TestRam>, index: u16, size: u16, base: u64) -> Self {
        assert!(size.is_power_of_two() && base.is_multiple_of(16));
        let eventfd = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let (kick, call) = (eventfd(), eventfd());
        let avail_ring = base + 16 * u64::from(size);
        let used_ring = (avail_ring + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            ram: ram.clone(),
            size,
            setup: QueueSetup {
                index,
                size,
                desc_table: base,
                avail_ring,
                used_ring,
                next_avail: 0,
                next_used: 0,
                kick: kick.as_raw_fd(),
                call: call.as_raw_fd(),
            },
            kick,
            call,
            event_idx: false,
            free: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            avail_idx: 0,
            avail_told: 0,
            used_idx: 0,
        }
    }

    /// What a device is started with.
    pub fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.setup.index
    }

    pub(super) fn set_event_idx(&mut self, negotiated: bool) {
        self.event_idx = negotiated;
    }

    /// Where the device is to go on.
    pub(super) fn set_progress(&mut self, progress: &QueueProgress) {
        assert_eq!(progress.index, self.setup.index);
        self.setup.next_avail = progress.next_avail;
        self.setup.next_used = progress.next_used;
    }

    /// As if a device, gone since, had taken all that is available, and the driver had used the
    /// places in the ring again.
    pub fn take_all_available(&mut self) {
        self.setup.next_avail = self.avail_idx;
        let ring = vec![0xff; 2 * usize::from(self.size)];
        self.ram.write(self.setup.avail_ring + 4, &ring);
    }

    /// How many descriptors no chain uses.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain available and gives its head. The device is told by [`Self::kick`].
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let chain: Vec<u16> = (0..buffers.len())
            .map(|_| self.free.pop().expect("the queue has a free descriptor"))
            .collect();
        for (at, buffer) in buffers.iter().enumerate() {
            let next = chain.get(at + 1).copied();
            let flags = flags(buffer, next.is_some());
            self.write_descriptor(
                chain[at],
                buffer.address,
                buffer.len,
                flags,
                next.unwrap_or(0),
            );
        }
        let head = chain[0];
        self.chains.insert(head, chain);
        self.make_available(head);
        head
    }

    /// The same, with the descriptors in a table of their own at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let head = self.free.pop().expect("the queue has a free descriptor");
        for (at, buffer) in buffers.iter().enumerate() {
            let more = at + 1 < buffers.len();
            let bytes = descriptor(
                buffer.address,
                buffer.len,
                flags(buffer, more),
                if more { at as u16 + 1 } else { 0 },
            );
            self.ram.write(table + 16 * at as u64, &bytes);
        }
        self.write_descriptor(head, table, 16 * buffers.len() as u32, INDIRECT, 0);
        self.chains.insert(head, vec![head]);
        self.make_available(head);
        head
    }

    /// Writes any descriptor: for a driver that breaks the rules.
    pub fn write_descriptor(&self, at: u16, address: u64, len: u32, flags: u16, next: u16) {
        let bytes = descriptor(address, len, flags, next);
        self.ram
            .write(self.setup.desc_table + 16 * u64::from(at), &bytes);
    }

    /// Makes any head available: for a driver that breaks the rules.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.ram
            .write_u16(self.setup.avail_ring + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.ram
            .write_u16(self.setup.avail_ring + 2, self.avail_idx);
    }

    /// Notifies the device if it wants to hear of the chains added since the last call. Gives
    /// whether it did.
    pub fn kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self
                .ram
                .read_u16(self.setup.used_ring + 4 + 8 * u64::from(self.size));
            let new = self.avail_idx.wrapping_sub(event).wrapping_sub(1);
            new < self.avail_idx.wrapping_sub(self.avail_told)
        } else {
            self.ram.read_u16(self.setup.used_ring) & 1 == 0
        };
        self.avail_told = self.avail_idx;
        if wanted {
            self.kick_anyway();
        }
        wanted
    }

    /// Notifies the device.
    pub fn kick_anyway(&self) {
        self.kick.write(1).unwrap();
    }

    /// What the device has given back since the last question.
    pub fn take_used(&mut self) -> Vec<Used> {
        let mut all = Vec::new();
        while self.used_idx != self.ram.read_u16(self.setup.used_ring + 2) {
            fence(Ordering::SeqCst);
            let slot = u64::from(self.used_idx % self.size);
            let element = self.ram.read(self.setup.used_ring + 4 + 8 * slot, 8);
            let number = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
            let head = u16::try_from(number(0)).unwrap();
            // A chain that was made by hand, or given back twice, has no descriptors of ours.
            self.free
                .extend(self.chains.remove(&head).unwrap_or_default());
            self.used_idx = self.used_idx.wrapping_add(1);
            all.push(Used {
                head,
                written: number(4),
            });
        }
        if self.event_idx {
            // Asks for an interrupt at the next one.
            self.ram.write_u16(
                self.setup.avail_ring + 4 + 2 * u64::from(self.size),
                self.used_idx,
            );
            fence(Ordering::SeqCst);
        }
        all
    }

    /// Sleeps until the device has given back `count` chains; panics after [`DEADLINE`].
    pub fn wait_used(&mut self, count: usize) -> Vec<Used> {
        let end = Instant::now() + DEADLINE;
        let mut all = Vec::new();
        loop {
            all.extend(self.take_used());
            if all.len() >= count {
                return all;
            }
            // With event index, one may have come before the wish to hear of it was written.
            if self.used_idx != self.ram.read_u16(self.setup.used_ring + 2) {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} chains came back", all.len());
            let mut fds = [PollFd::new(borrow(&self.call), PollFlags::POLLIN)];
            let _ = poll(
                &mut fds,
                PollTimeout::try_from(left.as_millis() + 1).unwrap(),
            );
            let _ = self.call.read();
        }
    }

    /// How many interrupts the device has raised since the last question.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}

fn flags(buffer: &Buffer, more: bool) -> u16 {
    (if more { NEXT } else { 0 }) | (if buffer.writable { WRITE } else { 0 })
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
