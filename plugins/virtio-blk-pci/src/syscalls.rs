//! The system calls for which no safe wrapper takes what this device has.
// The kernel reads and writes guest memory, which no Rust slice may describe since the guest writes
// it too: such calls are made with pointers, and pointers need `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use crate::buffers::Buffers;

/// One read from `offset` of `file` into what is left of `buffers`. Gives how much was read.
pub(crate) fn read(file: &File, buffers: &Buffers, offset: u64) -> io::Result<usize> {
    let parts = buffers.parts();
    // SAFETY: `Buffers` holds parts of guest memory, which is mapped as long as they exist, and
    // gives at most `IOV_MAX` of them; nothing of Rust's is written.
    let n = unsafe {
        libc::preadv64(
            file.as_raw_fd(),
            parts.as_ptr(),
            parts.len() as i32,
            offset.cast_signed(),
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// One write of what is left of `buffers` to `offset` of `file`. Gives how much was written.
pub(crate) fn write(file: &File, buffers: &Buffers, offset: u64) -> io::Result<usize> {
    let parts = buffers.parts();
    // SAFETY: as in `read`; the kernel only reads.
    let n = unsafe {
        libc::pwritev64(
            file.as_raw_fd(),
            parts.as_ptr(),
            parts.len() as i32,
            offset.cast_signed(),
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Tells a block device that these bytes are no longer needed.
pub(crate) fn discard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    // SAFETY: BLKDISCARD (linux/fs.h) reads two numbers, which live through the call.
    unsafe { blkdiscard(device.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}

/// How many bytes a block device has.
pub(crate) fn device_bytes(device: &File) -> io::Result<u64> {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    let mut bytes = 0u64;
    // The request's number is made with `size_t`, its argument is 64 bits wide everywhere.
    // SAFETY: BLKGETSIZE64 (linux/fs.h) writes one number of 64 bits, which lives through the call.
    unsafe { blkgetsize64(device.as_raw_fd(), (&raw mut bytes).cast()) }?;
    Ok(bytes)
}
