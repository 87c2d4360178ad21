//! `-daemonize`: the process that was started ends when the guest's is up, and says how that went.
//!
//! As in QEMU (os-posix.c): a pipe to the process that was started, two forks with a new session
//! between them, no terminal. Unlike there the working directory stays: relative names mean the same
//! later on, and to a successor.
// A fork is unsafe beside other threads, and a signal is ignored by a raw call.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::exit;

use baton_migration::HostError;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

/// What the process that was started reads when all is well.
const UP: u8 = 0;

/// The daemon's way to tell the process that was started, which waits.
pub struct Daemon {
    parent: File,
}

impl Daemon {
    /// Goes on in a process without a terminal. The process that was started stays behind and ends
    /// with status 0 once that one [is up](Self::up), or with 1 if it ends before; what it has to say
    /// until then goes to the same standard error. Call it while there is no other thread.
    pub fn detach() -> Result<Self, HostError> {
        let failed = |what: &str| {
            let what = format!("-daemonize: cannot {what}");
            move |e: nix::Error| format!("{what}: {e}")
        };
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
        // SAFETY: there is no other thread yet, so that the child has all of this process.
        match unsafe { fork() }.map_err(failed("fork"))? {
            ForkResult::Child => drop(ours),
            ForkResult::Parent { .. } => {
                drop(theirs);
                let mut word = [1];
                let read = File::from(ours).read_exact(&mut word);
                exit(i32::from(read.is_err() || word != [UP]));
            }
        }
        setsid().map_err(failed("begin a session"))?;
        // Whoever leads a session could get a terminal again.
        // SAFETY: as above.
        if unsafe { fork() }.map_err(failed("fork"))?.is_parent() {
            exit(0);
        }
        umask(Mode::from_bits_truncate(0o027));
        for tty in [Signal::SIGTSTP, Signal::SIGTTOU, Signal::SIGTTIN] {
            // SAFETY: no handler runs.
            unsafe { signal(tty, SigHandler::SigIgn) }.map_err(failed("ignore a signal"))?;
        }
        Ok(Self {
            parent: theirs.into(),
        })
    }

    /// Gives the standard streams up, `keep_errors` but for standard error, and lets the process
    /// that was started end well.
    pub fn up(mut self, keep_errors: bool) -> Result<(), HostError> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(|e| format!("-daemonize: cannot open /dev/null: {e}"))?;
        dup2_stdin(&null)
            .and_then(|()| dup2_stdout(&null))
            .and_then(|()| match keep_errors {
                true => Ok(()),
                false => dup2_stderr(&null),
            })
            .map_err(|e| format!("-daemonize: cannot give up the terminal: {e}"))?;
        // It may have been killed, which is no reason to end here.
        let _ = self.parent.write_all(&[UP]);
        Ok(())
    }
}
