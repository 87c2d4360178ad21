//! The job `transfer`: one guest, handed from process to process while it works.

use super::super::Vmm;
use super::command_line::Guest;
use super::life::{self, Life};
use super::migration::{self, Took};
use anyhow::Result;

/// Boots a guest, hands it over `count` times and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm, count: u32) -> Result<String> {
    let (mut life, boot) = Life::boot(Guest::new(vmm))?;
    let mut handovers = Vec::new();
    for number in 1..=count {
        let name = format!("handover {number} of {count}");
        handovers.push(migration::step(&mut life, &name, migration::transfer)?);
    }
    let numbers = life.end()?;
    let mut result = format!("{} handovers={count}", life::heading(vmm, boot));
    if !handovers.is_empty() {
        result += &format!(" {}", summary(&handovers));
    }
    Ok(format!("{result} {numbers}"))
}

fn summary(handovers: &[Took]) -> String {
    let spread = |name: &str, mut values: Vec<u64>| {
        values.sort_unstable();
        let (Some(least), Some(most)) = (values.first(), values.last()) else {
            return String::new();
        };
        format!(
            "{name}_min={least} {name}_median={} {name}_max={most}",
            values[values.len() / 2]
        )
    };
    let downtime = spread(
        "downtime_ms",
        handovers.iter().map(|h| h.downtime).collect(),
    );
    let total = spread("total_ms", handovers.iter().map(|h| h.total).collect());
    format!("{downtime} {total}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_gives_least_median_and_most() {
        let handovers = [9, 1, 5].map(|ms| Took {
            downtime: ms,
            total: ms * 10,
            gap: 0,
        });
        assert_eq!(
            summary(&handovers),
            "downtime_ms_min=1 downtime_ms_median=5 downtime_ms_max=9 total_ms_min=10 total_ms_median=50 total_ms_max=90"
        );
    }
}
