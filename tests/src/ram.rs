//! The guest's RAM, mapped here while the guest uses it.
// Memory that another process changes is read through raw pointers: there is no safe way to say it.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;

use crate::report::{self, Report};

const PAGE: u64 = 4096;

/// Guest RAM in a file that every generation of the VMM maps, and this process too.
#[derive(Debug)]
pub struct GuestRam {
    base: NonNull<c_void>,
    length: NonZeroUsize,
    report: Report,
}

// SAFETY: the mapping is as good in one thread as in another. All access is by single aligned
// volatile loads, and by the one store in `Report::tell`: the guest changes it all beside every
// thread anyway.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Makes the file, empty and `length` bytes long, and maps it.
    ///
    /// # Errors
    /// When that fails, or the report would not fit.
    pub fn create(file: &Path, length: u64) -> Result<Self> {
        let about = || format!("Cannot make guest RAM in {}", file.display());
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(file)
            .with_context(about)?;
        opened.set_len(length).with_context(about)?;
        Self::map(&opened, 0, length).with_context(about)
    }

    /// Gives every page of the file its memory.
    ///
    /// # Errors
    /// When there is not that much.
    pub fn allocate(file: &Path) -> Result<()> {
        let about = || format!("Cannot allocate guest RAM in {}", file.display());
        let opened = OpenOptions::new()
            .write(true)
            .open(file)
            .with_context(about)?;
        let length = opened.metadata().with_context(about)?.len();
        let flags = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&opened, flags, 0, length as i64).with_context(about)
    }

    /// Maps RAM that lies in a file from `offset` on.
    ///
    /// # Errors
    /// When that fails, or the report would not fit.
    pub fn within(file: &Path, offset: u64, length: u64) -> Result<Self> {
        let about = || format!("Cannot map guest RAM in {}", file.display());
        let opened = OpenOptions::new().read(true).write(true).open(file);
        Self::map(&opened.with_context(about)?, offset, length).with_context(about)
    }

    fn map(opened: &File, offset: u64, length: u64) -> Result<Self> {
        ensure!(
            length >= report::ADDRESS + report::SIZE as u64,
            "{length} bytes of RAM are too few for the test guest"
        );
        let length = usize::try_from(length).ok().and_then(NonZeroUsize::new);
        let length = length.context("RAM of that size cannot be mapped")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice. The file keeps its length:
        // nobody else has its name.
        let base = unsafe {
            mmap(
                None,
                length,
                protection,
                MapFlags::MAP_SHARED,
                opened,
                i64::try_from(offset)?,
            )
        };
        let base = base?;
        // SAFETY: mapped from guest-physical address 0 on, readable, writable and long enough, for
        // as long as the report, which is dropped with the mapping.
        let report = unsafe { Report::new(base.as_ptr().cast()) };
        Ok(Self {
            base,
            length,
            report,
        })
    }

    /// What the guest says of itself.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Checks every byte of the region the guest walks, while the guest is stopped; gives the number
    /// of pages.
    ///
    /// # Errors
    /// Names the first page that is wrong, and how.
    pub fn check_walk(&self) -> Result<u64> {
        let field = |field| self.report.get(field);
        let (start, length) = (field(report::RAM_START), field(report::RAM_LEN));
        let passes = field(report::PASSES);
        let loops = field(report::LOOPS);
        ensure!(
            start % PAGE == 0 && start + length <= self.length.get() as u64,
            "The guest reports that it walks {start:#x} to {:#x}, which is not RAM",
            start + length
        );
        let pages = length / PAGE;
        let (new, old) = ((passes + 1) as u8, passes as u8);
        let mut walked = 0;
        for page in 0..pages {
            let address = start + page * PAGE;
            let byte = self.only_byte(address)?;
            if byte == new && walked == page {
                walked += 1;
            } else if byte != old {
                bail!(
                    "Page {address:#x} holds {byte}; in pass {passes}, {walked} pages into it, \
                     that is neither {new} nor, from the first {old} on, {old}"
                );
            }
        }
        let counted = passes * pages + walked;
        ensure!(
            loops == counted || loops + 1 == counted,
            "The guest has counted {loops} pages, and {counted} are in its memory"
        );
        Ok(pages)
    }

    /// Compares every word with that of another guest's RAM, while nobody writes to either.
    ///
    /// # Errors
    /// Names the pages that differ.
    pub fn compare(&self, other: &Self) -> Result<()> {
        ensure!(self.length == other.length, "They are not of one size");
        let word = |ram: &Self, index: usize| {
            // SAFETY: inside the mapping, whose length is a multiple of the page size, and aligned.
            unsafe { ram.base.cast::<u64>().add(index).read_volatile() }
        };
        let words = 0..self.length.get() / 8;
        let differs = words.filter(|index| word(self, *index) != word(other, *index));
        let mut pages: Vec<u64> = differs.map(|index| index as u64 * 8 / PAGE).collect();
        pages.dedup();
        ensure!(pages.is_empty(), "These pages differ: {pages:x?}");
        Ok(())
    }

    /// The first byte of a page that holds nothing else.
    fn only_byte(&self, address: u64) -> Result<u8> {
        let word = |index: u64| {
            let offset = (address + index * 8) as usize;
            // SAFETY: the caller has checked that the page is inside the mapping; it is aligned.
            unsafe {
                self.base
                    .cast::<u8>()
                    .add(offset)
                    .cast::<u64>()
                    .read_volatile()
            }
        };
        for index in 1..PAGE / 8 {
            ensure!(
                word(index) == 0,
                "Page {address:#x} holds {:#x} at offset {:#x}, where nobody ever wrote",
                word(index),
                index * 8
            );
        }
        let first = word(0);
        u8::try_from(first)
            .with_context(|| format!("Page {address:#x} begins with {first:#x}, more than a byte"))
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: mapped in `create` with this length, and nobody borrows from it any more.
        // Unmapping a whole mapping does not fail.
        unsafe { munmap(self.base, self.length.get()) }.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const START: usize = 0x40_0000;
    const PAGES: usize = 8;

    /// RAM after some passes and `walked` pages of the next.
    fn walked(passes: u64, walked: usize) -> (GuestRam, Scratch) {
        let scratch = Scratch::new().unwrap();
        let ram = GuestRam::create(&scratch.join("ram"), 8 << 20).unwrap();
        for (field, value) in [
            (report::RAM_START, START as u64),
            (report::RAM_LEN, PAGES as u64 * PAGE),
            (report::PASSES, passes),
            (report::LOOPS, passes * PAGES as u64 + walked as u64),
        ] {
            write(&ram, report::ADDRESS as usize + field.offset, value);
        }
        for page in 0..PAGES {
            let byte = passes as u8;
            let byte = if page < walked {
                byte.wrapping_add(1)
            } else {
                byte
            };
            write(&ram, START + page * PAGE as usize, u64::from(byte));
        }
        (ram, scratch)
    }

    fn write(ram: &GuestRam, offset: usize, value: u64) {
        // SAFETY: inside the mapping and aligned.
        unsafe {
            ram.base
                .cast::<u8>()
                .add(offset)
                .cast::<u64>()
                .write_volatile(value)
        }
    }

    #[test]
    fn a_walk_with_one_step_down_is_right_wherever_the_step_is() {
        for passes in [0, 1, 255, 256, 1000] {
            for at in 0..=PAGES {
                let (ram, _scratch) = walked(passes, at);
                assert_eq!(ram.check_walk().unwrap(), PAGES as u64, "{passes} {at}");
            }
        }
    }

    #[test]
    fn a_page_that_was_lost_repeated_or_spoiled_is_found() {
        for (page, value) in [(1, 4), (2, 6), (6, 5), (6, 3), (4, 0x104)] {
            let (ram, _scratch) = walked(4, 4);
            let offset = START + page * PAGE as usize;
            write(&ram, offset, value);
            let error = ram.check_walk().unwrap_err().to_string();
            assert!(error.starts_with("Page 0x40"), "{page} {value}: {error}");
        }
        let (ram, _scratch) = walked(4, 4);
        write(&ram, START + 0x2010, 1);
        let error = ram.check_walk().unwrap_err().to_string();
        assert_eq!(
            error,
            "Page 0x402000 holds 0x1 at offset 0x10, where nobody ever wrote"
        );
    }

    #[test]
    fn a_count_that_does_not_fit_the_pages_is_found() {
        let (ram, _scratch) = walked(4, 4);
        write(&ram, report::ADDRESS as usize + report::LOOPS.offset, 30);
        let error = ram.check_walk().unwrap_err().to_string();
        assert_eq!(
            error,
            "The guest has counted 30 pages, and 36 are in its memory"
        );
    }
}
