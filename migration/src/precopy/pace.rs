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
/// The longest time that a message is paid for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Rates are not taken from less time than this.
const SHORTEST: Duration = Duration::from_millis(1);

/// Keeps to a rate: bytes are paid for after they were sent, by waiting.
#[derive(Debug)]
pub(super) struct Brake {
    /// When all that was sent will have been paid for.
    paid: Instant,
}

impl Brake {
    pub(super) fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    /// Bytes were sent; how long to wait before more are.
    pub(super) fn sent(&mut self, bytes: u64, rate: u64, now: Instant) -> Duration {
        if rate == 0 {
            self.paid = now;
            return Duration::ZERO;
        }
        // What was not used is saved up for a burst at most.
        if let Some(earliest) = now.checked_sub(BURST) {
            self.paid = self.paid.max(earliest);
        }
        let cost = Duration::try_from_secs_f64(bytes as f64 / rate as f64);
        let cost = cost.unwrap_or(LONGEST).min(LONGEST);
        self.paid += cost;
        self.paid.saturating_duration_since(now)
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
            now += brake.sent(256 << 10, 10 * MIB, now);
        }
        let took = now.duration_since(start);
        let wanted = Duration::from_secs(25);
        assert!(took <= wanted && took + 2 * BURST >= wanted, "{took:?}");
        // After a long rest there is no more than a burst.
        now += Duration::from_secs(100);
        assert_eq!(brake.sent(MIB, 10 * MIB, now), Duration::ZERO);
        assert!(brake.sent(MIB, 10 * MIB, now) >= Duration::from_millis(99));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        let mut brake = Brake::new(now);
        assert_eq!(brake.sent(u64::MAX, 0, now), Duration::ZERO);
        assert!(brake.sent(u64::MAX, 1, now) > Duration::from_secs(3000));
        // Taking the limit away helps at once.
        assert_eq!(brake.sent(1, 0, now), Duration::ZERO);
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
