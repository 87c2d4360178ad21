//! Guest memory with a log of what the device wrote.
// The memory of a table is rebuilt here as a device does it, which is what needs `unsafe`.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::memory::{GuestRam, MemoryRegion, guest_memory};

const PAGE: usize = 4096;

/// RAM of a guest, from guest address 0.
pub struct TestRam {
    mapping: GuestMemoryMmap<()>,
    size: usize,
    dirty: Vec<AtomicU64>,
}

impl TestRam {
    /// Zeroed RAM of at least `bytes`.
    pub fn new(bytes: usize) -> Arc<Self> {
        let size = bytes.next_multiple_of(PAGE);
        let words = (size / PAGE).div_ceil(64);
        Arc::new(Self {
            mapping: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap(),
            size,
            dirty: (0..words).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// What a device is started with. Valid as long as the RAM lives.
    pub fn table(&self) -> Vec<MemoryRegion> {
        let at = self.mapping.get_host_address(GuestAddress(0)).unwrap();
        vec![MemoryRegion {
            guest_address: 0,
            size: self.size as u64,
            host_address: at as u64,
            fd: -1,
            offset: 0,
            dirty_bitmap: self.dirty.as_ptr() as u64,
        }]
    }

    /// The same as a device sees it. It must be dropped before the RAM is.
    pub fn memory(&self) -> GuestRam {
        // SAFETY: a test keeps the RAM as long as what it made of it.
        unsafe { guest_memory(&self.table()) }.unwrap()
    }

    /// Writes as the guest does, which is not logged.
    pub fn write(&self, at: u64, data: &[u8]) {
        self.mapping.write_slice(data, GuestAddress(at)).unwrap();
    }

    /// Reads as the guest does.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mapping
            .read_slice(&mut data, GuestAddress(at))
            .unwrap();
        data
    }

    /// A little-endian number of 16 bits; the rings are made of such.
    pub(super) fn read_u16(&self, at: u64) -> u16 {
        let number = self.mapping.load(GuestAddress(at), Ordering::SeqCst);
        u16::from_le(number.unwrap())
    }

    pub(super) fn write_u16(&self, at: u64, value: u16) {
        self.mapping
            .store(value.to_le(), GuestAddress(at), Ordering::SeqCst)
            .unwrap();
    }

    /// The numbers of the 4 KiB pages a device has written since the last question.
    pub fn take_dirty(&self) -> Vec<u64> {
        let pages = |(at, word): (usize, &AtomicU64)| {
            let bits = word.swap(0, Ordering::SeqCst);
            (0..64)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| at as u64 * 64 + bit)
        };
        self.dirty.iter().enumerate().flat_map(pages).collect()
    }
}
