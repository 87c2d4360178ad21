//! The vmstate section `mc146818rtc`, version 1.

use baton_plugin_api::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::chip::{A, A_UPDATING, B, C, C_REQUEST, CAUSES, CMOS, Chip, D, D_VALID, SECOND};

/// The farthest time from the host's that a guest can set, and more: 100,000 years.
const SECONDS_MAX: u64 = 100_000 * 366 * 86_400;

/// Memory with the registers in it, and two times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RtcSection {
    /// The selected register.
    pub(crate) index: u8,
    #[serde(with = "serde_bytes")]
    pub(crate) cmos: Vec<u8>,
    /// The guest's time less the host's.
    pub(crate) offset: Time,
    /// The guest's time up to which the flags are computed.
    pub(crate) seen: Time,
}

/// A time or a difference of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    /// Less than a second; added, whatever the sign of `seconds`.
    pub(crate) nanoseconds: u32,
}

impl Time {
    pub(crate) fn new(time: i128) -> Self {
        Self {
            seconds: time.div_euclid(SECOND) as i64,
            nanoseconds: time.rem_euclid(SECOND) as u32,
        }
    }

    fn checked(self, what: &str) -> Result<i128> {
        let whole = i128::from(self.nanoseconds) < SECOND;
        if !whole || self.seconds.unsigned_abs() > SECONDS_MAX {
            return Err(Error::state(format!(
                "{what} is {} s and {} ns, which no guest can set; the state is damaged",
                self.seconds, self.nanoseconds
            )));
        }
        Ok(i128::from(self.seconds) * SECOND + i128::from(self.nanoseconds))
    }
}

impl RtcSection {
    pub(crate) fn new(chip: &Chip) -> Self {
        Self {
            index: chip.index,
            cmos: chip.cmos.to_vec(),
            offset: Time::new(chip.offset),
            seen: Time::new(chip.seen),
        }
    }

    /// The chip that was saved.
    pub(crate) fn into_chip(self, base_year: i64) -> Result<Chip> {
        let cmos: [u8; CMOS] = self.cmos.try_into().map_err(|cmos: Vec<u8>| {
            Error::state(format!(
                "The CMOS memory has {} bytes instead of {CMOS}; the state is damaged",
                cmos.len()
            ))
        })?;
        let requested = cmos[C] & cmos[B] & CAUSES != 0;
        let sound = [
            (usize::from(self.index) < CMOS, "the index", self.index),
            (cmos[A] & A_UPDATING == 0, "register A", cmos[A]),
            (cmos[C] & !(C_REQUEST | CAUSES) == 0, "register C", cmos[C]),
            (
                (cmos[C] & C_REQUEST != 0) == requested,
                "register C",
                cmos[C],
            ),
            (cmos[D] == D_VALID, "register D", cmos[D]),
        ];
        if let Some((_, what, value)) = sound.iter().find(|(sound, ..)| !sound) {
            return Err(Error::state(format!(
                "{value:#04x} does not fit {what} of the clock; the state is damaged"
            )));
        }
        let offset = self.offset.checked("The clock's offset")?;
        let seen = self.seen.checked("The clock's time")?;
        Ok(Chip::from_parts(base_year, self.index, cmos, offset, seen))
    }
}
