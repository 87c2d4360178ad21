//! The way back: a successor that cannot start the guest executes the old program again.
// Signal handlers and `alarm` need `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baton_migration::{HostError, fault};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use nix::unistd::alarm;

use super::OldProgram;
use super::program::Program;

/// How long the successor may take to start the guest: it stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program that has lost its mind ends with.
const CRASHES: [Signal; 6] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
    Signal::SIGALRM,
];

static OLD: OnceLock<Program> = OnceLock::new();
static ARMED: AtomicBool = AtomicBool::new(false);

/// While it is armed, whatever ends this program executes the old one. One a process.
pub struct Guard(());

impl Guard {
    /// Arms it: from here on a panic, a crash or a minute without a start goes back.
    pub fn arm(old: &OldProgram, handoff: RawFd) -> Result<Self, HostError> {
        let program = Program::old(old, handoff)?;
        if OLD.set(program).is_err() {
            return Err("The way back is prepared once".into());
        }
        ARMED.store(true, Ordering::SeqCst);
        let flags = SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER | SaFlags::SA_RESETHAND;
        let action = SigAction::new(SigHandler::Handler(on_crash), flags, SigSet::empty());
        for signal in CRASHES {
            // SAFETY: the handler only makes system calls.
            unsafe { sigaction(signal, &action) }?;
        }
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if ARMED.load(Ordering::SeqCst) {
                go_back(format!("the new program panicked: {panic}").as_bytes());
            }
        }));
        let guard = Self(());
        guard.wait(Duration::ZERO);
        Ok(guard)
    }

    /// From here on it has as long as at first, and `more`.
    pub fn wait(&self, more: Duration) {
        let patience = fault::patience(PATIENCE).saturating_add(more);
        alarm::set(patience.as_secs().max(1) as u32);
    }

    /// The guest is about to be started here: there is no way back any more.
    pub fn disarm(self) {
        ARMED.store(false, Ordering::SeqCst);
        alarm::cancel();
        let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        for signal in CRASHES {
            // SAFETY: the default action is no code of ours.
            if let Err(e) = unsafe { sigaction(signal, &action) } {
                tracing::warn!("the handler of {signal} stays: {e}");
            }
        }
    }

    /// Executes the old program, which goes on with the guest and tells `reason`. Returns only if
    /// that failed, with why.
    pub fn roll_back(self, reason: &str) -> String {
        let errno = go_back(reason.as_bytes());
        format!(
            "The old program cannot be executed again either: {}",
            errno.desc()
        )
    }
}

/// Executes the old program. Safe in a signal handler.
fn go_back(reason: &[u8]) -> nix::errno::Errno {
    let none = SigSet::empty();
    // Signals that are blocked, as in a handler, stay so in the next program.
    let _ = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&none), None);
    match OLD.get() {
        Some(old) => old.execute(reason),
        None => nix::errno::Errno::ENOENT,
    }
}

extern "C" fn on_crash(signal: libc::c_int) {
    if !ARMED.load(Ordering::SeqCst) {
        return;
    }
    let reason: &[u8] = match signal {
        libc::SIGALRM => b"the new program did not start the guest within a minute",
        libc::SIGSEGV => b"the new program crashed (SIGSEGV)",
        libc::SIGBUS => b"the new program crashed (SIGBUS)",
        libc::SIGILL => b"the new program crashed (SIGILL)",
        libc::SIGFPE => b"the new program crashed (SIGFPE)",
        _ => b"the new program aborted",
    };
    go_back(reason);
}
