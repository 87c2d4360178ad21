//! How fast RAM is sent, and when so little is left that the guest can be stopped for it.

use std::time::{Duration, Instant};

/// What an operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second while the guest runs; 0 is no limit.
    pub max_bandwidth: u64,
    /// How long the guest may stand still, as far as it can be told ahead.
    pub downtime: Duration,
}

/// How much time's worth of bytes may go at once.
const BURST: Duration = Duration::from_millis(100);
/// Rates are not taken from less time than this.
const SHORTEST: Duration = Duration::from_millis(1);

/// Keeps to a rate: bytes are paid for after they were sent, by waiting.
#[derive(Debug)]
pub(super) struct Brake {
    /// Bytes that may be sent, or are to be paid for if it is below zero.
    credit: f64,
    /// When that was.
    at: Instant,
}

impl Brake {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            credit: 0.0,
            at: now,
        }
    }

    /// Bytes were sent.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.credit -= bytes as f64;
    }

    /// How long to wait before more are sent, at this rate; it may be another the next time.
    pub(super) fn wait(&mut self, rate: u64, now: Instant) -> Duration {
        let rate = rate as f64;
        let elapsed = now.saturating_duration_since(self.at);
        self.at = now;
        if rate == 0.0 {
            self.credit = 0.0;
            return Duration::ZERO;
        }
        // What was not used is saved up for a burst at most.
        self.credit += elapsed.as_secs_f64() * rate;
        self.credit = self.credit.min(BURST.as_secs_f64() * rate);
        if self.credit >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.credit / rate).unwrap_or(Duration::MAX)
    }
}

/// What one round has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    /// Bytes that were sent in it.
    pub(super) sent: u64,
    /// How long that took.
    pub(super) time: Duration,
    /// Bytes of pages written meanwhile, which are left to be sent.
    pub(super) left: u64,
}

/// Estimates from what the rounds have shown, as QEMU does: the rest will go as fast as the last.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Estimate {
    /// Bytes a second; 0 while nothing is known.
    bandwidth: f64,
}

/// A round of less than this says at least so much of the bandwidth, and not at most.
const TELLING: u64 = 1 << 20;

impl Estimate {
    /// Takes a round in: how long the rest will take.
    pub(super) fn after(&mut self, round: Round) -> Duration {
        let found = round.sent as f64 / round.time.max(SHORTEST).as_secs_f64();
        self.bandwidth = match round.sent {
            TELLING.. => found,
            _ => found.max(self.bandwidth),
        };
        if round.left == 0 {
            return Duration::ZERO;
        }
        let seconds = round.left as f64 / self.bandwidth;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_rate_is_kept_over_time_and_not_saved_up() {
        let start = Instant::now();
        let mut brake = Brake::new(start);
        let mut now = start;
        for _ in 0..1000 {
            brake.sent(256 << 10);
            now += brake.wait(10 * MIB, now);
        }
        let took = now.duration_since(start).as_secs_f64();
        assert!((24.9..25.1).contains(&took), "{took}");
        // After a long rest there is no more than a burst.
        now += Duration::from_secs(100);
        assert_eq!(brake.wait(10 * MIB, now), Duration::ZERO);
        brake.sent(MIB);
        assert_eq!(brake.wait(10 * MIB, now), Duration::ZERO);
        brake.sent(MIB);
        assert!(brake.wait(10 * MIB, now) >= Duration::from_millis(99));
    }

    #[test]
    fn a_rate_may_change_and_without_one_nothing_waits() {
        let mut now = Instant::now();
        let mut brake = Brake::new(now);
        brake.sent(u64::MAX);
        assert_eq!(brake.wait(0, now), Duration::ZERO);
        brake.sent(10 * MIB);
        assert!(brake.wait(1, now) > Duration::from_secs(3000));
        now += Duration::from_secs(1);
        assert!(brake.wait(10 * MIB, now) < Duration::from_millis(1));
        brake.sent(u64::MAX);
        assert!(brake.wait(1, now) > Duration::from_secs(3000));
        assert_eq!(brake.wait(0, now), Duration::ZERO);
    }

    fn round(sent: u64, ms: u64, left: u64) -> Round {
        Round {
            sent,
            time: Duration::from_millis(ms),
            left,
        }
    }

    #[test]
    fn the_rest_goes_as_fast_as_the_last_round_that_tells() {
        let mut estimate = Estimate::default();
        let rest = estimate.after(round(100 * MIB, 1000, 10 * MIB));
        assert_eq!(rest, Duration::from_millis(100));
        let rest = estimate.after(round(10 * MIB, 1000, 10 * MIB));
        assert_eq!(rest, Duration::from_secs(1));
        // Too little to tell.
        let rest = estimate.after(round(4096, 1, 10 * MIB));
        assert_eq!(rest, Duration::from_secs(1));
        assert_eq!(estimate.after(round(0, 0, 0)), Duration::ZERO);
    }

    #[test]
    fn a_first_round_of_nothing_tells_that_the_rest_takes_for_ever() {
        let mut estimate = Estimate::default();
        assert_eq!(estimate.after(round(0, 0, 0)), Duration::ZERO);
        assert_eq!(estimate.after(round(0, 0, 4096)), Duration::MAX);
        assert!(estimate.after(round(MIB, 1, 4096)) < Duration::from_millis(1));
    }
}
