//! The plot of the matrix: blackout over guest RAM, on a logarithmic scale, as SVG.

use baton_testkit::Vmm;
use std::fmt::Write;

use super::matrix::{Cell, size_name};
use super::rounds::Way;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// The scale's ends, in milliseconds.
const LEAST: f64 = 0.5;
const MOST: f64 = 5000.0;

/// One line of the plot.
struct Line {
    vmm: Vmm,
    way: Way,
    colour: &'static str,
}

const LINES: [Line; 6] = [
    line(Vmm::Baton, Way::Transfer, "#0b6e4f"),
    line(Vmm::Baton, Way::Exec, "#1f9e89"),
    line(Vmm::Baton, Way::Reboot, "#7ccba2"),
    line(Vmm::Qemu, Way::Transfer, "#9c2a10"),
    line(Vmm::Qemu, Way::Exec, "#d95f02"),
    line(Vmm::Qemu, Way::Reboot, "#f4a582"),
];

const fn line(vmm: Vmm, way: Way, colour: &'static str) -> Line {
    Line { vmm, way, colour }
}

/// Guests with one vCPU and the fewest devices; the table has the others.
pub(super) fn svg(cells: &[Cell]) -> String {
    let least_devices = cells.iter().map(|cell| cell.shape.rngs).min().unwrap_or(0);
    let plain: Vec<&Cell> = cells
        .iter()
        .filter(|cell| cell.shape.cpus == 1 && cell.shape.rngs == least_devices)
        .collect();
    let mut sizes: Vec<u64> = plain.iter().map(|cell| cell.shape.memory_mib).collect();
    sizes.sort_unstable();
    sizes.dedup();

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">Median blackout from outside, ms, by guest \
         RAM (all touched)</text>\n"
    );
    for ms in [1.0, 10.0, 100.0, 1000.0] {
        let y = height(ms);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ms}</text>\n",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0
        );
    }
    for (at, size) in sizes.iter().enumerate() {
        let x = place(at, sizes.len());
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 24.0,
            size_name(*size)
        );
    }
    let mut legend = TOP + 10.0;
    for line in &LINES {
        let points: Vec<(f64, f64)> = plain
            .iter()
            .filter(|cell| cell.vmm == line.vmm && cell.shape.way == line.way)
            .filter_map(|cell| {
                let at = sizes
                    .iter()
                    .position(|size| *size == cell.shape.memory_mib)?;
                Some((place(at, sizes.len()), height(cell.outside.median)))
            })
            .collect();
        if points.is_empty() {
            continue;
        }
        draw(&mut out, line, &points, legend);
        legend += 22.0;
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, line: &Line, points: &[(f64, f64)], legend: f64) {
    let colour = line.colour;
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
        );
    }
    let x = WIDTH - RIGHT + 20.0;
    let _ = write!(
        out,
        "<circle cx=\"{x}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\"/>\n\
         <text x=\"{}\" y=\"{legend:.1}\">{} {}</text>\n",
        legend - 4.0,
        x + 12.0,
        line.vmm,
        line.way.name()
    );
}

fn height(ms: f64) -> f64 {
    let part = (ms.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
}

fn place(at: usize, count: usize) -> f64 {
    let room = WIDTH - LEFT - RIGHT;
    LEFT + room * (at as f64 + 0.5) / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rounds::Shape;
    use crate::stats::Spread;

    #[test]
    fn a_line_is_drawn_for_what_was_measured_and_a_longer_blackout_is_higher() {
        let cell = |memory_mib, ms| Cell {
            vmm: Vmm::Baton,
            shape: Shape {
                way: Way::Transfer,
                memory_mib,
                touched: true,
                cpus: 1,
                rngs: 1,
            },
            outside: Spread::of([ms]).unwrap(),
            idle: Spread::of([1.5]).unwrap(),
        };
        let drawn = svg(&[cell(128, 2.0), cell(1024, 3.0)]);
        assert_eq!(drawn.matches("<polyline").count(), 1);
        assert!(
            drawn.contains("baton cpr-transfer") && drawn.contains("1 GiB"),
            "{drawn}"
        );
        assert!(!drawn.contains("qemu"));
        assert!(height(100.0) < height(10.0));
    }
}
