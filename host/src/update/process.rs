//! Another process of this host, told from one that gets its number later.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

/// How often to look whether a process is there.
const LOOK: Duration = Duration::from_millis(5);

/// A process, as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    /// When it was started, in the kernel's ticks.
    started: String,
}

impl Process {
    /// The process of that number, if this process can see it.
    pub(super) fn find(pid: u32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (!over(&state)).then_some(Self { pid, started })
    }

    /// The process of that number that was started a moment ago, and may have ended since.
    pub(super) fn begun(pid: u32) -> Self {
        let started = stat(pid).map(|(_, started)| started).unwrap_or_default();
        Self { pid, started }
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has `arguments` beside its name. One in another PID namespace has not.
    pub(super) fn has_arguments(&self, arguments: &[String]) -> bool {
        let Ok(line) = std::fs::read(format!("/proc/{}/cmdline", self.pid)) else {
            return false;
        };
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        let words = line.split(|byte| *byte == 0).skip(1);
        words.eq(arguments.iter().map(String::as_bytes))
    }

    /// Its user.
    pub(super) fn owner(&self) -> Option<Uid> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        // Real, effective, saved, file system.
        let id = ids.split_whitespace().nth(1)?.parse().ok()?;
        Some(Uid::from_raw(id))
    }

    /// Whether it is there. One that only waits to be waited for is not.
    pub(super) fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && !over(&state))
    }

    /// Waits for its end; whether it has come.
    pub(super) fn ended(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while self.lives() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Ends it by force, if it does not end by itself; whether it has ended.
    pub(super) fn end(&self, within: Duration) -> bool {
        if self.ended(within) {
            return true;
        }
        // It was there a moment ago, and its number is not given away that fast.
        let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        self.ended(within)
    }
}

/// State and start of a process: proc_pid_stat(5), fields 3 and 22.
fn stat(pid: u32) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before them may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.to_owned();
    let started = fields.nth(18)?.to_owned();
    Some((state, started))
}

fn over(state: &str) -> bool {
    matches!(state, "Z" | "X")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_there_until_it_has_ended_waited_for_or_not() {
        // It ends with its input at the latest, so that a failure leaves nothing behind.
        let mut child = Command::new("cat")
            .arg("-u")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let process = Process::find(child.id()).unwrap();
        assert!(process.lives() && !process.ended(Duration::ZERO));
        // execve lets the parent go on before the kernel shows the new arguments.
        let end = Instant::now() + Duration::from_secs(20);
        while !process.has_arguments(&["-u".into()]) {
            assert!(Instant::now() < end, "It has other arguments");
            std::thread::sleep(LOOK);
        }
        assert!(!process.has_arguments(&[]));
        assert_eq!(process.owner(), Some(Uid::effective()));
        assert!(process.end(Duration::from_millis(1)) || process.ended(Duration::from_secs(20)));
        child.wait().unwrap();
        assert!(!process.lives());
        assert_eq!(Process::find(child.id()), None);
    }
}
