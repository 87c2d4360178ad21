//! Small things about descriptors.
// Descriptors of libraries that do not implement `AsFd` are borrowed by number here.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};

/// Whether reading `fd`, which the caller keeps open, would not block now.
pub(crate) fn readable(fd: RawFd) -> bool {
    // SAFETY: the caller keeps it open for this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// A duplicate of `fd`, which the caller keeps open for this call; closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: the caller keeps it open for this call.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// The next client of a listening socket, whatever its family; closed on exec.
pub(crate) fn accept(listener: impl AsFd) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made it, for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A duplicate of the inherited descriptor whose number is `text`.
pub(crate) fn adopt_listed(text: &str) -> Result<OwnedFd, baton_migration::HostError> {
    let fd: RawFd = text.parse().ok().filter(|fd| *fd >= 0).ok_or_else(|| {
        format!("'{text}' is no descriptor's number, and none has been given that name")
    })?;
    // A number that is not open gives an error, whatever its owner.
    duplicate(fd).map_err(|e| format!("Descriptor {fd}: {e}").into())
}
