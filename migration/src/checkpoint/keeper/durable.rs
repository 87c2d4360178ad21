//! What is common to places that can be written anywhere: state and RAM first, the header last.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

use super::How;
use crate::HostError;
use crate::checkpoint::format::{KeptHeader, PAGE, RamLayout};
use crate::checkpoint::{Cancel, RamSource, pages};

/// Writes into an open file, whose lock it gives up at the end.
pub(super) struct Writer {
    pub(super) file: File,
    /// Where the header goes.
    base: u64,
    how: How,
    /// Whether all of the file is ours and new: it holds nothing yet.
    fresh: bool,
    /// Once all but the header is written.
    header: Option<KeptHeader>,
}

impl Writer {
    pub(super) fn new(file: File, base: u64, how: How, fresh: bool) -> Self {
        Self {
            file,
            base,
            how,
            fresh,
            header: None,
        }
    }

    /// Makes sure that nothing that was there before looks whole.
    pub(super) fn invalidate(&self) -> Result<(), HostError> {
        self.file.write_all_at(&[0; PAGE as usize], self.base)?;
        Ok(self.file.sync_data()?)
    }

    /// Writes everything but the header, and waits until it is on the disk.
    pub(super) fn write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        let bytes = state.len() as u64;
        let header = match ram {
            Some(ram) => KeptHeader::fixed(self.how.mode, self.base, bytes, ram.size()),
            None => KeptHeader {
                mode: self.how.mode,
                state: bytes,
                ram: RamLayout::InPlace,
            },
        };
        let length = header.length().unwrap_or_default();
        let end = self
            .base
            .checked_add(length)
            .ok_or("the offset is too far out")?;
        self.make_room(end)?;
        self.file.write_all_at(state, self.base + PAGE)?;
        if let (Some(ram), RamLayout::Fixed { offset, size }) = (ram, header.ram) {
            let start = self.base + offset;
            let zeroed = self.fresh || self.zero(start, size);
            pages::write(&self.file, start, ram, zeroed, self.how.ram, cancel)?;
        }
        self.file.sync_all()?;
        self.header = Some(header);
        Ok(())
    }

    /// Writes the header, and waits until it is on the disk.
    pub(super) fn seal(&self) -> Result<(), HostError> {
        let header = self.header.ok_or("nothing was written")?;
        self.file.write_all_at(&header.encode(), self.base)?;
        Ok(self.file.sync_all()?)
    }

    /// Lets others read it.
    pub(super) fn release(&self) {
        // An error means that there was no lock.
        let _ = self.file.unlock();
    }

    /// Whether the header may have been written.
    pub(super) fn complete(&self) -> bool {
        self.header.is_some()
    }

    /// A plain file gets its length now; a device has the one it has.
    fn make_room(&self, end: u64) -> Result<(), HostError> {
        if self.file.metadata()?.is_file() {
            if self.file.metadata()?.len() < end {
                self.file.set_len(end)?;
            }
            return Ok(());
        }
        let there = lseek64(&self.file, 0, Whence::SeekEnd)? as u64;
        match there < end {
            true => {
                Err(format!("{end} bytes are needed, and it has {there}; use a larger one").into())
            }
            false => Ok(()),
        }
    }

    /// Makes a range all zero if that is possible without writing all of it.
    fn zero(&self, start: u64, size: u64) -> bool {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        size == 0 || fallocate(&self.file, flags, start as i64, size as i64).is_ok()
    }
}

impl Drop for Writer {
    /// A lock outlives this descriptor if others have a duplicate, be it a child that is just being
    /// started.
    fn drop(&mut self) {
        self.release();
    }
}
