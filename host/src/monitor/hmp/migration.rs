//! Commands about migrations, as QEMU's HMP has them.

use std::fmt::Write as _;

use baton_migration::status::MigrationStatus;
use serde_json::{Map, Value, json};

use super::run::{Context, Done, Next, ask};
use crate::cli;
use crate::monitor::error::QmpError;
use crate::monitor::server::Control;

/// `migrate`
pub(super) fn migrate(context: &Context<'_>) -> Result<Done, QmpError> {
    let mut arguments = Map::new();
    if let Some(uri) = context.said.get("uri") {
        arguments.insert("uri".into(), uri.into());
    }
    if context.said.is_on("resume") {
        arguments.insert("resume".into(), true.into());
    }
    context.ask("migrate", arguments.into())?;
    if context.said.is_on("detach") {
        return Ok(Done::default());
    }
    if !context.speaker.waits {
        let text = "terminal does not allow synchronous migration, continuing detached\n";
        return Ok(text.to_owned().into());
    }
    Ok(Done {
        next: Next::Migration,
        ..Done::default()
    })
}

/// Whether the migration that a monitor waits for still is under way: nothing then, and what is to be
/// said of its end otherwise. One that waits for `migrate_continue` gives the prompt back, so that
/// this can be said.
pub(super) fn outcome(control: &dyn Control) -> Option<String> {
    let info = match ask(control, "query-migrate", Value::Null) {
        Ok(info) => info,
        Err(e) => return Some(super::run::error_line(&e)),
    };
    let status: Option<MigrationStatus> = serde_json::from_value(info["status"].clone()).ok();
    match status {
        Some(MigrationStatus::PreSwitchover) => Some(String::new()),
        Some(status) if status.in_progress() => None,
        Some(MigrationStatus::Failed) => {
            let reason = info["error-desc"]
                .as_str()
                .unwrap_or("the migration failed");
            Some(format!("Error: {reason}\n"))
        }
        _ => Some(String::new()),
    }
}

/// `migrate_incoming`
pub(super) fn incoming(context: &Context<'_>) -> Result<Done, QmpError> {
    context.done_with("migrate-incoming", json!({ "uri": context.word("uri") }))
}

/// `migrate_continue`
pub(super) fn go_on(context: &Context<'_>) -> Result<Done, QmpError> {
    context.done_with(
        "migrate-continue",
        json!({ "state": context.word("state") }),
    )
}

/// `migrate_set_capability`
pub(super) fn set_capability(context: &Context<'_>) -> Result<Done, QmpError> {
    let change = json!({
        "capability": context.word("capability"),
        "state": context.said.is_on("state"),
    });
    context.done_with(
        "migrate-set-capabilities",
        json!({ "capabilities": [change] }),
    )
}

/// `migrate_set_parameter`
pub(super) fn set_parameter(context: &Context<'_>) -> Result<Done, QmpError> {
    let name = context.word("parameter");
    let all = context.ask("query-migrate-parameters", Value::Null)?;
    let now = all
        .get(name)
        // QEMU's text.
        .ok_or_else(|| QmpError::generic(format!("invalid parameter value: {name}")))?;
    let value = value(name, now, context.word("value"))?;
    context.done_with("migrate-set-parameters", json!({ name: value }))
}

/// What `text` means for a parameter whose value is `now`.
fn value(name: &str, now: &Value, text: &str) -> Result<Value, QmpError> {
    let refused = |expected: &str| {
        QmpError::generic(format!(
            "Invalid parameter type for '{name}', expected: {expected}"
        ))
    };
    match now {
        Value::Bool(_) => cli::number::switch(text)
            .map(Value::from)
            .ok_or_else(|| QmpError::generic(format!("Parameter '{name}' expects 'on' or 'off'"))),
        Value::Number(_) => {
            // QEMU's units: these two are in MiB.
            let mebibytes = matches!(name, "max-bandwidth" | "avail-switchover-bandwidth");
            cli::number::size(text, if mebibytes { 20 } else { 0 })
                .map(Value::from)
                .ok_or_else(|| refused("size"))
        }
        Value::Array(_) => shell_words::split(text).map(Value::from).map_err(|_| {
            QmpError::generic(format!("Parameter '{name}' has a quote that does not end"))
        }),
        _ => Ok(text.into()),
    }
}

/// `info migrate_capabilities`
pub(super) fn capabilities(context: &Context<'_>) -> Result<String, QmpError> {
    let all = context.ask("query-migrate-capabilities", Value::Null)?;
    let line = |row: &Value| {
        let state = if row["state"] == true { "on" } else { "off" };
        format!(
            "{}: {state}\n",
            row["capability"].as_str().unwrap_or_default()
        )
    };
    Ok(all.as_array().into_iter().flatten().map(line).collect())
}

