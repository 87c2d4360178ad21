//! `cargo xtask bench handover --matrix`: every way to the next program, with guests of several sizes,
//! beside QEMU; a table and a plot for `docs/performance.md`.

use anyhow::{Context, Result};
use baton_testkit::Vmm;
use baton_testkit::vmm::Programs;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::outcome::Round;
use super::plot;
use super::rounds::{Contestant, Shape, Way};
use crate::stats::Spread;

const MEMORY_MIB: [u64; 4] = [128, 1 << 10, 4 << 10, 16 << 10];
const CPUS: [u32; 2] = [1, 4];
/// Serial line, clock, disk and entropy device; then more entropy devices.
const DEVICES: [u32; 2] = [4, 16];
/// Devices that are no entropy devices.
const OTHERS: u32 = 3;

/// Where the table goes in `docs/performance.md`.
const BEGIN: &str = "<!-- matrix: made by cargo xtask bench handover --matrix -->";
const END: &str = "<!-- end of matrix -->";

/// One guest, one way, one VMM.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub vmm: Vmm,
    pub shape: Shape,
    /// The blackout from outside, in milliseconds.
    pub outside: Spread,
    /// The same of the same guest while nothing is done with it: what the machine itself does to it.
    pub idle: Spread,
}

/// Measures all of it, `count` handovers each, and writes it down.
pub(super) fn run(
    contestants: &[(Vmm, Programs)],
    count: u32,
    largest_mib: u64,
    most_devices: u32,
) -> Result<()> {
    let mut cells = Vec::new();
    for shape in shapes(largest_mib, most_devices) {
        for (vmm, programs) in contestants {
            if !has(*vmm, programs, shape.way)? {
                continue;
            }
            eprintln!("{}", line(*vmm, shape));
            match measure(*vmm, programs, shape, count) {
                Ok(cell) => {
                    cells.push(cell);
                    // It takes long; whoever has no more time has what was measured until then.
                    write(&cells, count)?;
                }
                // One guest that does not come through must not cost what all the others took.
                Err(error) => println!("Not measured: {}: {error:#}", line(*vmm, shape)),
            }
        }
    }
    println!("{}", table(&cells, count));
    Ok(())
}

fn measure(vmm: Vmm, programs: &Programs, shape: Shape, count: u32) -> Result<Cell> {
    let mut contestant = Contestant::start(vmm, programs.clone(), shape)?;
    for round in 1..=count {
        contestant
            .round()
            .with_context(|| format!("Round {round}"))?;
    }
    let side = contestant.finish()?;
    let of = |what: fn(&Round) -> f64| {
        Spread::of(side.rounds.iter().map(what)).context("There was no round")
    };
    Ok(Cell {
        vmm,
        shape,
        outside: of(|round| round.outside_ms)?,
        idle: of(|round| round.idle_outside_ms)?,
    })
}

fn shapes(largest_mib: u64, most_devices: u32) -> Vec<Shape> {
    let mut shapes = Vec::new();
    // The largest take longest, and come last.
    for memory_mib in MEMORY_MIB.into_iter().filter(|mib| *mib <= largest_mib) {
        for way in Way::ALL {
            for cpus in CPUS {
                for devices in DEVICES.into_iter().filter(|n| *n <= most_devices) {
                    shapes.push(Shape {
                        way,
                        memory_mib,
                        touched: true,
                        cpus,
                        rngs: devices - OTHERS,
                    });
                }
            }
        }
    }
    shapes
}

/// Whether a VMM's way is measured: QEMU has cpr-exec since 10.2.
fn has(vmm: Vmm, programs: &Programs, way: Way) -> Result<bool> {
    if vmm == Vmm::Baton || way != Way::Exec {
        return Ok(true);
    }
    let out = std::process::Command::new(&programs.binary)
        .arg("--version")
        .output()
        .context("QEMU does not tell its version")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let version = text.split_whitespace().nth(3).unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    Ok((parts.next(), parts.next()) >= (Some(10), Some(2)))
}

fn line(vmm: Vmm, shape: Shape) -> String {
    format!(
        "{vmm}: {}, {} MiB, {} vCPU, {} devices",
        shape.way.name(),
        shape.memory_mib,
        shape.cpus,
        shape.rngs + OTHERS
    )
}

fn write(cells: &[Cell], count: u32) -> Result<()> {
    let folder = baton_testkit::guest::target_dir().join("bench");
    let file = folder.join("matrix.json");
    let all: Vec<Value> = cells.iter().map(cell_json).collect();
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&file, format!("{:#}\n", json!(all))))
        .with_context(|| format!("Cannot write {}", file.display()))?;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let picture = docs.join("blackout.svg");
    fs::write(&picture, plot::svg(cells))
        .with_context(|| format!("Cannot write {}", picture.display()))?;
    let page = docs.join("performance.md");
    let text =
        fs::read_to_string(&page).with_context(|| format!("Cannot read {}", page.display()))?;
    let table = table(cells, count);
    fs::write(&page, replaced(&text, &table)?)
        .with_context(|| format!("Cannot write {}", page.display()))?;
    Ok(())
}

