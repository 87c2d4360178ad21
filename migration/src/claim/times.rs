//! When the parts of a blackout begin and end, on one clock for both processes.

use nix::time::{ClockId, clock_gettime};

/// A moment of the blackout. Both processes note theirs in the claim page as CLOCK_MONOTONIC
/// nanoseconds, a clock that all processes of one time namespace share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Moment {
    /// The source begins to stop the vCPUs: the blackout begins.
    Stop,
    /// vCPUs and devices of the source are quiet.
    Quiesced,
    /// The source has the whole state in one buffer.
    Saved,
    /// The target has received and checked it.
    Received,
    /// The target has loaded it.
    Loaded,
    /// The target is about to enter the guest: the blackout ends.
    FirstRun,
    /// The target begins to serve the monitors that the source has left, before it has the guest; no
    /// part of a blackout.
    Waiting,
}

impl Moment {
    /// How many there are.
    pub(super) const COUNT: usize = Moment::Waiting as usize + 1;
}

/// How long the guest stood still and why, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Blackout {
    /// From the first vCPU's stop to the target's entry of the guest.
    pub total_us: u64,
    /// Stopping vCPUs and devices.
    pub quiesce_us: u64,
    /// Saving every section.
    pub save_us: u64,
    /// Sending the state, receiving and checking it.
    pub transfer_us: u64,
    /// Loading it.
    pub load_us: u64,
    /// Acknowledgement, commitment and start.
    pub start_us: u64,
}

impl Blackout {
    /// The phases from the moments' times in nanoseconds, where 0 is "not yet"; `None` until all
    /// are known. A clock that seems to run backwards counts as no time.
    pub(super) fn between(at: impl Fn(Moment) -> u64) -> Option<Self> {
        let order = [
            Moment::Stop,
            Moment::Quiesced,
            Moment::Saved,
            Moment::Received,
            Moment::Loaded,
            Moment::FirstRun,
        ];
        if order.into_iter().any(|moment| at(moment) == 0) {
            return None;
        }
        let us = |from, to| at(to).saturating_sub(at(from)) / 1000;
        Some(Self {
            total_us: us(Moment::Stop, Moment::FirstRun),
            quiesce_us: us(Moment::Stop, Moment::Quiesced),
            save_us: us(Moment::Quiesced, Moment::Saved),
            transfer_us: us(Moment::Saved, Moment::Received),
            load_us: us(Moment::Received, Moment::Loaded),
            start_us: us(Moment::Loaded, Moment::FirstRun),
        })
    }

    /// The whole in milliseconds, rounded to the nearest, as `downtime` in `query-migrate`.
    pub fn downtime_ms(&self) -> u64 {
        (self.total_us + 500) / 1000
    }
}

/// CLOCK_MONOTONIC now, in nanoseconds; 0, "unknown", if there is no such clock.
pub(super) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
