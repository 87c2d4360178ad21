//! Replacing the running kernel by another, as `kexec -s -l` and `kexec -e` do.

use super::super::process;
use anyhow::{Context, Result};
use nix::libc;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

const INITRAMFS: &str = "/dev/shm/next.cpio";

/// Starts `kernel` with this kernel's command line, and with everything in the root file system as
/// its initramfs. File systems that matter are to be unmounted before.
///
/// # Errors
/// When it does not come to that; the running kernel goes on then.
pub(crate) fn start(kernel: &Path) -> Result<Infallible> {
    // Mounted file systems are left out: the next process 1 makes its own.
    let pack = format!("cd / && find . -xdev | cpio -o -H newc >{INITRAMFS}");
    process::output(Command::new("sh").args(["-c", &pack]))?;
    let line = fs::read_to_string("/proc/cmdline").context("Cannot read the command line")?;
    let line = CString::new(line.trim_end()).context("The kernel's command line")?;
    load(&open(kernel)?, &open(Path::new(INITRAMFS))?, &line)
        .with_context(|| format!("The kernel {} cannot be loaded", kernel.display()))?;
    println!("LAB the next kernel starts");
    sync();
    reboot(RebootMode::RB_KEXEC).context("The next kernel does not start")
}

fn open(file: &Path) -> Result<File> {
    File::open(file).with_context(|| format!("Cannot open {}", file.display()))
}

fn load(kernel: &File, initramfs: &File, line: &CString) -> nix::Result<()> {
    let line = line.as_bytes_with_nul();
    // SAFETY: the descriptors are open, and `line` is as long as said; both are only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            line.len(),
            line.as_ptr(),
            0,
        )
    };
    nix::errno::Errno::result(result).map(drop)
}
