//! Sending and receiving bytes with descriptors (SCM_RIGHTS, unix(7)).
//!
//! `unsafe` is needed because the safe wrapper of recvmsg(2) gives no access to the descriptors of a
//! message whose control data was cut, and those that came must be closed.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// The kernel's limit of descriptors per message (SCM_MAX_FD, include/net/scm.h).
pub const MAX_FDS_PER_FRAME: usize = 253;

/// Room for the control data of [`MAX_FDS_PER_FRAME`] descriptors: one header of 16 bytes and the
/// numbers, rounded up to 8.
const CONTROL: usize = 16 + (MAX_FDS_PER_FRAME * size_of::<RawFd>()).next_multiple_of(8);

/// Control data must be aligned like its header.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Sends as much of `bytes` as fits, and all of `fds` with the first byte of it.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    // A peer that hung up shall be an error, not a signal.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        bytes,
        control,
        flags,
        None,
    )?)
}

/// What one receive brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes, 0 at the end of the stream.
    pub bytes: usize,
    /// Descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Some descriptors did not arrive.
    pub cut: bool,
}

/// Receives what there is, at most `into`; [`io::ErrorKind::WouldBlock`] if there is nothing.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, into, CONTROL)
}

/// As [`receive`], with less room for control data.
pub(super) fn receive_with(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    control_room: usize,
) -> io::Result<Received> {
    let mut control = Control([0; CONTROL]);
    let mut vector = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: msghdr is plain data for which all zeros is valid: no name, no buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control_room.min(CONTROL);

    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: `message` points to one vector over `into` and to `control`, both with their true
    // lengths and both alive and unshared during the call.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if bytes < 0 {
        return Err(io::Error::last_os_error());
    }

    let mut fds = Vec::new();
    // SAFETY: recvmsg succeeded, so `message` describes the control data the kernel wrote into
    // `control`, which is alive and aligned.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header within the control
        // data.
        let (level, kind, length) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len,
            )
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: CMSG_LEN only computes; CMSG_DATA stays within the message of `header`.
            let (empty, data) = unsafe { (libc::CMSG_LEN(0) as usize, libc::CMSG_DATA(header)) };
            let count = length.saturating_sub(empty) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` whole numbers from `data` on; they need not be
                // aligned for a read_unaligned.
                let fd = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has just installed this descriptor for us, and each number is
                // read once, so nothing else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `header` is a header of `message`'s control data, as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received {
        bytes: bytes as usize,
        fds,
        cut: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}
