//! Processes: starting one so that it never outlives who started it, and asking about it.
// Between fork and exec only a raw hook runs, which the standard library marks unsafe, and a
// process's priority has no safe wrapper.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
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
    adopt_orphans()?;
    // SAFETY: the hook makes two system calls and touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            // Tests crash processes on purpose.
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            set_pdeathsig(Signal::SIGKILL).map_err(Into::into)
        })
    };
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

/// A process that was started here, or the one that took its place when it died.
#[derive(Debug)]
pub struct Running {
    child: Child,
    heir: Option<Heir>,
}

/// A process that its parent's death made a child of this one.
#[derive(Debug)]
struct Heir {
    pid: Pid,
    ended: Option<ExitStatus>,
}

impl Running {
    /// A process that was just started.
    pub fn new(child: Child) -> Self {
        Self { child, heir: None }
    }

    /// It has died, and `pid` goes on in its place.
    pub fn succeeded_by(&mut self, pid: u32) {
        let pid = Pid::from_raw(pid as i32);
        self.heir = Some(Heir { pid, ended: None });
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        match &self.heir {
            Some(heir) => heir.pid.as_raw() as u32,
            None => self.child.id(),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid() as i32), signal)
            .with_context(|| format!("Cannot send {signal} to process {}", self.pid()))
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// When that cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let about = "Cannot ask for a process's end";
        let Some(heir) = &mut self.heir else {
            return self.child.try_wait().context(about);
        };
        if heir.ended.is_none() {
            heir.ended = match waitpid(heir.pid, Some(WaitPidFlag::WNOHANG)).context(about)? {
                WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw(code << 8)),
                WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
                _ => None,
            };
        }
        Ok(heir.ended)
    }
}

/// Lets this process take over children whose parent dies, so that it learns of their end.
fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context("Cannot become the parent of orphans")
}

/// The processes whose working directory is `folder`.
pub fn living_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let lives = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == folder);
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(lives)
        .collect()
}

/// Kills the processes whose working directory is `folder` until there are none.
pub fn clear_out(folder: &Path) {
    loop {
        let left = living_in(folder);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let pid = Pid::from_raw(pid as i32);
            // It may have ended by itself; and whoever is not a child is waited for by another.
            kill(pid, Signal::SIGKILL).ok();
            while waitpid(pid, None) == Err(Errno::EINTR) {}
        }
    }
}

/// The children of a process, dead ones that nobody has waited for too.
///
/// # Errors
/// When it is gone.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let folder = format!("/proc/{pid}/task");
    let about = || format!("Cannot list {folder}");
    let mut children = Vec::new();
    for task in fs::read_dir(&folder).with_context(about)? {
        let list = task.with_context(about)?.path().join("children");
        // The thread may have ended.
        let list = fs::read_to_string(list).unwrap_or_default();
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

/// Whether SIGSTOP holds a process.
pub fn stopped(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tT"))
}

/// What a process has of things that can leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Mappings.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory that is its own, in KiB: without that of files and of the guest.
    pub anonymous_kib: u64,
}

/// What a process has now.
///
/// # Errors
/// When it is gone.
pub fn footprint(pid: u32) -> Result<Footprint> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))
    };
    let status = read("status")?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("The system does not tell {name}"))
    };
    Ok(Footprint {
        descriptors: descriptors(pid)?.len(),
        mappings: read("maps")?.lines().count(),
        threads: value("Threads:")? as usize,
        anonymous_kib: value("RssAnon:")?,
    })
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
