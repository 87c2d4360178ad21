//! A watcher outside the VMM: how long the guest stands still, seen in its RAM.
// The scheduler's system calls for one thread have no safe wrapper.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ram::GuestRam;
use crate::report;

/// Between two looks. A watcher that never slept would take one of few CPUs from the VMMs it
/// measures; and one that wakes more often than every guest entry takes, on the CPU that the
/// scheduler has put a vCPU on, keeps that guest from coming to anything: with 20 us between looks
/// guests stood still for ten times as long as without.
const PAUSE: Duration = Duration::from_micros(100);

/// A time in which the guest did nothing: no page walked, no tick counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stillness {
    /// When it was first seen to stand still, as CLOCK_MONOTONIC nanoseconds.
    pub since_ns: u64,
    /// It was still at least this long: from the first look at a count to the last.
    pub at_least_ns: u64,
    /// And at most this long: from the last look before to the first after.
    pub at_most_ns: u64,
}

impl Stillness {
    /// The middle of the two bounds, in milliseconds.
    pub fn ms(&self) -> f64 {
        (self.at_least_ns + self.at_most_ns) as f64 / 2e6
    }

    /// How far from the middle the truth can be, in milliseconds.
    pub fn doubt_ms(&self) -> f64 {
        (self.at_most_ns - self.at_least_ns) as f64 / 2e6
    }
}

/// Between two samples of how far the guest has come.
const SAMPLED: u64 = 1_000_000;

/// What a watcher saw.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The longest stillness, by its lower bound.
    pub longest: Stillness,
    /// How often it looked.
    pub looks: u64,
    /// The longest time between two of its own looks, in nanoseconds: what it could have missed.
    pub blind_ns: u64,
    /// How long it watched, in nanoseconds.
    pub length_ns: u64,
    /// When it was how far, about every millisecond: CLOCK_MONOTONIC nanoseconds and a count that only
    /// grows.
    samples: Vec<(u64, u64)>,
}

impl Watched {
    /// How much the guest did for `length_ns` from `from_ns` on, per nanosecond; nothing if that was
    /// not watched, or too short to tell.
    pub fn rate(&self, from_ns: u64, length_ns: u64) -> Option<f64> {
        let at = |ns: u64| self.samples.iter().find(|(time, _)| *time >= ns);
        let (&(first, before), &(last, after)) = (at(from_ns)?, at(from_ns + length_ns)?);
        let time = last.checked_sub(first).filter(|time| *time > 0)?;
        Some(after.wrapping_sub(before) as f64 / time as f64)
    }

    /// When the longest stillness was over.
    pub fn after_longest_ns(&self) -> u64 {
        self.longest.since_ns + self.longest.at_most_ns
    }

    /// When it began to watch.
    pub fn began_ns(&self) -> u64 {
        self.samples.first().map_or(0, |(time, _)| *time)
    }
}

/// A thread that watches a guest.
pub struct Watcher {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Watched>,
}

impl Watcher {
    /// Begins to watch.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(ram: &Arc<GuestRam>) -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let (ram, stop) = (Arc::clone(ram), Arc::clone(&end));
        let thread = std::thread::Builder::new()
            .name("watcher".into())
            .spawn(move || {
                be_punctual();
                watch(
                    now,
                    || count(&ram),
                    || {
                        std::thread::sleep(PAUSE);
                        !stop.load(Ordering::Relaxed)
                    },
                )
            })
            .context("Cannot start a thread to watch the guest")?;
        Ok(Self { end, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn finish(self) -> Result<Watched> {
        self.end.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(watched) => Ok(watched),
            Err(_) => bail!("The thread that watches the guest has panicked"),
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}

/// Changes whenever the guest walks a page or takes a tick. While it serves a device it does not
/// walk, and while interrupts are off it takes no tick; not both for long.
fn count(ram: &GuestRam) -> u64 {
    ram.report()
        .get(report::LOOPS)
        .wrapping_add(ram.report().get(report::TICKS))
}

/// Wakes up when its pause is over, if it is allowed to: before other threads, to the microsecond.
fn be_punctual() {
    // Less slack than the usual 50 us; a watcher without it sees less sharply and says so.
    nix::sys::prctl::set_timerslack(1).ok();
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: changes the calling thread only; the structure is read during the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
}

/// Looks at `count` until `go_on` says no.
fn watch(
    mut now: impl FnMut() -> u64,
    mut count: impl FnMut() -> u64,
    mut go_on: impl FnMut() -> bool,
) -> Watched {
    let began = now();
    let mut seen = count();
    let mut looks = 1;
    let mut blind = 0;
    let mut longest = Stillness::default();
    // Looks at the count that is seen now: the one before the first, the first, the last.
    let (mut before, mut first, mut last) = (began, began, began);
    let mut samples = vec![(began, seen)];
    let mut sampled = began;
    while go_on() {
        let value = count();
        let time = now();
        looks += 1;
        if time - sampled >= SAMPLED {
            samples.push((time, value));
            sampled = time;
        }
        blind = blind.max(time - last);
        if value != seen {
            let still = Stillness {
                since_ns: first,
                at_least_ns: last - first,
                at_most_ns: time - before,
            };
            if still.at_least_ns > longest.at_least_ns {
                longest = still;
            }
            (before, first, seen) = (last, time, value);
        }
        last = time;
    }
    Watched {
        longest,
        looks,
        blind_ns: blind,
        length_ns: last - began,
        samples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches counts seen at times.
    fn watched(looks: &[(u64, u64)]) -> Watched {
        let times = looks.iter().map(|(time, _)| *time).collect::<Vec<_>>();
        let counts = looks.iter().map(|(_, count)| *count).collect::<Vec<_>>();
        let (mut times, mut counts) = (times.into_iter(), counts.into_iter());
        let mut left = looks.len();
        watch(
            || times.next().unwrap(),
            || counts.next().unwrap(),
            || {
                left -= 1;
                left > 0
            },
        )
    }

    #[test]
    fn the_longest_stillness_is_found_with_its_bounds() {
        let seen = watched(&[(0, 1), (10, 2), (20, 3), (30, 3), (40, 3), (50, 4), (60, 5)]);
        let expected = Stillness {
            since_ns: 20,
            at_least_ns: 20,
            at_most_ns: 40,
        };
        assert_eq!(seen.longest, expected);
        assert_eq!((seen.looks, seen.blind_ns, seen.length_ns), (7, 10, 60));
    }

    #[test]
    fn a_rate_is_what_was_done_between_two_samples() {
        let ms = 1_000_000;
        let looks: Vec<_> = (0..10).map(|i| (i * ms, i * i)).collect();
        let seen = watched(&looks);
        assert_eq!(seen.rate(2 * ms, 3 * ms), Some(21.0 / 3e6));
        assert_eq!(seen.rate(8 * ms, 5 * ms), None);
        assert_eq!(seen.began_ns(), 0);
    }

    #[test]
    fn a_watcher_that_was_away_does_not_call_that_stillness() {
        let seen = watched(&[(0, 1), (10, 2), (5000, 900), (5010, 900), (5020, 901)]);
        assert_eq!(
            (seen.longest.since_ns, seen.longest.at_least_ns),
            (5000, 10)
        );
        assert_eq!(seen.blind_ns, 4990);
    }
}
