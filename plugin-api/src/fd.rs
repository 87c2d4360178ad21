//! Descriptors that cross by number.
// A number becomes an owned descriptor here and nowhere else.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// Takes a descriptor that the other side gave away.
pub(crate) fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the messages that carry such a descriptor make it the receiver's own.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The descriptor of something that lives as long as the result.
pub(crate) fn borrow(of: &dyn AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `of` stays borrowed, so the descriptor it owns stays open; if it is not the owner the
    // number may have been closed, and then the system calls this crate makes give an error.
    unsafe { BorrowedFd::borrow_raw(of.as_raw_fd()) }
}

/// A duplicate of a descriptor that stays the other side's own, closed on exec.
pub fn duplicate(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::invalid(format!("{fd} is not a descriptor")));
    }
    // SAFETY: the descriptor is only used within this call; one that is not open gives an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed
        .try_clone_to_owned()
        .map_err(|e| Error::io(format!("Cannot duplicate descriptor {fd}"), &e))
}

/// An eventfd from its descriptor.
pub fn eventfd_from(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is owned and given away here.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}
