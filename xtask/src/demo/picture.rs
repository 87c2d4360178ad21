//! A picture of the guest's ticks around a handover.

use baton_testkit::report::{self, Report};

/// Columns of the picture.
const WIDTH: usize = 72;
/// Eighths of a column's height.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The longest time without a tick, by the guest's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    begin: u64,
    end: u64,
}

impl Gap {
    /// As it is now.
    pub(super) fn longest(report: &Report) -> Self {
        let end = report.get(report::MAX_GAP_END_TSC);
        Self {
            begin: end.saturating_sub(report.get(report::MAX_GAP_TSC)),
            end,
        }
    }
}

/// When the guest ticked, in milliseconds of its own clock.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ticks {
    times: Vec<f64>,
    /// From when to when it did not tick.
    gap: (f64, f64),
    /// Between two ticks when nothing is in the way.
    period: f64,
}

impl Ticks {
    /// What the guest still knows of its ticks, around `gap`.
    pub(super) fn around(report: &Report, gap: Gap) -> Self {
        let per_ms = report.get(report::TSC_HZ).max(1) as f64 / 1000.0;
        let Gap { begin, end } = gap;
        // Relative to the gap: a TSC has too many digits for a float.
        let ms = |tsc: u64| (tsc as i128 - begin as i128) as f64 / per_ms;
        let mut times: Vec<f64> = (0..report::TICK_RING)
            .map(|index| report.entry(report::TICK_TSC, index))
            .filter(|tsc| *tsc > 0)
            .map(ms)
            .collect();
        times.sort_by(f64::total_cmp);
        let period = 1000.0 / report.get(report::TIMER_HZ).max(1) as f64;
        Self {
            times,
            gap: (0.0, ms(end)),
            period,
        }
    }
}

/// Draws the ticks, a column for a time, with the gap in the middle.
pub(super) fn picture(ticks: &Ticks, update: u32) -> String {
    let gap = ticks.gap.1 - ticks.gap.0;
    // Whole periods, so that an undisturbed column is as high as the next; the gap takes a sixth.
    let periods = (gap / ticks.period / (WIDTH / 6) as f64).ceil().max(1.0);
    let column = periods * ticks.period;
    let from = ticks.gap.0 + gap / 2.0 - column * (WIDTH / 2) as f64;

    let mut counts = [0_u32; WIDTH];
    for time in &ticks.times {
        let place = (time - from) / column;
        if (0.0..WIDTH as f64).contains(&place) {
            counts[place as usize] += 1;
        }
    }
    let full = periods as u32;
    let bars: String = counts
        .iter()
        .map(|count| BARS[(count * 8).div_ceil(full).min(8) as usize])
        .collect();
    let (begin, end) = ((ticks.gap.0 - from) / column, (ticks.gap.1 - from) / column);
    let (begin, end) = (begin.round() as usize, (end.round() as usize).min(WIDTH));
    let mark = "^".repeat((end - begin.min(end)).max(1));
    format!(
        "\nThe guest's ticks around update {update}, {column:.0} ms a column:\n  |{bars}|\n   {}{mark} no \
         tick for {gap:.2} ms\n",
        " ".repeat(begin)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_bars_and_the_gap_is_empty() {
        let gap = (0.0, 6.0);
        let times = (-100..=0).chain(6..100).map(f64::from).collect();
        let text = picture(
            &Ticks {
                times,
                gap,
                period: 1.0,
            },
            3,
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "The guest's ticks around update 3, 1 ms a column:"
        );
        let bars = lines[2].trim().trim_matches('|');
        assert_eq!(bars.chars().count(), WIDTH);
        assert_eq!(bars.matches(' ').count(), 5, "{bars}");
        assert!(
            lines[3].ends_with("^^^^^^ no tick for 6.00 ms"),
            "{}",
            lines[3]
        );
    }

    #[test]
    fn a_long_gap_makes_wide_columns() {
        let gap = (0.0, 24.0);
        let times = (-200..=0).chain(24..200).map(f64::from).collect();
        let text = picture(
            &Ticks {
                times,
                gap,
                period: 1.0,
            },
            1,
        );
        assert!(text.contains("2 ms a column"), "{text}");
        let empty = text.lines().nth(2).unwrap().matches(' ').count();
        assert!((11..=15).contains(&empty), "{text}");
    }
}
