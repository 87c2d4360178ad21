//! Page tables filled ahead of time.

use std::fs::File;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek64};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use super::Ram;

/// Not in every libc: linux/mman.h, since Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;

/// Allocates every page.
pub(super) fn allocate(ram: &Ram) -> Result<(), Errno> {
    for region in ram.memory().iter() {
        let (start, length) = (region.as_ptr(), region.size());
        // SAFETY: the region is mapped with this length.
        let done = unsafe { libc::madvise(start.cast(), length, MADV_POPULATE_WRITE) };
        match Errno::result(done) {
            Ok(_) => {}
            // Before Linux 5.14.
            Err(Errno::EINVAL) => touch(region.as_ptr(), region.size()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn touch(start: *mut u8, size: usize) {
    for offset in (0..size).step_by(4096) {
        // SAFETY: within the region; nobody else uses it yet.
        unsafe { start.add(offset).write_volatile(0) };
    }
}

/// A part of RAM that its file holds: in the guest, here, and how long.
pub(super) struct Held {
    pub(super) guest_address: u64,
    host_address: *mut u8,
    pub(super) length: u64,
}

/// Maps the pages that the file holds. It is an improvement, so what fails is left for page faults.
pub(super) fn populate(ram: &Ram, file: &File) {
    for part in held(ram, file) {
        // SAFETY: the range lies in a region of RAM; populating changes no content.
        let done = unsafe {
            libc::madvise(
                part.host_address.cast(),
                part.length as usize,
                MADV_POPULATE_WRITE,
            )
        };
        if let Err(e) = Errno::result(done) {
            tracing::debug!("guest memory is not mapped ahead: {e}");
            return;
        }
    }
}

/// What of RAM the file holds, holes left out. Nothing of what cannot be found out.
pub(super) fn held(ram: &Ram, file: &File) -> Vec<Held> {
    let mut parts = Vec::new();
    for region in ram.memory().iter() {
        let base = region.file_offset().map_or(0, FileOffset::start);
        let end = base + region.len();
        let mut at = base;
        while at < end {
            let seek = |from: u64, whence| lseek64(file, from as i64, whence).map(|n| n as u64);
            let Ok(data) = seek(at, Whence::SeekData) else {
                break;
            };
            if data >= end {
                break;
            }
            let hole = seek(data, Whence::SeekHole).unwrap_or(end).min(end);
            let within = data - base;
            parts.push(Held {
                guest_address: region.start_addr().0 + within,
                // SAFETY: less than the region's length.
                host_address: unsafe { region.as_ptr().add(within as usize) },
                length: hole - data,
            });
            at = hole;
        }
    }
    parts
}
