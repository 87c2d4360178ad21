//! The chip: registers, time and flags. It has no clock of its own: every call says what time it is
//! on the host, in nanoseconds since 1970, and between two calls nothing has to happen.
//!
//! Times are 128 bits wide: a guest may set year 9999, which is beyond 64 bits of nanoseconds.

use crate::alarm::Alarm;
use crate::calendar::{Date, weekday};
use crate::format::Format;

/// Bytes of CMOS memory, the registers among them.
pub(crate) const CMOS: usize = 128;
pub(crate) const SECOND: i128 = 1_000_000_000;

// Registers, by their index.
const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY_OF_MONTH: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
pub(crate) const A: usize = 0x0a;
pub(crate) const B: usize = 0x0b;
pub(crate) const C: usize = 0x0c;
pub(crate) const D: usize = 0x0d;
/// Where PCs keep the century; the FADT says so.
const CENTURY: usize = 0x32;

/// A: an update begins within [`UPDATE_AHEAD`].
pub(crate) const A_UPDATING: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
/// A: the largest divider that runs.
const A_DIVIDER_RUNS: u8 = 0x20;
const A_RATE: u8 = 0x0f;
/// B: the guest is setting the time, which stands still meanwhile.
const B_SET: u8 = 0x80;
const B_UPDATE_ENABLE: u8 = 0x10;
const B_SQUARE_WAVE: u8 = 0x08;
const B_24_HOURS: u8 = 0x02;
/// C: an interrupt is requested.
pub(crate) const C_REQUEST: u8 = 0x80;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
/// The three causes, in C as flags and in B as their enables.
pub(crate) const CAUSES: u8 = PERIODIC | ALARM | UPDATE;
/// D: the battery is good.
pub(crate) const D_VALID: u8 = 0x80;

/// How long before an update its flag in A is set.
const UPDATE_AHEAD: i128 = 244_000;
/// The first update after the divider is released comes half a second later.
const FIRST_UPDATE: i128 = SECOND / 2;
/// Of the crystal, in Hz.
const TICKS: i128 = 32_768;

/// An MC146818A.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chip {
    pub(crate) index: u8,
    /// The bytes of the time count only while it stands still.
    pub(crate) cmos: [u8; CMOS],
    /// The guest's time less the host's.
    pub(crate) offset: i128,
    /// The guest's time up to which flags are computed.
    pub(crate) seen: i128,
    base_year: i64,
    interrupt: bool,
}

impl Chip {
    /// As after power-on, running, when the host has `now` and the guest shall have `time`.
    pub(crate) fn new(base_year: i64, now: i128, time: i128) -> Self {
        let mut cmos = [0; CMOS];
        cmos[A] = 0x26;
        cmos[B] = B_24_HOURS;
        cmos[D] = D_VALID;
        Self::from_parts(base_year, 0, cmos, time - now, time)
    }

    /// As saved. A requested interrupt is raised once more, since nobody knows how far it got.
    pub(crate) fn from_parts(
        base_year: i64,
        index: u8,
        cmos: [u8; CMOS],
        offset: i128,
        seen: i128,
    ) -> Self {
        Self {
            index,
            cmos,
            offset,
            seen,
            base_year,
            interrupt: cmos[C] & C_REQUEST != 0,
        }
    }

    /// The guest resets the machine: no interrupt comes any more, time and memory stay.
    pub(crate) fn reset(&mut self) {
        self.cmos[B] &= !(CAUSES | B_SQUARE_WAVE);
        self.cmos[C] = 0;
        self.interrupt = false;
    }

    /// Selects a register. The top bit masks NMIs on a PC and is not the chip's.
    pub(crate) fn select(&mut self, index: u8) {
        self.index = index & (CMOS as u8 - 1);
    }

    /// Reads the selected register.
    pub(crate) fn read(&mut self, now: i128) -> u8 {
        self.settle(now);
        let register = usize::from(self.index);
        match register {
            A if self.is_updating(now) => self.cmos[A] | A_UPDATING,
            C => {
                // The interrupt line falls with the flags.
                std::mem::take(&mut self.cmos[C])
            }
            _ if is_time(register) && self.runs() => self.time_registers(now)[register],
            _ => self.cmos[register],
        }
    }

    /// Writes the selected register.
    pub(crate) fn write(&mut self, value: u8, now: i128) {
        self.settle(now);
        let register = usize::from(self.index);
        match register {
            A => self.control(A, value & !A_UPDATING, now),
            // Setting the time ends update interrupts, by the data sheet.
            B if value & B_SET != 0 => self.control(B, value & !B_UPDATE_ENABLE, now),
            B => self.control(B, value, now),
            C | D => {}
            _ if is_time(register) && self.runs() => {
                self.cmos = self.time_registers(now);
                self.cmos[register] = value;
                self.take_time(now);
            }
            _ => self.cmos[register] = value,
        }
        self.request();
    }

    /// Computes what has happened up to now.
    pub(crate) fn settle(&mut self, now: i128) {
        let time = now + self.offset;
        // The host's clock may have been set back.
        let from = self.seen.min(time);
        self.seen = time;
        if let Some(period) = self.period()
            && tick(from, period) != tick(time, period)
        {
            self.cmos[C] |= PERIODIC;
        }
        if self.runs() {
            let (before, after) = (seconds(from), seconds(time));
            if before != after {
                self.cmos[C] |= UPDATE;
            }
            if self.alarm().next_after(before).is_some_and(|t| t <= after) {
                self.cmos[C] |= ALARM;
            }
        }
        self.request();
    }

