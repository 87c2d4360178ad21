//! Dates of the Gregorian calendar, and seconds since 1970.

/// A point in time, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Date {
    pub(crate) year: i64,
    /// 1 to 12.
    pub(crate) month: u8,
    /// From 1.
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
}

pub(crate) const DAY: i64 = 86_400;

/// The calendar repeats after so many years, of so many days.
const ERA_YEARS: i64 = 400;
const ERA_DAYS: i64 = 146_097;
/// Days from 1 March of year 0, where an era begins, to 1 January 1970.
const ERA_TO_EPOCH: i64 = 719_468;

impl Date {
    /// The date `seconds` after the beginning of 1970.
    pub(crate) fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY) + ERA_TO_EPOCH;
        let clock = seconds.rem_euclid(DAY);
        let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        // A leap day is the last of a year that begins in March, of the 4 years, of the era.
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - days_before_year(year);
        // March to January have 31, 30, 31, 30, 31 days, again and again: 153 days in 5 months.
        let month = (5 * day + 2) / 153;
        let day = day - days_before_month(month);
        Self {
            year: era * ERA_YEARS + year + i64::from(month >= 10),
            month: (if month >= 10 { month - 9 } else { month + 3 }) as u8,
            day: day as u8 + 1,
            hour: (clock / 3600) as u8,
            minute: (clock / 60 % 60) as u8,
            second: (clock % 60) as u8,
        }
    }

    /// The inverse. A field beyond its bounds counts on into the next larger one, and a month that
    /// is none is the nearest that is.
    pub(crate) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let (year, month) = match month {
            1 | 2 => (self.year - 1, month + 9),
            _ => (self.year, month - 3),
        };
        let days = year.div_euclid(ERA_YEARS) * ERA_DAYS
            + days_before_year(year.rem_euclid(ERA_YEARS))
            + days_before_month(month)
            + i64::from(self.day)
            - 1
            - ERA_TO_EPOCH;
        days * DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// From `2026-11-20T18:30:00` or `2026-11-20`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (date, clock) = text.split_once('T').unwrap_or((text, "00:00:00"));
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(clock, ':')?;
        let narrow = |n: u16| u8::try_from(n).ok();
        let this = Self {
            year: i64::from(year),
            month: narrow(month)?,
            day: narrow(day)?,
            hour: narrow(hour)?,
            minute: narrow(minute)?,
            second: narrow(second)?,
        };
        // A date that does not exist comes back as another.
        (Self::from_seconds(this.to_seconds()) == this).then_some(this)
    }
}

/// The day of the week, 1 for Sunday.
pub(crate) fn weekday(seconds: i64) -> u8 {
    // 1 January 1970 was a Thursday.
    ((seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
}

/// Days of an era before its year `year`; years begin in March.
fn days_before_year(year: i64) -> i64 {
    year * 365 + year / 4 - year / 100
}

/// Days before month `month` of a year that begins in March.
fn days_before_month(month: i64) -> i64 {
    (153 * month + 2) / 5
}

fn numbers(text: &str, separator: char) -> Option<[u16; 3]> {
    let mut parts = text.split(separator).map(|part| {
        let digits = part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse().ok()).flatten()
    });
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(year: i64, month: u8) -> u8 {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        match month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    #[test]
    fn every_day_of_a_thousand_years_follows_the_one_before() {
        let mut date = Date::parse("1600-01-01T23:59:59").unwrap();
        let mut seconds = date.to_seconds();
        // A Saturday.
        let mut day_of_week = 7;
        while date.year < 2600 {
            assert_eq!(Date::from_seconds(seconds), date);
            assert_eq!(
                (date.to_seconds(), weekday(seconds)),
                (seconds, day_of_week)
            );
            seconds += DAY;
            day_of_week = day_of_week % 7 + 1;
            date.day += 1;
            if date.day > length(date.year, date.month) {
                (date.day, date.month) = (1, date.month + 1);
            }
            if date.month > 12 {
                (date.month, date.year) = (1, date.year + 1);
            }
        }
    }

    #[test]
    fn known_dates_have_their_known_seconds() {
        let seconds = |text| Date::parse(text).unwrap().to_seconds();
        assert_eq!(seconds("1970-01-01"), 0);
        assert_eq!(seconds("2000-02-29T12:00:00"), 951_825_600);
        assert_eq!(seconds("2038-01-19T03:14:08"), 1 << 31);
        assert_eq!(seconds("1969-12-31T23:59:59"), -1);
        assert_eq!(weekday(seconds("2026-11-20")), 6);
    }

    #[test]
    fn a_date_that_does_not_exist_is_none() {
        for text in [
            "2023-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-01-01T24:00:00",
            "2024-01-01T00:60:00",
            "2024-01",
            "2024-01-01-01",
            "2024-1-+1",
            "today",
            "",
        ] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
    }

    #[test]
    fn fields_beyond_their_bounds_count_on() {
        let date = Date {
            year: 2023,
            month: 2,
            day: 31,
            hour: 25,
            minute: 61,
            second: 61,
        };
        let want = Date::parse("2023-03-04T02:02:01").unwrap();
        assert_eq!(Date::from_seconds(date.to_seconds()), want);
        for (month, nearest) in [(0, 1), (13, 12), (255, 12)] {
            let nearest = Date {
                month: nearest,
                ..date
            };
            let date = Date { month, ..date };
            assert_eq!(date.to_seconds(), nearest.to_seconds());
        }
    }
}
