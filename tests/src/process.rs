//! Processes: starting one so that it never outlives who started it, and asking about it.
// Between fork and exec only a raw hook runs, which the standard library marks unsafe, and a
// process's priority has no safe wrapper.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

/// Starts `command`. The process is killed when the calling *thread* ends, even by SIGKILL.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(command: &mut Command) -> Result<Child> {
    // SAFETY: the hook makes one system call and touches no memory of the parent's.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    command
        .spawn()
        .with_context(|| format!("Cannot start {}", command.get_program().to_string_lossy()))
}

/// Puts this process, and those it starts from now on, before others that want the CPU; gives whether
/// that is allowed.
pub fn outrank_others() -> bool {
    // SAFETY: changes the calling process's priority and nothing else.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, -15) == 0 }
}

/// Sends a signal to a process of ours.
///
/// # Errors
/// When it is gone.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(child.id() as i32), signal)
        .with_context(|| format!("Cannot send {signal} to process {}", child.id()))
}

/// The open descriptors of a process, as what each is open on, sorted.
///
/// # Errors
/// When it is gone.
pub fn descriptors(pid: u32) -> Result<Vec<String>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).with_context(|| format!("Cannot list {folder}"))?;
    let mut open: Vec<String> = entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    open.sort();
    Ok(open)
}

/// The last line of a log, for an error.
pub fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("nothing").to_owned()
}

/// How a process ended, for an error.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}
