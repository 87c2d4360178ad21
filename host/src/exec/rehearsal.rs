//! The successor is tried while the guest runs: it is started beside, builds the machine on the
//! same descriptors, says that it could, and ends.
// What runs between fork and exec is unsafe.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use baton_migration::HostError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::handoff::{self, Handoff, OldProgram};
use super::program::{FAILED, STATE};

/// What a rehearsal that went well answers.
pub(super) const READY: &str = "ready";
/// How long it may take. The guest runs meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer, in bytes.
const LONGEST: u64 = 16 << 10;

/// Runs the command with `handoff`, of which only descriptors for the machine are used. `cancelled`
/// is readable if it shall be given up.
pub fn rehearse(
    line: &[String],
    old: &OldProgram,
    handoff: &Handoff,
    cancelled: impl AsFd,
) -> Result<(), HostError> {
    let (program, arguments) = line
        .split_first()
        .ok_or("cpr-exec mode requires setting cpr-exec-command")?;
    let (answers, answer) = std::io::pipe()?;
    let handoff = Handoff {
        answer: Some(answer.as_raw_fd()),
        ..handoff.clone()
    };
    let memfd = handoff::write(old, &handoff)?;
    let mut kept: Vec<_> = handoff.fds.iter().map(|(_, number)| *number).collect();
    kept.extend([memfd.as_raw_fd(), answer.as_raw_fd(), old.exe]);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env_remove(FAILED)
        .env(STATE, memfd.as_raw_fd().to_string());
    // SAFETY: the hook makes system calls only; its list was allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            for number in &kept {
                if nix::libc::fcntl(*number, nix::libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = command
        .spawn()
        .map_err(|e| format!("execvp {program} failed: {e}"))?;
    drop(answer);
    let said = listen(answers.into(), cancelled.as_fd());
    if said.is_err() {
        // It is of no use any more, and may hang.
        let _ = child.kill();
    }
    let status = wait(&mut child)?;
    judge(program, &said?, status)
}

/// Everything the child says until it has closed its end.
fn listen(answers: OwnedFd, cancelled: impl AsFd) -> Result<String, HostError> {
    let end = Instant::now() + PATIENCE;
    let mut file = File::from(answers);
    let mut said = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [
            PollFd::new(file.as_fd(), PollFlags::POLLIN),
            PollFd::new(cancelled.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => {
                return Err(format!(
                    "The program of cpr-exec-command was tried, and did not answer within {} s",
                    PATIENCE.as_secs()
                )
                .into());
            }
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        if fds[1].any() == Some(true) {
            return Err("Cancelled while the program of cpr-exec-command was tried".into());
        }
        let mut part = [0; 4096];
        match file.read(&mut part)? {
            0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
            n if (said.len() + n) as u64 <= LONGEST => said.extend_from_slice(&part[..n]),
            _ => {}
        }
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus, HostError> {
    child
        .wait()
        .map_err(|e| format!("The program that was tried cannot be waited for: {e}").into())
}

fn judge(program: &str, said: &str, status: ExitStatus) -> Result<(), HostError> {
    if said == READY && status.success() {
        return Ok(());
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit status {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    };
    let reason = match said {
        "" | READY => format!("{how}, and said nothing; is it a Baton with cpr-exec?"),
        reason => reason.to_owned(),
    };
    Err(format!("{program} was tried and cannot take the guest: {reason}").into())
}
