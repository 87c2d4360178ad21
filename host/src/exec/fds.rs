//! Descriptors that outlive `execve`, and those that must not.
// A descriptor is known by its number alone on the other side.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;

/// Keeps `fd` open across `execve`, or closes it there.
pub(super) fn keep(fd: impl AsFd, keep: bool) -> Result<(), Errno> {
    let flags = if keep {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(|_| ())
}

/// A duplicate of the inherited descriptor `number`, which is closed at the next `execve`. The
/// descriptor itself stays as it is.
pub(super) fn duplicate(number: RawFd) -> std::io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: only used for this call, which gives an error if it is not open.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Makes the inherited descriptor `number` one of what `fd` is, which outlives `execve` as well.
pub(super) fn replace(number: RawFd, fd: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: `number` was inherited and nothing of this process has taken it; it is open before
    // and after.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, 0) }).map(|_| ())
}

/// Takes the inherited descriptor `number` for its own, to close it.
pub(super) fn close(number: RawFd) {
    if number > 2 && duplicate(number).is_ok() {
        // SAFETY: it is open, was inherited, and nothing of this process has taken it.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

/// Descriptors that outlive `execve` while this lives: if it fails, they are as before.
pub struct Outlive<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Outlive<'a> {
    /// Lets them.
    pub fn new(fds: Vec<BorrowedFd<'a>>) -> Result<Self, Errno> {
        let all = Self(fds);
        all.0.iter().try_for_each(|fd| keep(fd, true))?;
        Ok(all)
    }
}

impl Drop for Outlive<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            // It is open, so that this cannot fail.
            let _ = keep(fd, false);
        }
    }
}
