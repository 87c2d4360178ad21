//! Page tables filled ahead of time.

use std::fs::File;

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use super::Ram;
use super::kept::data;

const PAGE: usize = 4096;

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

/// How much of RAM one system call is about, in bytes. A kernel that does not preempt itself lets nobody
/// else have the CPU for as long as a call takes, be it a vCPU of the guest that is to come: to find the
/// end of what a file of 16 GiB holds by SEEK_HOLE took 100 ms.
const STEP: usize = 4 << 20;

/// Maps the pages that the file holds. It is an improvement, so what fails is left for page faults.
pub(super) fn populate(ram: &Ram, file: &File) {
    for part in held(ram, file) {
        let length = part.length as usize;
        for offset in (0..length).step_by(STEP) {
            let step = STEP.min(length - offset);
            // SAFETY: the range lies in a region of RAM; populating changes no content.
            let done = unsafe {
                let start = part.host_address.add(offset);
                libc::madvise(start.cast(), step, MADV_POPULATE_WRITE)
            };
            if let Err(e) = Errno::result(done) {
                tracing::debug!("guest memory is not mapped ahead: {e}");
                return;
            }
        }
    }
}

/// What of RAM the file holds, as far as that is in memory.
pub(super) fn held(ram: &Ram, file: &File) -> Vec<Held> {
    // mincore(2) tells of huge pages only what this process has mapped already; they are few.
    let huge = fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC);
    let mut parts = Vec::new();
    for region in ram.memory().iter() {
        let found = match huge {
            true => {
                let base = region.file_offset().map_or(0, FileOffset::start);
                data(file, base, region.len()).unwrap_or_default()
            }
            false => in_memory(region.as_ptr(), region.size()),
        };
        parts.extend(found.into_iter().map(|(offset, length)| Held {
            guest_address: region.start_addr().0 + offset,
            // SAFETY: less than the region's length.
            host_address: unsafe { region.as_ptr().add(offset as usize) },
            length,
        }));
    }
    parts
}

/// The parts of a mapping whose pages are in memory, mapped or not, as (offset, bytes).
fn in_memory(start: *mut u8, size: usize) -> Vec<(u64, u64)> {
    let mut pages = vec![0; STEP / PAGE];
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for offset in (0..size).step_by(STEP) {
        let step = STEP.min(size - offset);
        // SAFETY: the range lies in the mapping, and `pages` has a byte for each of its pages.
        let told = unsafe { libc::mincore(start.add(offset).cast(), step, pages.as_mut_ptr()) };
        if told != 0 {
            tracing::debug!("no telling which memory is there: {}", Errno::last());
            break;
        }
        let here = pages[..step.div_ceil(PAGE)].iter().enumerate();
        for (number, _) in here.filter(|(_, page)| *page & 1 != 0) {
            let (at, length) = ((offset + number * PAGE) as u64, PAGE as u64);
            match parts.last_mut() {
                Some((from, so_far)) if *from + *so_far == at => *so_far += length,
                _ => parts.push((at, length)),
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Contents;
    use crate::memory::tests::backend;
    use baton_migration::checkpoint::RamSink;

    #[test]
    fn only_what_the_file_holds_is_mapped_ahead() {
        let mut config = backend("memory-backend-memfd", true);
        config.size = 3 * STEP as u64;
        let new = |fd| Ram::new(&config, fd, Contents::New).unwrap();
        let first = new(None);
        let step = STEP as u64;
        // Across two steps, alone, and at the end.
        for at in [step - 4096, step, step + 8192, 3 * step - 4096] {
            first.write(at, &[1; 4096]).unwrap();
        }
        let second = new(Some(first.shared_file().unwrap().unwrap()));
        let expected = [
            (step - 4096, 8192),
            (step + 8192, 4096),
            (3 * step - 4096, 4096),
        ];
        assert_eq!(second.held(), expected);
        second.warm_up();
        let blocks = |ram: &Ram| {
            use std::os::unix::fs::MetadataExt;
            ram.backing.as_ref().unwrap().metadata().unwrap().blocks()
        };
        assert_eq!(blocks(&second), 4 * 8, "pages were made");
    }
}
