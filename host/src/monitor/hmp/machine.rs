//! `info` about the machine: CPUs, disks and PCI, in QEMU's formats.

use std::fmt::Write as _;

use serde_json::Value;

use super::info::{rows, text};
use super::run::Context;
use crate::monitor::error::QmpError;

/// `info uuid`
pub(super) fn uuid(context: &Context<'_>) -> Result<String, QmpError> {
    let uuid = context.ask("query-uuid", Value::Null)?;
    Ok(format!("{}\n", text(&uuid, "UUID")))
}

/// `info cpus`
pub(super) fn cpus(context: &Context<'_>) -> Result<String, QmpError> {
    let all = context.ask("query-cpus-fast", Value::Null)?;
    let line = |cpu: &Value| {
        let index = cpu["cpu-index"].as_u64().unwrap_or_default();
        let mark = if index == context.speaker.cpu {
            '*'
        } else {
            ' '
        };
        format!("{mark} CPU #{index}: thread_id={}\n", cpu["thread-id"])
    };
    Ok(rows(&all).map(line).collect())
}

/// `info block`
pub(super) fn block(context: &Context<'_>) -> Result<String, QmpError> {
    let all = context.ask("query-block", Value::Null)?;
    let one = context.said.get("device");
    let shown = rows(&all).filter(|drive| one.is_none_or(|one| text(drive, "device") == one));
    Ok(shown.map(drive).collect::<Vec<_>>().join("\n"))
}

fn drive(drive: &Value) -> String {
    let image = &drive["inserted"];
    let word = |on: &Value, word: &'static str| if *on == true { word } else { "" };
    let mut out = text(drive, "device").to_owned();
    if let Some(node) = image["node-name"].as_str() {
        let _ = write!(out, " ({node})");
    }
    match image.is_object() {
        true => {
            let only = word(&image["ro"], ", read-only");
            let active = word(&(image["active"] == false).into(), ", inactive");
            let (file, format) = (text(image, "file"), text(image, "drv"));
            let _ = writeln!(out, ": {file} ({format}{only}{active})");
        }
        false => out.push_str(": [not inserted]\n"),
    }
    if let Some(device) = drive["qdev"].as_str() {
        let _ = writeln!(out, "    Attached to:      {device}");
    }
    if let Some(status) = drive["io-status"].as_str().filter(|status| *status != "ok") {
        let _ = writeln!(out, "    I/O status:       {status}");
    }
    if image.is_object() {
        let cache = &image["cache"];
        let mode = match cache["writeback"] == true {
            true => "writeback",
            false => "writethrough",
        };
        let direct = word(&cache["direct"], ", direct");
        let flush = word(&cache["no-flush"], ", ignore flushes");
        let _ = writeln!(out, "    Cache mode:       {mode}{direct}{flush}");
    }
    out
}

/// `info pci`
pub(super) fn pci(context: &Context<'_>) -> Result<String, QmpError> {
    let buses = context.ask("query-pci", Value::Null)?;
    let devices = rows(&buses).flat_map(|bus| rows(&bus["devices"]));
    Ok(devices.map(function).collect())
}

fn function(device: &Value) -> String {
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let mut out = format!(
        "  Bus {:2}, device {:3}, function {}:\n",
        number(&device["bus"]),
        number(&device["slot"]),
        number(&device["function"])
    );
    let (class, id) = (&device["class_info"], &device["id"]);
    let class = match class["desc"].as_str() {
        Some(name) => name.to_owned(),
        None => format!("Class {:04}", number(&class["class"])),
    };
    let pair = |vendor, device| format!("{:04x}:{:04x}", number(vendor), number(device));
    let ids = pair(&id["vendor"], &id["device"]);
    let _ = writeln!(out, "    {class}: PCI device {ids}");
    if id["subsystem"].is_i64() {
        let ids = pair(&id["subsystem-vendor"], &id["subsystem"]);
        let _ = writeln!(out, "      PCI subsystem {ids}");
    }
    let pin = number(&device["irq_pin"]);
    if let (Some(irq), 1..=4) = (device["irq"].as_i64(), pin) {
        let letter = ["A", "B", "C", "D"][pin as usize - 1];
        let _ = writeln!(out, "      IRQ {irq}, pin {letter}");
    }
    out.extend(rows(&device["regions"]).map(bar));
    let _ = writeln!(out, "      id \"{}\"", text(device, "qdev_id"));
    out
}

fn bar(region: &Value) -> String {
    let size = region["size"].as_u64().unwrap_or_default();
    // A BAR that does not decode is at -1.
    let place = region["address"].as_u64();
    let place = place.map(|first| (first, first.saturating_add(size.saturating_sub(1))));
    let what = match text(region, "type") {
        "io" => match place {
            Some((first, last)) => format!("I/O at {first:#06x} [{last:#06x}]"),
            None => "I/O (not mapped)".to_owned(),
        },
        _ => {
            let bits = if region["mem_type_64"] == true {
                64
            } else {
                32
            };
            let prefetch = match region["prefetch"] == true {
                true => " prefetchable",
                false => "",
            };
            match place {
                Some((first, last)) => {
                    format!("{bits} bit{prefetch} memory at {first:#010x} [{last:#010x}]")
                }
                None => format!("{bits} bit{prefetch} memory (not mapped)"),
            }
        }
    };
    format!("      BAR{}: {what}\n", region["bar"])
}