    /// When, on the host's clock, an interrupt will be due next; `None` while none is enabled, or
    /// while the guest has yet to acknowledge the last, which is when it would see no other.
    pub(crate) fn next_interrupt(&self, now: i128) -> Option<i128> {
        if self.cmos[C] & C_REQUEST != 0 {
            return None;
        }
        let time = now + self.offset;
        let enabled = |cause| self.cmos[B] & cause != 0;
        let periodic = self
            .period()
            .filter(|_| enabled(PERIODIC))
            .map(|period| start_of(tick(time, period) + 1, period));
        let update = (enabled(UPDATE) && self.runs()).then(|| seconds(time) + 1);
        let alarm = (enabled(ALARM) && self.runs())
            .then(|| self.alarm().next_after(seconds(time)))
            .flatten();
        let on_second = [update, alarm].into_iter().flatten().min();
        [periodic, on_second.map(|s| i128::from(s) * SECOND)]
            .into_iter()
            .flatten()
            .min()
            .map(|due| due - self.offset)
    }

    /// When, on the host's clock, the alarm goes off next, if its interrupt is enabled. It may have
    /// already, since nothing was computed of late.
    pub(crate) fn alarm_time(&self) -> Option<i128> {
        let enabled = self.cmos[B] & ALARM != 0 && self.runs();
        let at = enabled.then(|| self.alarm().next_after(seconds(self.seen)));
        at.flatten().map(|at| i128::from(at) * SECOND - self.offset)
    }

    /// Whether the interrupt is to be raised since the last question.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.interrupt)
    }

    /// Writes A or B, which may stop the time or let it go on.
    fn control(&mut self, register: usize, value: u8, now: i128) {
        let (ran, divided) = (self.runs(), self.divides());
        if ran {
            self.cmos = self.time_registers(now);
        }
        self.cmos[register] = value;
        if self.divides() && !divided {
            let time = now + self.offset;
            self.offset += FIRST_UPDATE - time.rem_euclid(SECOND);
            self.seen = now + self.offset;
        }
        if self.runs() && !ran {
            self.take_time(now);
        }
    }

    /// Makes the time that of the registers, to the second; where in a second we are stays.
    fn take_time(&mut self, now: i128) {
        let format = Format::of(self.cmos[B]);
        let number = |register: usize| format.decode(self.cmos[register]);
        let century = i64::from(number(CENTURY)) * 100;
        let date = Date {
            year: self.base_year + century + i64::from(number(YEAR)),
            month: number(MONTH),
            day: number(DAY_OF_MONTH),
            hour: format.decode_hour(self.cmos[HOURS]),
            minute: number(MINUTES),
            second: number(SECONDS),
        };
        let change = date.to_seconds() - seconds(now + self.offset);
        self.offset += i128::from(change) * SECOND;
        self.seen = now + self.offset;
    }

    /// CMOS memory with the time in its registers.
    fn time_registers(&self, now: i128) -> [u8; CMOS] {
        let seconds = seconds(now + self.offset);
        let date = Date::from_seconds(seconds);
        let format = Format::of(self.cmos[B]);
        let year = date.year - self.base_year;
        let mut cmos = self.cmos;
        cmos[SECONDS] = format.encode(date.second);
        cmos[MINUTES] = format.encode(date.minute);
        cmos[HOURS] = format.encode_hour(date.hour);
        cmos[WEEKDAY] = format.encode(weekday(seconds));
        cmos[DAY_OF_MONTH] = format.encode(date.day);
        cmos[MONTH] = format.encode(date.month);
        cmos[YEAR] = format.encode(year.rem_euclid(100) as u8);
        cmos[CENTURY] = format.encode(year.div_euclid(100).rem_euclid(100) as u8);
        cmos
    }

    fn alarm(&self) -> Alarm {
        let format = Format::of(self.cmos[B]);
        Alarm {
            hour: format.wanted_hour(self.cmos[HOURS_ALARM]),
            minute: format.wanted(self.cmos[MINUTES_ALARM]),
            second: format.wanted(self.cmos[SECONDS_ALARM]),
        }
    }

    /// Ticks between two periodic interrupts, if there are any.
    fn period(&self) -> Option<i128> {
        if !self.divides() {
            return None;
        }
        match self.cmos[A] & A_RATE {
            0 => None,
            // The data sheet's table: the two lowest rates repeat 8 and 9.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn divides(&self) -> bool {
        self.cmos[A] & A_DIVIDER <= A_DIVIDER_RUNS
    }

    /// Whether the time goes on.
    fn runs(&self) -> bool {
        self.divides() && self.cmos[B] & B_SET == 0
    }

    fn is_updating(&self, now: i128) -> bool {
        self.runs() && (now + self.offset).rem_euclid(SECOND) >= SECOND - UPDATE_AHEAD
    }

    /// Requests an interrupt, or takes the request back, as flags and enables say. The line is
    /// raised as an edge, when the request begins.
    fn request(&mut self) {
        if self.cmos[C] & self.cmos[B] & CAUSES == 0 {
            self.cmos[C] &= !C_REQUEST;
        } else if self.cmos[C] & C_REQUEST == 0 {
            self.cmos[C] |= C_REQUEST;
            self.interrupt = true;
        }
    }
}

fn is_time(register: usize) -> bool {
    matches!(
        register,
        SECONDS | MINUTES | HOURS | WEEKDAY | DAY_OF_MONTH | MONTH | YEAR | CENTURY
    )
}

/// Whole seconds of a time.
fn seconds(time: i128) -> i64 {
    time.div_euclid(SECOND) as i64
}

/// How many periods have begun at a time.
fn tick(time: i128, period: i128) -> i128 {
    (time * TICKS).div_euclid(period * SECOND)
}

/// The first nanosecond of a period.
fn start_of(tick: i128, period: i128) -> i128 {
    -(-tick * period * SECOND).div_euclid(TICKS)
}

#[cfg(test)]
mod tests;
