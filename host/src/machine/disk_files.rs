//! The files behind disks, written back before their guest is kept.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use nix::libc;

/// Duplicates of open files.
pub struct DiskFiles(Vec<File>);

impl DiskFiles {
    /// Those of `fds` that are on a disk.
    pub(super) fn among(fds: impl Iterator<Item = OwnedFd>) -> Self {
        let on_disk = |file: &File| {
            file.metadata()
                .is_ok_and(|found| found.is_file() || found.file_type().is_block_device())
        };
        Self(fds.map(File::from).filter(on_disk).collect())
    }

    /// Waits until everything that was written to them has reached the disk.
    pub fn write_back(&self) -> io::Result<()> {
        for file in &self.0 {
            match file.sync_data() {
                // What cannot be written has nothing to be written back.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) => {}
                other => other?,
            }
        }
        Ok(())
    }
}
