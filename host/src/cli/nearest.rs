//! The name that someone probably meant.

/// The one of `candidates` that is closest to `name`, if any is close: one edit in three letters.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let most = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edits(name, candidate), candidate))
        // Something cut short is meant more often than something mistyped.
        .map(
            |(edits, candidate)| match candidate.starts_with(name) && name.len() > 2 {
                true => (0, candidate),
                false => (edits, candidate),
            },
        )
        .filter(|(edits, _)| *edits <= most)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from `a` to `b` (optimal
/// string alignment), by rows.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(x != y);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// `; did you mean 'x'?`, or nothing when no candidate is close.
pub(crate) fn hint<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |near| format!("; did you mean '{near}'?"))
}

/// An error of a value that is none of `accepted` (QEMU's text, and what to do).
pub(super) fn not_accepted<'a>(
    parameter: &str,
    value: &str,
    accepted: impl IntoIterator<Item = &'a str>,
) -> String {
    let accepted: Vec<_> = accepted.into_iter().collect();
    let remedy = match hint(value, accepted.iter().copied()) {
        none if none.is_empty() => format!("; use {}", accepted.join(", ")),
        near => near,
    };
    format!("Parameter '{parameter}' does not accept value '{value}'{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_name_that_was_meant() {
        let names = ["drive", "serial", "num-queues", "id"];
        for (slip, meant) in [
            ("driv", Some("drive")),
            ("drvie", Some("drive")),
            ("drvei", None),
            ("serail", Some("serial")),
            ("num", Some("num-queues")),
            ("numqueues", Some("num-queues")),
            ("bootindex", None),
            ("", None),
        ] {
            assert_eq!(nearest(slip, names).as_deref(), meant, "{slip}");
        }
    }

    #[test]
    fn edits_are_counted_in_letters() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("wiat", "wait"), 1);
        assert_eq!(edits("ü", "u"), 1);
    }
}
