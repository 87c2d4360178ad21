//! What the host's clocks showed when a guest was kept, so that the guest's go on after the host has
//! been started anew: time stamp counter and CLOCK_MONOTONIC begin again then.

use baton_migration::HostError;
use baton_migration::stream::{SectionData, SectionWriter, StateImage, section_name};
use baton_plugin_api::Section;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::power::monotonic_ns;
use super::sections::MACHINE;

/// Of section `globalstate`: only a guest that is kept has it.
pub(super) const SUBSECTION: &str = "host-time";

/// The clocks at one moment, and which start of the host it was in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTime {
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
    /// CLOCK_REALTIME in nanoseconds.
    realtime: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    monotonic: u64,
    /// The time stamp counter.
    tsc: u64,
}

/// How far clocks of this start of the host are from those of the one a guest was kept in: what
/// must be added to a time of theirs to have the same moment in ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    monotonic: u64,
    /// Nanoseconds for which the guest was kept.
    kept: u64,
    tsc_then: u64,
    tsc_now: u64,
}

impl HostTime {
    /// What the clocks show.
    pub fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let realtime = clock_gettime(ClockId::CLOCK_REALTIME);
        Self {
            boot: boot.unwrap_or_default().trim().to_owned(),
            realtime: realtime.map_or(0, |t| {
                (t.tv_sec() as u64).wrapping_mul(1_000_000_000) + t.tv_nsec() as u64
            }),
            monotonic: monotonic_ns(),
            tsc: rdtsc(),
        }
    }

    fn section() -> Section {
        Section::new(&format!("globalstate/{SUBSECTION}"), 1, 1)
    }

    /// Writes it.
    pub fn save(&self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        let section = Self::section();
        let name = section_name(MACHINE, &section.name);
        Ok(out.put(&name, 0, section.version, self)?)
    }

    /// Takes it out of a state; how far its clocks are from `self` if the host was started anew
    /// since.
    pub fn since(&self, state: &mut StateImage) -> Result<Option<Shift>, HostError> {
        let then: Self = state.take_checked(MACHINE, &Self::section(), 0)?.decode()?;
        Ok(self.shift_from(&then))
    }

    fn shift_from(&self, then: &Self) -> Option<Shift> {
        if self.boot == then.boot {
            return None;
        }
        // A clock that was set back in between counts as no time.
        let kept = self.realtime.saturating_sub(then.realtime);
        let monotonic = self
            .monotonic
            .wrapping_sub(kept)
            .wrapping_sub(then.monotonic);
        Some(Shift {
            monotonic,
            kept,
            tsc_then: then.tsc,
            tsc_now: self.tsc,
        })
    }
}

impl Shift {
    /// A time of CLOCK_MONOTONIC. It may lie before the host's start, as a number below zero.
    pub fn monotonic(&self, then: u64) -> u64 {
        then.wrapping_add(self.monotonic)
    }

    /// The offset of a guest's time stamp counter of `khz` to the host's.
    pub fn tsc_offset(&self, then: u64, khz: u32) -> u64 {
        let ticks = u128::from(self.kept) * u128::from(khz) / 1_000_000;
        then.wrapping_add(self.tsc_then)
            .wrapping_add(ticks as u64)
            .wrapping_sub(self.tsc_now)
    }

    /// Changes a section of the machine's own, if it is there.
    pub fn apply<T: Serialize + for<'a> Deserialize<'a>>(
        &self,
        state: &mut StateImage,
        section: &Section,
        instance: u32,
        change: impl FnOnce(&Self, &mut T),
    ) -> Result<(), HostError> {
        let name = section_name(MACHINE, &section.name);
        let Some(data) = state.take_if_present(&name, instance) else {
            return Ok(());
        };
        data.check_version(&(section.minimum_version..=section.version))?;
        let mut value: T = data.decode()?;
        change(self, &mut value);
        let payload = baton_migration::stream::encode(&name, &value)?;
        state.put_back(SectionData { payload, ..data });
        Ok(())
    }
}

/// The time stamp counter, which every CPU Baton runs on has.
#[allow(unsafe_code)]
fn rdtsc() -> u64 {
    // SAFETY: no preconditions.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn time(boot: &str, realtime: u64, monotonic: u64, tsc: u64) -> HostTime {
        HostTime {
            boot: boot.into(),
            realtime: realtime * SECOND,
            monotonic: monotonic * SECOND,
            tsc,
        }
    }

    #[test]
    fn nothing_shifts_while_the_host_runs_on() {
        let then = time("a", 1000, 50, 7);
        assert_eq!(time("a", 2000, 1050, 9).shift_from(&then), None);
    }

    #[test]
    fn clocks_go_on_over_a_new_start_of_the_host() {
        // Up for 50 s, down for 60 s, up for 40 s.
        let then = time("a", 1000, 50, 5_000_000);
        let now = time("b", 1100, 40, 4_000_000);
        let shift = now.shift_from(&then).unwrap();
        // What began 20 s before it was kept is 120 s ago.
        let zero = shift.monotonic(30 * SECOND);
        assert_eq!((40 * SECOND).wrapping_sub(zero), 120 * SECOND);
        // At 1 kHz (100 s are 100,000 ticks) the guest's counter was at 5,000,123.
        let offset = shift.tsc_offset(123, 1);
        assert_eq!(4_000_000u64.wrapping_add(offset), 5_000_123 + 100_000);
    }

    #[test]
    fn a_clock_that_was_set_back_stands_still() {
        let then = time("a", 1000, 50, 10);
        let shift = time("b", 900, 1, 3).shift_from(&then).unwrap();
        let khz = 2_000_000;
        assert_eq!(3u64.wrapping_add(shift.tsc_offset(100, khz)), 110);
    }
}
