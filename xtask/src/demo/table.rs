//! The demonstration's table.

/// One update.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub number: u32,
    /// The process that has the guest now.
    pub process: u32,
    /// The blackout in milliseconds: by the VMM's own clock, if it tells,
    pub vmm_ms: Option<f64>,
    /// as a watcher on shared RAM saw it, and how far off it can be,
    pub outside_ms: f64,
    pub outside_doubt_ms: f64,
    /// and between two ticks of the guest.
    pub guest_ms: f64,
    /// What the guest has done so far.
    pub pages: u64,
    pub writes: u64,
    pub entropy: u64,
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        String::new(),
        "          new      blackout in ms, as seen by      the guest's work so far".to_owned(),
        "update  process     VMM   outside (+-)     guest      pages   writes  entropy".to_owned(),
    ];
    lines.extend(rows.iter().map(|row| {
        let vmm = row.vmm_ms.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        format!(
            "{:>6} {:>8} {vmm:>7} {:>9.2} {:>4.2} {:>9.2} {:>10} {:>8} {:>8}",
            row.number,
            row.process,
            row.outside_ms,
            row.outside_doubt_ms,
            row.guest_ms,
            row.pages,
            row.writes,
            row.entropy
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_stands_below_its_headings() {
        let row = Row {
            number: 1,
            process: 4711,
            vmm_ms: Some(1.25),
            outside_ms: 1.5,
            outside_doubt_ms: 0.04,
            guest_ms: 2.0,
            pages: 100_000,
            writes: 200,
            entropy: 300,
        };
        let text = table(&[row]);
        let lines: Vec<_> = text.lines().collect();
        let expected =
            "     1     4711    1.25      1.50 0.04      2.00     100000      200      300";
        assert_eq!(lines[3], expected);
        assert_eq!(lines[2].len(), lines[3].len());
    }
}
