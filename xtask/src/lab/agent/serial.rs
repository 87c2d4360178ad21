//! What the guest says on its serial port, and whether a guest that was never touched would say it.

use anyhow::{Context, Result, bail};
use std::fs;

/// Marks of a Linux that is unwell.
const ALARMS: [&str; 8] = [
    "Kernel panic",
    "BUG:",
    "Oops",
    "Call Trace",
    "soft lockup",
    "detected stall",
    "I/O error",
    "blocked for more than",
];

/// Seconds between two ticks that neither load nor a new start of the host explains.
const JUMP: f64 = 120.0;

/// The guest's words so far.
#[derive(Debug, Default)]
pub(crate) struct Serial {
    /// The guest's clock since its boot, in seconds, at tick 1, 2, ...
    ticks: Vec<f64>,
    /// Its time of day at the last one, in seconds since 1970.
    date: f64,
    result: Option<String>,
    /// Lines of other kinds.
    others: Vec<String>,
}

impl Serial {
    /// Reads a whole log.
    ///
    /// # Errors
    /// When a tick is lost, repeated or out of order, when the clock goes backwards, or when Linux
    /// or the workload complains.
    pub(crate) fn read(file: &str) -> Result<Self> {
        match fs::read(file) {
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(&bytes)),
            // The VMM has not opened it yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("Cannot read the guest's log {file}")),
        }
    }

    fn parse(log: &str) -> Result<Self> {
        let mut serial = Self::default();
        // A last line without its end is still being written.
        for line in log
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let line = line.trim_end();
            if let Some(tick) = line.strip_prefix("tick ") {
                serial.tick(tick)?;
            } else if let Some(result) = line.strip_prefix("L2-RESULT ") {
                serial.result = Some(result.to_owned());
            } else if line.starts_with("L2-FAULT ")
                || ALARMS.iter().any(|alarm| line.contains(alarm))
            {
                bail!(
                    "The guest complains after tick {}: {line}",
                    serial.ticks.len()
                );
            } else {
                serial.others.push(line.to_owned());
            }
        }
        Ok(serial)
    }

    fn tick(&mut self, text: &str) -> Result<()> {
        let mut words = text.split_whitespace();
        let number = words.next().and_then(|word| word.parse::<usize>().ok());
        let mut seconds = || words.next().and_then(|word| word.parse::<f64>().ok());
        let (Some(number), Some(clock), Some(date)) = (number, seconds(), seconds()) else {
            bail!(
                "The guest's log has a damaged line after tick {}: tick {text}",
                self.ticks.len()
            );
        };
        if number != self.ticks.len() + 1 {
            bail!(
                "The guest's tick {} is followed by {number}: output was lost or repeated",
                self.ticks.len()
            );
        }
        if let Some(&before) = self.ticks.last().filter(|&&before| clock < before) {
            bail!("The guest's clock goes backwards at tick {number}, from {before} to {clock} s");
        }
        if let Some(&before) = self.ticks.last().filter(|&&before| clock > before + JUMP) {
            bail!("The guest's clock jumps at tick {number}, from {before} to {clock} s");
        }
        if date < self.date {
            bail!(
                "The guest's time of day goes backwards at tick {number}, from {} to {date} s",
                self.date
            );
        }
        self.ticks.push(clock);
        self.date = date;
        Ok(())
    }

    /// How many lines begin with `start`, ticks and the result aside.
    pub(crate) fn said(&self, start: &str) -> usize {
        let lines = self.others.iter();
        lines.filter(|line| line.starts_with(start)).count()
    }

    pub(crate) fn ticks(&self) -> usize {
        self.ticks.len()
    }

    /// The guest's time of day at its last tick, in seconds since 1970.
    pub(crate) fn date(&self) -> f64 {
        self.date
    }

    /// What the workload found at its end.
    pub(crate) fn result(&self) -> Option<&str> {
        self.result.as_deref()
    }

    /// The longest time between two ticks, in milliseconds of the guest's clock.
    pub(crate) fn longest_gap(&self) -> u64 {
        self.longest_gap_after(1)
    }

    /// The same of tick `first` and those after it.
    pub(crate) fn longest_gap_after(&self, first: usize) -> u64 {
        let ticks = self
            .ticks
            .get(first.saturating_sub(1)..)
            .unwrap_or_default();
        let gaps = ticks.windows(2).map(|pair| pair[1] - pair[0]);
        (gaps.fold(0.0, f64::max) * 1000.0).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_in_order_are_counted_and_their_gaps_measured() {
        let serial = Serial::parse(
            "hello\r\ntick 1 5.00 90\r\ntick 2 5.10 90.1\ntick 3 5.45 90.5\ntick 4 5.",
        )
        .unwrap();
        assert_eq!(serial.ticks(), 3);
        assert_eq!(serial.date(), 90.5);
        assert_eq!(serial.longest_gap(), 350);
        assert_eq!(serial.longest_gap_after(1), 350);
        assert_eq!(serial.longest_gap_after(3), 0);
        assert_eq!(serial.longest_gap_after(9), 0);
        assert_eq!(serial.result(), None);
    }

    #[test]
    fn a_lost_or_repeated_tick_is_an_error() {
        for log in [
            "tick 1 1.0 5\ntick 3 1.2 5\n",
            "tick 1 1.0 5\ntick 1 1.0 5\n",
        ] {
            let error = Serial::parse(log).unwrap_err().to_string();
            assert!(error.contains("lost or repeated"), "{error}");
        }
    }

    #[test]
    fn a_clock_that_goes_backwards_is_an_error() {
        for log in [
            "tick 1 9.0 5\ntick 2 8.9 6\n",
            "tick 1 9.0 5\ntick 2 9.1 4.9\n",
        ] {
            let error = Serial::parse(log).unwrap_err().to_string();
            assert!(error.contains("backwards at tick 2"), "{error}");
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_an_error() {
        let error = Serial::parse("tick 1 9.0 5\ntick 2 199.0 6\n").unwrap_err();
        assert!(error.to_string().contains("jumps"), "{error}");
    }

    #[test]
    fn complaints_of_linux_and_of_the_workload_are_errors() {
        for line in [
            "L2-FAULT records: wrong",
            "[ 9.1] watchdog: BUG: soft lockup",
            "I/O error, dev vda, sector 8",
        ] {
            assert!(
                Serial::parse(&format!("tick 1 1.0 5\n{line}\n")).is_err(),
                "{line}"
            );
        }
    }

    #[test]
    fn the_result_is_what_the_workload_says_last() {
        let serial = Serial::parse("tick 1 1.0 5\nL2-RESULT ok records=7\n").unwrap();
        assert_eq!(serial.result(), Some("ok records=7"));
    }
}
