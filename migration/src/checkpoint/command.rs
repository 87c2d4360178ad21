//! A command at the other end of a pipe.
// Preparing a child between fork and exec, and asking a pipe for its content, need `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

use super::Cancel;
use crate::HostError;
use crate::channel::{Deadline, wait};

/// How long to wait between two looks at something that tells nobody when it changes.
pub(super) const LOOK: Duration = Duration::from_millis(2);

/// A running command. It and what it has started are killed when this is dropped.
pub(super) struct Command {
    child: Child,
    /// Once it has ended by itself.
    status: Option<ExitStatus>,
}

impl Command {
    /// Starts a command that reads from the pipe whose other end is returned.
    pub(super) fn reading(line: &[String]) -> Result<(Self, File), HostError> {
        let mut child = Self::start(line, Stdio::piped(), Stdio::null())?;
        let end = child.stdin.take().map(OwnedFd::from);
        Self::with(child, end)
    }

    /// Starts a command that writes to the pipe whose other end is returned.
    pub(super) fn writing(line: &[String]) -> Result<(Self, File), HostError> {
        let mut child = Self::start(line, Stdio::null(), Stdio::piped())?;
        let end = child.stdout.take().map(OwnedFd::from);
        Self::with(child, end)
    }

    fn with(child: Child, end: Option<OwnedFd>) -> Result<(Self, File), HostError> {
        let command = Self {
            child,
            status: None,
        };
        let end = end.ok_or("the command has no pipe")?;
        Ok((command, File::from(end)))
    }

    fn start(line: &[String], input: Stdio, output: Stdio) -> Result<Child, HostError> {
        let (program, arguments) = line.split_first().ok_or("exec: the command is missing")?;
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .stdin(input)
            .stdout(output)
            .process_group(0);
        // SAFETY: only sets the signal mask, which is allowed between fork and exec.
        unsafe {
            // Signals that one thread of this process waits for are blocked in all others.
            command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
        }
        command
            .spawn()
            .map_err(|e| format!("Cannot start '{program}': {e}").into())
    }

    /// How it has ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap_or_default();
        }
        self.status
    }

    /// How it has ended, of a command that has just stopped reading: it takes a moment to end.
    pub(super) fn ending(&mut self, cancel: Cancel<'_>) -> Option<ExitStatus> {
        let end = Deadline::after(50 * LOOK);
        while self.ended().is_none() && !end.passed() && !cancel.requested() {
            std::thread::sleep(LOOK);
        }
        self.status
    }

    /// Waits for its end, which must be a good one.
    pub(super) fn succeed(&mut self, cancel: Cancel<'_>) -> Result<(), HostError> {
        loop {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the command ended with {status}").into()),
                None => {}
            }
            let fds = [Some((cancel.fd(), PollFlags::POLLIN))];
            if let [true] = wait(fds, Deadline::after(LOOK))? {
                return Err("it was cancelled".into());
            }
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // It may have ended by now.
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

nix::ioctl_read_bad!(fionread, nix::libc::FIONREAD, nix::libc::c_int);

/// How many bytes are in a pipe.
pub(super) fn unread(pipe: &File) -> Result<u64, HostError> {
    let mut bytes = 0;
    // SAFETY: the kernel writes an int.
    unsafe { fionread(pipe.as_raw_fd(), &raw mut bytes) }?;
    Ok(u64::try_from(bytes)?)
}
