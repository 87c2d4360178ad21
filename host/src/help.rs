//! The answers that need plugins but no guest: `-device help` and `plugin info`.

use std::path::{Path, PathBuf};

use baton_migration::HostError;
use baton_plugin_api::Property;

use crate::cli;
use crate::plugin::{Plugin, Registry};

/// `-device help`, or `-device NAME,help`.
pub(crate) fn devices(device: Option<&str>, plugins: &[PathBuf]) -> Result<String, HostError> {
    let registry = Registry::load(plugins)?;
    Ok(match device {
        Some(name) => match registry.child(name) {
            Some((parent, child)) => cli::help::child(parent, child),
            None => cli::help::device(registry.device(name)?.1),
        },
        None => cli::help::devices(registry.devices().map(|(_, device_type)| device_type)),
    })
}

/// `baton plugin info FILE`.
pub(crate) fn plugin(file: &Path) -> Result<String, HostError> {
    use std::fmt::Write as _;
    let plugin = Plugin::load(file)?;
    let (magic, descriptor) = (&plugin.magic, &plugin.descriptor);
    let mut out = String::new();
    writeln!(out, "file: {}", file.display())?;
    writeln!(out, "name: {}", descriptor.name)?;
    writeln!(out, "version: {}", descriptor.version)?;
    writeln!(out, "description: {}", descriptor.description)?;
    writeln!(out, "abi: {}.{}", magic.abi_major, magic.abi_minor)?;
    writeln!(out, "api crate: {}", magic.api_version())?;
    for device in &descriptor.devices {
        writeln!(out, "\ndevice: {} ({})", device.name, device.bus.as_str())?;
        writeln!(out, "  {}", device.description)?;
        out.push_str(&properties(&device.properties));
        for section in &device.sections {
            for (name, loads) in section.names() {
                let (version, oldest) = (loads.end(), loads.start());
                let kind = ["section", "subsection"][usize::from(name != section.name)];
                writeln!(
                    out,
                    "  {kind} {name} version {version}, loads from {oldest}"
                )?;
            }
        }
        for fd in &device.fds {
            let modes: Vec<_> = fd.modes.iter().map(|m| m.as_str()).collect();
            writeln!(
                out,
                "  descriptor {} in {}: {}",
                fd.name,
                modes.join(", "),
                fd.help
            )?;
        }
        for b in &device.blockers {
            let modes: Vec<_> = b.modes.iter().map(|m| m.as_str()).collect();
            let unless = match b.unless_suspended {
                true => " unless the guest is suspended",
                false => "",
            };
            writeln!(
                out,
                "  blocks {}{unless}: {} ({})",
                modes.join(", "),
                b.reason,
                b.remedy
            )?;
        }
        let bus = device.child_bus.as_ref().map_or("", |bus| &bus.name);
        for child in device.children() {
            writeln!(out, "\ndevice: {} (on a {bus})", child.name)?;
            writeln!(out, "  {}", child.description)?;
            out.push_str(&properties(&child.properties));
        }
    }
    Ok(out)
}

fn properties(properties: &[Property]) -> String {
    let row = |p: &Property| {
        let default = p.default.as_ref().map(|d| format!(", default {d}"));
        let default = default.unwrap_or_default();
        let required = if p.required { ", required" } else { "" };
        let kind = p.kind.describe();
        format!(
            "  property {} {kind}{default}{required}: {}\n",
            p.name, p.help
        )
    };
    properties.iter().map(row).collect()
}
