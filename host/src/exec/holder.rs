//! A child that shares the old program's memory while its successor is executed.
//!
//! It makes the blackout shorter: `execve` would unmap guest RAM and tear down the old VM, page by
//! page, while the guest stands still; as long as a child has both, it need not. And it makes it
//! safer: if the successor ends in whatever way before the guest was started, the child, which has
//! all descriptors, executes the old program in its stead.
//!
//! The child runs on the old program's memory with nobody else in it, so it makes system calls and
//! does nothing more.
// It is made of system calls.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use baton_migration::HostError;
use baton_migration::claim::ClaimWatch;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::fds;
use super::handoff::HolderHandle;
use super::program::Program;

/// Waits for the last child.
static REAPER: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

/// Bytes of the child's stack.
const STACK: usize = 64 << 10;
/// What the claim's word says once the guest was started.
type Started = fn(&ClaimWatch) -> bool;

/// What the child works with; it lives as long as the old memory.
struct Child {
    leash: RawFd,
    /// The leash's other end, of which the child has a copy.
    hand: RawFd,
    parent: RawFd,
    parent_pid: i32,
    old: Program,
    claim: ClaimWatch,
    started: Started,
}

/// The child, from the side of the program that has made it.
pub struct Holder {
    handle: HolderHandle,
    leash: OwnedFd,
}

impl Holder {
    /// Starts the child. Descriptors that the old program needs again must be set to outlive
    /// `execve` already. `started` tells from the claim whether the guest was started.
    pub fn start(old: Program, claim: ClaimWatch, started: Started) -> Result<Self, HostError> {
        let (ours, theirs) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map(|(read, write)| (write, read))?;
        // SAFETY: asks for a descriptor of this very process.
        let parent = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
        let parent = Errno::result(parent)? as RawFd;
        // SAFETY: it was just made, and nobody else has it.
        let parent = unsafe { OwnedFd::from_raw_fd(parent) };
        let child = Box::new(Child {
            leash: theirs.as_raw_fd(),
            hand: ours.as_raw_fd(),
            parent: parent.as_raw_fd(),
            parent_pid: nix::unistd::getpid().as_raw(),
            old,
            claim,
            started,
        });
        // SAFETY: a new mapping touches nothing that is there.
        let stack = unsafe {
            libc::mmap(
                ptr::null_mut(),
                STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if stack == libc::MAP_FAILED {
            return Err(Errno::last().into());
        }
        // A handler would run on this program's memory; the child hears of nothing.
        let mut before = SigSet::empty();
        pthread_sigmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut before),
        )?;
        let child = Box::into_raw(child);
        // SAFETY: the stack is the child's alone and `child` is never freed while it runs. It shares
        // the memory and has a copy of the descriptors; it neither returns nor uses the C library
        // but for system calls that succeed or end it.
        let pid = unsafe {
            libc::clone(
                hold,
                stack.add(STACK),
                libc::CLONE_VM | libc::SIGCHLD,
                child.cast(),
            )
        };
        let made = Errno::result(pid);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        // The child has copies of these.
        drop((theirs, parent));
        let pid = made?;
        Ok(Self {
            handle: HolderHandle {
                pid,
                leash: ours.as_raw_fd(),
            },
            leash: ours,
        })
    }

    /// What the successor needs to let it go; the leash outlives `execve` from here on.
    pub fn handle(&self) -> Result<HolderHandle, HostError> {
        fds::keep(&self.leash, true)?;
        Ok(self.handle)
    }
}

impl Drop for Holder {
    /// Ends the child: nothing was executed. It must be told, since a leash that is only let go of
    /// may be that of a dying process.
    fn drop(&mut self) {
        if let Err(e) = nix::unistd::write(&self.leash, b".") {
            tracing::debug!("the holder has ended: {e}");
        }
        reap(self.handle.pid);
    }
}

/// In the successor, once the guest was started: ends the child, whose memory and descriptors go.
pub(super) fn let_go(handle: HolderHandle) {
    fds::close(handle.leash);
    // Taking down the old VM and its memory may take a while.
    let reaper = std::thread::Builder::new()
        .name("reaper".into())
        .spawn(move || reap(handle.pid));
    match reaper {
        Ok(thread) => *REAPER.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread),
        Err(e) => tracing::debug!("the old program's memory is not waited for: {e}"),
    }
}

/// Waits until nothing is left of the program before this one: `execve` would end the thread that
/// waits for it, and leave a zombie.
pub fn settle() {
    let reaper = REAPER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(reaper) = reaper {
        // It does not panic.
        let _ = reaper.join();
    }
}

fn reap(pid: i32) {
    let child = nix::unistd::Pid::from_raw(pid);
    while nix::sys::wait::waitpid(child, None) == Err(Errno::EINTR) {}
}

/// The child.
extern "C" fn hold(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the caller's box, which nobody frees while this runs.
    let child = unsafe { &*child.cast::<Child>() };
    let watch = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the child's own copy, which would keep the leash from ever being let go.
    unsafe { libc::close(child.hand) };
    let mut leash = child.leash;
    loop {
        let mut fds = [watch(leash), watch(child.parent)];
        // SAFETY: two entries, both on this stack.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if ready <= 0 {
            continue;
        }
        let [leashed, parent] = fds;
        if (child.started)(&child.claim) || leashed.revents & libc::POLLIN != 0 {
            break;
        }
        // SAFETY: asks for a number.
        if parent.revents != 0 && unsafe { libc::getppid() } != child.parent_pid {
            // Nobody is left who could run the guest.
            child
                .old
                .execute(b"the new program ended before it started the guest");
            break;
        }
        if leashed.revents != 0 {
            // Let go of by a process that is dying: it closes its files before it is gone. Its
            // end is what is waited for now.
            leash = -1;
        }
    }
    // SAFETY: ends this child alone, and runs nothing of the old program.
    unsafe { libc::_exit(0) }
}
