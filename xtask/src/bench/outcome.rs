//! What a comparison of handovers comes to, for people and for programs.

use baton_testkit::Vmm;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::stats::Spread;

/// One handover, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// As a watcher on shared RAM saw it, and how far off it can be.
    pub outside_ms: f64,
    pub doubt_ms: f64,
    /// Between two ticks of the guest.
    pub guest_ms: f64,
    /// By the VMM's own clock, and where it went, in microseconds.
    pub vmm_ms: Option<f64>,
    pub phases: Vec<(String, u64)>,
    /// The same, from outside and in the guest, with no handover.
    pub idle_outside_ms: f64,
    pub idle_guest_ms: f64,
    /// What the guest did in the 100 ms after the handover, of what it does in as long without one,
    /// in percent.
    pub after_percent: Option<f64>,
}

/// One VMM's rounds.
#[derive(Debug)]
pub(super) struct Side {
    pub vmm: Vmm,
    pub rounds: Vec<Round>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub count: u32,
    pub cpus: u32,
    pub devices: u32,
    pub sides: Vec<Side>,
}

/// What is measured of a round: its title, its name in JSON, and where it is.
type Measure = (&'static str, &'static str, fn(&Round) -> Option<f64>);

const MEASURES: [Measure; 6] = [
    ("blackout, from outside", "outside_ms", |round| {
        Some(round.outside_ms)
    }),
    ("blackout, in the guest", "guest_ms", |round| {
        Some(round.guest_ms)
    }),
    ("blackout, by the VMM itself", "vmm_ms", |round| {
        round.vmm_ms
    }),
    ("idle, from outside", "idle_outside_ms", |round| {
        Some(round.idle_outside_ms)
    }),
    ("idle, in the guest", "idle_guest_ms", |round| {
        Some(round.idle_guest_ms)
    }),
    (
        "work in the first 100 ms after, %",
        "after_percent",
        |round| round.after_percent,
    ),
];

/// A guest that stands still this long in the middle of half the rounds, in milliseconds, while
/// nothing is done with it, competes for the CPU with something else.
const BUSY_MS: f64 = 2.0;

impl Side {
    fn spread(&self, measure: fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(measure))
    }

    /// The median length of each phase, in microseconds.
    fn phases(&self) -> BTreeMap<&str, f64> {
        let mut lengths: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, us) in self.rounds.iter().flat_map(|round| &round.phases) {
            lengths.entry(name).or_default().push(*us as f64);
        }
        let medians = lengths.into_iter();
        medians
            .filter_map(|(name, all)| Some((name, Spread::of(all)?.median)))
            .collect()
    }

    fn json(&self) -> Value {
        let mut side = json!({ "phases_us": self.phases() });
        for (_, name, measure) in MEASURES {
            let values: Vec<f64> = self.rounds.iter().filter_map(measure).collect();
            if let Some(spread) = self.spread(measure) {
                side[name] = json!({
                    "median": spread.median,
                    "lower_quartile": spread.lower_quartile,
                    "upper_quartile": spread.upper_quartile,
                    "least": spread.least,
                    "most": spread.most,
                    "all": values
                });
            }
        }
        side
    }
}

impl Outcome {
    /// The medians of the two sides, by measure, as ours to theirs.
    fn ratio(&self, measure: fn(&Round) -> Option<f64>) -> Option<f64> {
        let median = |vmm| {
            let side = self.sides.iter().find(|side| side.vmm == vmm)?;
            Some(side.spread(measure)?.median)
        };
        Some(median(Vmm::Qemu)? / median(Vmm::Baton)?).filter(|ratio| ratio.is_finite())
    }

    /// Everything, for programs.
    pub(super) fn json(&self) -> Value {
        let sides = self
            .sides
            .iter()
            .map(|side| (side.vmm.to_string(), side.json()));
        let mut all = json!({
            "handovers": self.count,
            "vcpus": self.cpus,
            "entropy_devices": self.devices,
            "vmm": sides.collect::<serde_json::Map<_, _>>(),
        });
        for (_, name, measure) in MEASURES {
            if let Some(ratio) = self.ratio(measure) {
                all["qemu_to_baton"][name] = json!(ratio);
            }
        }
        all
    }

    /// Rows of a Markdown table.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![
            format!(
                "{} handovers each, {} vCPU, {} entropy devices; medians [quartiles] in ms",
                self.count, self.cpus, self.devices
            ),
            String::new(),
        ];
        let names: Vec<String> = self.sides.iter().map(|side| side.vmm.to_string()).collect();
        lines.push(format!("| what | {} | QEMU : Baton |", names.join(" | ")));
        lines.push(format!("|---|{}---|", "---|".repeat(names.len())));
        for (title, _, measure) in MEASURES {
            let cells: Vec<String> = self
                .sides
                .iter()
                .map(|side| cell(side.spread(measure)))
                .collect();
            let ratio = self
                .ratio(measure)
                .map_or("".to_owned(), |ratio| format!("{ratio:.1}"));
            lines.push(format!("| {title} | {} | {ratio} |", cells.join(" | ")));
        }
        for side in &self.sides {
            let phases = side.phases();
            if !phases.is_empty() {
                let parts: Vec<String> = phases
                    .iter()
                    .map(|(name, us)| format!("{name} {us:.0}"))
                    .collect();
                lines.push(format!(
                    "\nWhere {}'s time went (medians): {}",
                    side.vmm,
                    parts.join(", ")
                ));
            }
            if let Some(doubt) = side.spread(|round| Some(round.doubt_ms)) {
                lines.push(format!(
                    "The watcher's doubt with {}: median {:.2} ms, most {:.2} ms",
                    side.vmm, doubt.median, doubt.most
                ));
            }
        }
        let idle = |side: &Side| side.spread(|round| Some(round.idle_outside_ms));
        let noise = self
            .sides
            .iter()
            .filter_map(idle)
            .map(|spread| spread.median);
        if noise.fold(0.0, f64::max) > BUSY_MS {
            lines.push(
                "\nThis machine is busy: guests stand still for milliseconds with no handover at \
                 all. Measure again when it is quiet."
                    .to_owned(),
            );
        }
        lines.join("\n")
    }
}

fn cell(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| {
        let (low, high) = (spread.lower_quartile, spread.upper_quartile);
        format!("{:.2} [{low:.2}-{high:.2}]", spread.median)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(vmm: Vmm, outside: &[f64]) -> Side {
        let round = |ms: &f64| Round {
            outside_ms: *ms,
            phases: vec![("save-us".to_owned(), 100)],
            ..Round::default()
        };
        Side {
            vmm,
            rounds: outside.iter().map(round).collect(),
        }
    }

    #[test]
    fn medians_stand_side_by_side_with_their_ratio() {
        let sides = vec![
            side(Vmm::Baton, &[1.0, 2.0, 3.0]),
            side(Vmm::Qemu, &[10.0, 30.0, 20.0]),
        ];
        let outcome = Outcome {
            count: 3,
            cpus: 1,
            devices: 1,
            sides,
        };
        let table = outcome.table();
        let row = "| blackout, from outside | 2.00 [1.50-2.50] | 20.00 [15.00-25.00] | 10.0 |";
        assert!(table.contains(row), "{table}");
        assert!(
            table.contains("Where baton's time went (medians): save-us 100"),
            "{table}"
        );
        let json = outcome.json();
        assert_eq!(json["vmm"]["baton"]["outside_ms"]["median"], 2.0);
        assert_eq!(json["qemu_to_baton"]["outside_ms"], 10.0);
        // Never measured, so not there.
        assert!(json["vmm"]["baton"].get("vmm_ms").is_none());
    }
}