/// How a parameter is shown.
#[derive(Clone, Copy)]
enum Shown {
    /// With this behind it.
    Plain(&'static str),
    /// In quotes.
    Quoted,
}

/// The parameters that QEMU shows, in its order.
const PARAMETERS: [(&str, Shown); 26] = [
    ("announce-initial", Shown::Plain(" ms")),
    ("announce-max", Shown::Plain(" ms")),
    ("announce-rounds", Shown::Plain("")),
    ("announce-step", Shown::Plain(" ms")),
    ("throttle-trigger-threshold", Shown::Plain("")),
    ("cpu-throttle-initial", Shown::Plain("")),
    ("cpu-throttle-increment", Shown::Plain("")),
    ("cpu-throttle-tailslow", Shown::Plain("")),
    ("max-cpu-throttle", Shown::Plain("")),
    ("tls-creds", Shown::Quoted),
    ("tls-hostname", Shown::Quoted),
    ("tls-authz", Shown::Quoted),
    ("max-bandwidth", Shown::Plain(" bytes/second")),
    ("avail-switchover-bandwidth", Shown::Plain(" bytes/second")),
    ("max-postcopy-bandwidth", Shown::Plain(" bytes/second")),
    ("downtime-limit", Shown::Plain(" ms")),
    ("x-checkpoint-delay", Shown::Plain(" ms")),
    ("multifd-channels", Shown::Plain("")),
    ("multifd-compression", Shown::Plain("")),
    ("zero-page-detection", Shown::Plain("")),
    ("xbzrle-cache-size", Shown::Plain(" bytes")),
    ("x-vcpu-dirty-limit-period", Shown::Plain(" ms")),
    ("vcpu-dirty-limit", Shown::Plain(" MB/s")),
    ("mode", Shown::Plain("")),
    ("direct-io", Shown::Plain("")),
    ("cpr-exec-command", Shown::Plain("")),
];

/// `info migrate_parameters`
pub(super) fn parameters(context: &Context<'_>) -> Result<String, QmpError> {
    let all = context.ask("query-migrate-parameters", Value::Null)?;
    let line = |(name, shown): (&str, Shown)| {
        let value = all.get(name)?;
        Some(match (shown, value) {
            (_, Value::Array(words)) => {
                let words = words.iter().filter_map(Value::as_str);
                let words: String = words.map(|word| format!(" {word}")).collect();
                format!("{name}:{words}\n")
            }
            (Shown::Quoted, value) => {
                format!("{name}: '{}'\n", value.as_str().unwrap_or_default())
            }
            (Shown::Plain(unit), Value::Bool(on)) => {
                format!("{name}: {}{unit}\n", if *on { "on" } else { "off" })
            }
            (Shown::Plain(unit), Value::String(text)) => format!("{name}: {text}{unit}\n"),
            (Shown::Plain(unit), value) => format!("{name}: {value}{unit}\n"),
        })
    };
    Ok(PARAMETERS.into_iter().filter_map(line).collect())
}

/// `info migrate`
pub(super) fn info(context: &Context<'_>) -> Result<String, QmpError> {
    let info = context.ask("query-migrate", Value::Null)?;
    let mut out = String::new();
    if let Some(reasons) = info["blocked-reasons"].as_array() {
        out.push_str("Outgoing migration blocked:\n");
        for reason in reasons.iter().filter_map(Value::as_str) {
            let _ = writeln!(out, "  {reason}");
        }
    }
    if let Some(status) = info["status"].as_str() {
        let reason = info["error-desc"].as_str().filter(|_| status == "failed");
        let reason = reason
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        let _ = writeln!(out, "Status: \t\t{status}{reason}");
    }
    if let Some(total) = info["total-time"].as_u64().filter(|total| *total > 0) {
        let _ = write!(out, "Time (ms): \t\ttotal={total}");
        for (name, member) in [
            ("setup", "setup-time"),
            ("exp_down", "expected-downtime"),
            ("down", "downtime"),
        ] {
            if let Some(time) = info[member].as_u64() {
                let _ = write!(out, ", {name}={time}");
            }
        }
        out.push('\n');
    }
    if info["ram"].is_object() {
        ram(&mut out, &info["ram"]);
    }
    if context.said.is_on("all")
        && let Some(blackout) = info["blackout"].as_object()
    {
        let parts = blackout.iter().map(|(name, time)| format!("{name}={time}"));
        let _ = writeln!(
            out,
            "Blackout (us): \t\t{}",
            parts.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(out)
}

fn ram(out: &mut String, ram: &Value) {
    let number = |member: &str| ram[member].as_u64().unwrap_or_default();
    let size = |member: &str| size(number(member));
    let mbps = ram["mbps"].as_f64().unwrap_or_default();
    let _ = write!(
        out,
        "RAM info:\n  Throughput (Mbps): \t{mbps:.2}\n  Sizes: \t\tpagesize={}, total={}\n  \
         Transfers: \t\ttransferred={}, remain={}\n    Channels: \t\tprecopy={}, multifd={}, \
         postcopy={}\n    Page Types: \tnormal={}, zero={}\n  Page Rates (pps): \ttransfer={}",
        size("page-size"),
        size("total"),
        size("transferred"),
        size("remaining"),
        size("precopy-bytes"),
        size("multifd-bytes"),
        size("postcopy-bytes"),
        number("normal"),
        number("duplicate"),
        number("pages-per-second"),
    );
    let dirty = number("dirty-pages-rate");
    if dirty > 0 {
        let _ = write!(out, ", dirty={dirty}");
    }
    let _ = write!(
        out,
        "\n  Others: \t\tdirty_syncs={}",
        number("dirty-sync-count")
    );
    let stopped = number("downtime-bytes");
    if stopped > 0 {
        let _ = write!(out, ", downtime_bytes={stopped}");
    }
    out.push('\n');
}

/// A size with three digits, as QEMU shows it: `2.11 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // From 1000 of a unit on the next one is used.
    let unit = (0..UNITS.len() - 1)
        .find(|unit| (bytes as f64) < 1000.0 * 1024_f64.powi(*unit as i32))
        .unwrap_or(UNITS.len() - 1);
    let value = bytes as f64 / 1024_f64.powi(unit as i32);
    let decimals = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{digits} {}B", UNITS[unit])
}
