//! What an update prints.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use baton_migration::Mode;
use serde_json::{Value, json};

use crate::successor::Origin;

/// Says how far the update is, where somebody sits and reads.
pub(super) struct Progress(bool);

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        Self(!json && std::io::stderr().is_terminal())
    }

    pub(super) fn say(&self, text: &str) {
        if self.0 {
            eprintln!("baton: {text}");
        }
    }
}

/// Prints the result. Nobody may be reading.
pub(super) fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
}

/// The result of an update that has happened; `info` is the answer of `query-migrate`.
pub(super) fn result(mode: Mode, before: &Origin, now: &Origin, mut info: Value) -> Value {
    let process = |origin: &Origin| {
        let mut row = json!({
            "pid": origin.pid,
            "program": origin.program,
            "version": origin.version,
        });
        if let Some(id) = &origin.build_id {
            row["build-id"] = id.as_str().into();
        }
        row
    };
    let mut result = json!({
        "status": "completed",
        "mode": mode,
        "before": process(before),
        "now": process(now),
    });
    for name in ["total-time", "setup-time", "downtime", "blackout"] {
        let value = info[name].take();
        if !value.is_null() {
            result[name] = value;
        }
    }
    if let Some(reason) = info["error-desc"].as_str() {
        result["warning"] = format!("the old process has died meanwhile: {reason}").into();
    }
    result
}

/// The whole among the parts of a blackout, and the parts.
const TOTAL: &str = "total-us";
const PHASES: [&str; 5] = ["quiesce", "save", "transfer", "load", "start"];

/// The same for people.
pub(super) fn summary(result: &Value) -> String {
    let process = |name: &str| {
        let process = &result[name];
        let pid = process["pid"].as_u64().unwrap_or_default();
        let text = |name: &str| process[name].as_str().unwrap_or_default();
        format!(
            "process {pid}, Baton {} ({})",
            text("version"),
            text("program")
        )
    };
    let mut text = format!(
        "before    {}\nnow       {}\n",
        process("before"),
        process("now")
    );
    if let Some(blackout) = result["blackout"].as_object() {
        let micros = |value: &Value| value.as_u64().unwrap_or_default() as f64 / 1000.0;
        let total = blackout.get(TOTAL).map_or(0.0, micros);
        let _ = write!(text, "blackout  {total:.1} ms");
        // In the order in which they follow each other.
        let named = |name: &str| {
            let value = blackout.get(&format!("{name}-us"))?;
            Some(format!("{name} {:.1}", micros(value)))
        };
        let phases: Vec<_> = PHASES.into_iter().filter_map(named).collect();
        let _ = writeln!(text, ": {}", phases.join(", "));
    }
    if let Some(total) = result["total-time"].as_u64() {
        let _ = writeln!(text, "in all    {total} ms");
    }
    if let Some(warning) = result["warning"].as_str() {
        let _ = writeln!(text, "warning   {warning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_both_processes_and_the_phases() {
        let result = json!({
            "before": { "pid": 1, "program": "/old/baton", "version": "0.1.0" },
            "now": { "pid": 2, "program": "/new/baton", "version": "0.2.0" },
            "total-time": 40,
            "blackout": { "total-us": 5200, "quiesce-us": 1000, "save-us": 200 },
        });
        assert_eq!(
            summary(&result),
            "before    process 1, Baton 0.1.0 (/old/baton)\n\
             now       process 2, Baton 0.2.0 (/new/baton)\n\
             blackout  5.2 ms: quiesce 1.0, save 0.2\n\
             in all    40 ms\n"
        );
    }
}
