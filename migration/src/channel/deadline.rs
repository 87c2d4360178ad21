//! Waiting with an end.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// When waiting ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Waiting ends after `time`; a time too long for the clock is never.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    /// Waiting ends after `time` if there is one, else never.
    pub fn after_or_never(time: Option<Duration>) -> Self {
        time.map_or(Self::never(), Self::after)
    }

    /// Waiting never ends by itself.
    pub const fn never() -> Self {
        Self(None)
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }

    /// What is left, if it ever ends.
    pub fn left(self) -> Option<Duration> {
        self.0
            .map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// For poll(2), rounded up so that it does not spin in the last millisecond. A longer time than
    /// poll can take is cut: [`wait`] polls again.
    fn poll_timeout(self) -> PollTimeout {
        match self.left() {
            None => PollTimeout::NONE,
            Some(left) => {
                let ms = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
                PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
            }
        }
    }
}

/// Waits until one of `fds` has one of its events, an error or a hang-up; tells for each whether it
/// has. All `false` means that the deadline has passed.
pub fn wait<const N: usize>(
    fds: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    deadline: Deadline,
) -> io::Result<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .flatten()
        .map(|(fd, events)| PollFd::new(*fd, *events))
        .collect();
    loop {
        match poll(&mut polled, deadline.poll_timeout()) {
            Ok(0) if deadline.passed() => return Ok([false; N]),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(true));
    Ok(fds.map(|fd| fd.is_some() && ready.next().unwrap_or(false)))
}