fn cell_json(cell: &Cell) -> Value {
    json!({
        "vmm": cell.vmm.to_string(),
        "mode": cell.shape.way.name(),
        "memory_mib": cell.shape.memory_mib,
        "cpus": cell.shape.cpus,
        "devices": cell.shape.rngs + OTHERS,
        "outside_ms": spread_json(cell.outside),
        "idle_ms": spread_json(cell.idle),
    })
}

fn spread_json(spread: Spread) -> Value {
    json!({
        "median": spread.median,
        "lower_quartile": spread.lower_quartile,
        "upper_quartile": spread.upper_quartile,
    })
}

/// A row for each way, number of vCPUs and of devices; a column for each size; "Baton / QEMU".
fn table(cells: &[Cell], count: u32) -> String {
    let mut sizes: Vec<u64> = cells.iter().map(|cell| cell.shape.memory_mib).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut text = format!(
        "Median blackout of {count} handovers from outside, Baton : QEMU in ms (a dash: not \
         measured), RAM all touched; idle: as long a time with no handover, the median of the row.\n\n\
         | mode | vCPUs | devices |"
    );
    for size in &sizes {
        let _ = write!(text, " {} |", size_name(*size));
    }
    let _ = write!(
        text,
        " idle |\n|---|---|---|---|{}\n",
        "---|".repeat(sizes.len())
    );
    for way in Way::ALL {
        for cpus in CPUS {
            for devices in DEVICES {
                let measured = |cell: &Cell| cell.shape.rngs + OTHERS == devices;
                if !cells.iter().any(measured) {
                    continue;
                }
                let _ = write!(text, "| {} | {cpus} | {devices} |", way.name());
                for size in &sizes {
                    let find = |vmm| {
                        let shape = |cell: &&Cell| {
                            cell.vmm == vmm
                                && cell.shape.way == way
                                && cell.shape.cpus == cpus
                                && cell.shape.rngs + OTHERS == devices
                                && cell.shape.memory_mib == *size
                        };
                        cells.iter().find(shape).map(|cell| cell.outside.median)
                    };
                    let (ours, theirs) = (find(Vmm::Baton), find(Vmm::Qemu));
                    let _ = write!(text, " {} : {} |", shown(ours), shown(theirs));
                }
                let row = |cell: &&Cell| {
                    cell.shape.way == way && cell.shape.cpus == cpus && measured(cell)
                };
                let idle = Spread::of(cells.iter().filter(row).map(|cell| cell.idle.median));
                let _ = writeln!(text, " {} |", shown(idle.map(|idle| idle.median)));
            }
        }
    }
    text
}

fn shown(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
}

pub(super) fn size_name(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        _ => format!("{} GiB", mib >> 10),
    }
}

/// The page with the table in its place.
fn replaced(page: &str, table: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .context("docs/performance.md has no place for the matrix")?;
    let (_, after) = rest
        .split_once(END)
        .context("docs/performance.md has no end of the matrix")?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(vmm: Vmm, way: Way, memory_mib: u64, ms: f64) -> Cell {
        Cell {
            vmm,
            shape: Shape {
                way,
                memory_mib,
                touched: true,
                cpus: 1,
                rngs: 1,
            },
            outside: Spread::of([ms]).unwrap(),
            idle: Spread::of([1.5]).unwrap(),
        }
    }

    #[test]
    fn the_two_stand_in_one_place_of_the_table() {
        let cells = [
            cell(Vmm::Baton, Way::Transfer, 128, 2.0),
            cell(Vmm::Qemu, Way::Transfer, 128, 20.0),
            cell(Vmm::Baton, Way::Exec, 1024, 9.0),
        ];
        let table = table(&cells, 5);
        assert!(
            table.contains("| cpr-transfer | 1 | 4 | 2.0 : 20.0 | - : - | 1.5 |"),
            "{table}"
        );
        assert!(
            table.contains("| cpr-exec | 1 | 4 | - : - | 9.0 : - | 1.5 |"),
            "{table}"
        );
        assert!(table.contains("| 128 MiB | 1 GiB | idle |"), "{table}");
    }

    #[test]
    fn a_new_table_takes_the_place_of_the_old_one_alone() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let page = replaced(&page, "new").unwrap();
        assert_eq!(page, format!("before\n{BEGIN}\n\nnew\n{END}\nafter\n"));
        assert!(replaced("nothing", "new").is_err());
    }

    #[test]
    fn the_page_has_a_place_for_it() {
        let page = include_str!("../../../docs/performance.md");
        assert!(replaced(page, "table").is_ok());
    }

    #[test]
    fn every_cell_has_its_guest() {
        assert_eq!(shapes(16 << 10, 16).len(), 48);
        assert!(
            shapes(1 << 10, 4)
                .iter()
                .all(|shape| shape.memory_mib <= 1 << 10)
        );
    }
}
