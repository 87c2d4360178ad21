//! When an alarm goes off next.

use crate::calendar::DAY;
use crate::format::Wanted;

/// An alarm at an hour, minute and second of every day.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alarm {
    pub(crate) hour: Wanted,
    pub(crate) minute: Wanted,
    pub(crate) second: Wanted,
}

impl Alarm {
    /// The first second after `seconds` (since 1970) at which it goes off; `None` if it never does,
    /// since it asks for an hour, minute or second that no day has.
    pub(crate) fn next_after(&self, seconds: i64) -> Option<i64> {
        let next = seconds + 1;
        let (day, from) = (next.div_euclid(DAY) * DAY, next.rem_euclid(DAY));
        self.first_from(from)
            .map(|at| day + at)
            .or_else(|| self.first_from(0).map(|at| day + DAY + at))
    }

    /// The first second of a day, from `from` on.
    fn first_from(&self, from: i64) -> Option<i64> {
        let (hour, minute, second) = (from / 3600, from / 60 % 60, from % 60);
        let at = |h: i64, m: i64, s: i64| h * 3600 + m * 60 + s;
        if self.hour.matches(hour as u8) {
            if self.minute.matches(minute as u8)
                && let Some(s) = first(self.second, second, 60)
            {
                return Some(at(hour, minute, s));
            }
            if let Some(m) = first(self.minute, minute + 1, 60) {
                return Some(at(hour, m, first(self.second, 0, 60)?));
            }
        }
        let h = first(self.hour, hour + 1, 24)?;
        Some(at(
            h,
            first(self.minute, 0, 60)?,
            first(self.second, 0, 60)?,
        ))
    }
}

/// The first number from `from` on and below `end` that is wanted.
fn first(wanted: Wanted, from: i64, end: i64) -> Option<i64> {
    (from..end).find(|&n| wanted.matches(n as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Wanted::{Any, Only};

    #[test]
    fn an_alarm_goes_off_at_the_first_second_that_matches() {
        for hour in [Any, Only(0), Only(7), Only(23), Only(24)] {
            for minute in [Any, Only(0), Only(30), Only(59), Only(60)] {
                for second in [Any, Only(0), Only(1), Only(59), Only(75)] {
                    let alarm = Alarm {
                        hour,
                        minute,
                        second,
                    };
                    let matching = |t: &i64| {
                        let t = t.rem_euclid(DAY);
                        hour.matches((t / 3600) as u8)
                            && minute.matches((t / 60 % 60) as u8)
                            && second.matches((t % 60) as u8)
                    };
                    for start in [-1, 0, 59, 3599, 7 * 3600 + 1800, DAY - 2, DAY - 1, 20 * DAY] {
                        let want = (start + 1..=start + DAY).find(matching);
                        assert_eq!(alarm.next_after(start), want, "{alarm:?} after {start}");
                    }
                }
            }
        }
    }
}
