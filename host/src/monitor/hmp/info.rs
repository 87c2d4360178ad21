//! `info`: queries of QMP, in QEMU's formats for people.

use serde_json::Value;

use super::run::Context;
use crate::monitor::about;
use crate::monitor::error::QmpError;

/// A member's text; nothing if it has none.
pub(super) fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

/// The rows of a list.
pub(super) fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// `info status`
pub(super) fn status(context: &Context<'_>) -> Result<String, QmpError> {
    let status = context.ask("query-status", Value::Null)?;
    let running = status["running"] == true;
    Ok(match text(&status, "status") {
        _ if running => "VM status: running\n".to_owned(),
        "paused" => "VM status: paused\n".to_owned(),
        other => format!("VM status: paused ({other})\n"),
    })
}

/// `info name`
pub(super) fn name(context: &Context<'_>) -> Result<String, QmpError> {
    let name = context.ask("query-name", Value::Null)?;
    let line = name["name"].as_str().map(|name| format!("{name}\n"));
    Ok(line.unwrap_or_default())
}

/// `info version`
pub(super) fn version(_: &Context<'_>) -> Result<String, QmpError> {
    let version = about::version();
    Ok(format!(
        "{}{}\n",
        number(&version["qemu"]),
        text(&version, "package")
    ))
}

/// The version that clients are told, with dots.
pub(super) fn number(version: &Value) -> String {
    ["major", "minor", "micro"]
        .map(|part| version[part].to_string())
        .join(".")
}

/// `info kvm`
pub(super) fn kvm(context: &Context<'_>) -> Result<String, QmpError> {
    let kvm = context.ask("query-kvm", Value::Null)?;
    let support = match (kvm["present"] == true, kvm["enabled"] == true) {
        (false, _) => "not compiled",
        (true, true) => "enabled",
        (true, false) => "disabled",
    };
    Ok(format!("kvm support: {support}\n"))
}

/// `info plugins`: Baton's own.
pub(super) fn plugins(context: &Context<'_>) -> Result<String, QmpError> {
    let plugins = context.ask("query-plugins", Value::Null)?;
    let line = |plugin: &Value| {
        let devices: Vec<_> = rows(&plugin["devices"]).filter_map(Value::as_str).collect();
        format!(
            "{} {}: file={}, abi={}, devices={}\n",
            text(plugin, "name"),
            text(plugin, "version"),
            text(plugin, "file"),
            text(plugin, "abi"),
            devices.join(",")
        )
    };
    Ok(rows(&plugins).map(line).collect())
}

/// `info qtree`: the devices by the bus they are on.
pub(super) fn qtree(context: &Context<'_>) -> Result<String, QmpError> {
    let devices = context.ask("query-devices", Value::Null)?;
    let mut buses: Vec<&str> = rows(&devices).map(|device| text(device, "bus")).collect();
    buses.sort_unstable();
    buses.dedup();
    let mut out = String::new();
    for bus in buses {
        out.push_str(&format!("bus: {bus}\n"));
        for device in rows(&devices).filter(|device| text(device, "bus") == bus) {
            out.push_str(&format!(
                "  dev: {}, id \"{}\"\n",
                text(device, "driver"),
                text(device, "id")
            ));
            out.push_str(&format!("    addr = \"{}\"\n", text(device, "address")));
            if device["failed"] == true {
                out.push_str(&format!("    failed = \"{}\"\n", text(device, "reason")));
            }
        }
    }
    Ok(out)
}

/// `info mtree`: each address space, with what decodes where.
pub(super) fn mtree(context: &Context<'_>) -> Result<String, QmpError> {
    let spaces = context.ask("query-address-spaces", Value::Null)?;
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let line = |range: &Value| {
        let (base, last) = (number(&range["base"]), number(&range["last"]));
        let (kind, name) = (text(range, "kind"), text(range, "name"));
        format!("    {base:016x}-{last:016x} (prio 0, {kind}): {name}\n")
    };
    let space = |space: &Value| {
        let (name, last) = (text(space, "name"), number(&space["last"]));
        let ranges: String = rows(&space["ranges"]).map(line).collect();
        format!(
            "address-space: {name}\n  {:016x}-{last:016x} (prio 0, i/o): {name}\n{ranges}",
            0
        )
    };
    Ok(rows(&spaces).map(space).collect::<Vec<_>>().join("\n"))
}

/// `info chardev`
pub(super) fn chardev(context: &Context<'_>) -> Result<String, QmpError> {
    let all = context.ask("query-chardev", Value::Null)?;
    let line = |row: &Value| {
        let (label, filename) = (text(row, "label"), text(row, "filename"));
        format!("{label}: filename={filename}\n")
    };
    Ok(rows(&all).map(line).collect())
}
