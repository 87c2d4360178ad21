//! How a vCPU thread is called out of the guest.
//!
//! A signal makes KVM_RUN return, but one that comes just before the thread enters KVM_RUN would be
//! lost. The handler therefore sets `immediate_exit` of the thread's own `kvm_run` (kernel:
//! Documentation/virt/kvm/api.rst, KVM_RUN), which makes the next KVM_RUN return at once.
// A signal handler, and the pointer it writes through, need `unsafe`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr;

use kvm_ioctls::VcpuFd;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU this thread runs. A constant initialiser and no
    /// destructor, so that the handler may touch it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// QEMU uses the same signal for this; a debugger's users know it.
const SIGNAL: Signal = Signal::SIGUSR1;

/// Installs the handler; once a process.
pub fn install_handler() -> nix::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(on_signal),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler only reads a thread-local cell and writes one byte.
    unsafe { sigaction(SIGNAL, &action) }.map(|_| ())
}

extern "C" fn on_signal(_: libc::c_int) {
    IMMEDIATE_EXIT.with(|cell| {
        let flag = cell.get();
        if !flag.is_null() {
            // SAFETY: `Attached` keeps the pointer valid as long as it is set.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// This thread runs a vCPU, and the handler may call it out.
pub(super) struct Attached;

impl Attached {
    /// The vCPU's mapping must outlive the result, which the thread's loop sees to.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// The kernel's id of this thread.
pub(super) fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Calls a thread out of the guest.
pub(super) fn call_out(thread: i32) {
    let process = nix::unistd::getpid().as_raw();
    // SAFETY: plain system call; a thread that has ended gives an error that does not matter.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SIGNAL as libc::c_int) };
}
