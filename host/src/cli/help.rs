//! What the options that only print something print.

use std::fmt::Write;

use baton_plugin_api::{ChildType, DeviceType, Property};

use super::blockdev;
use super::chardev;
use super::completions;
use super::cpu;
use super::drive;
use super::machine::{FIXED, MachineType};
use super::netdev;
use super::object::KINDS;
use super::table::{GROUPS, Opt};
use crate::log;

/// Columns of a line.
const WIDTH: usize = 96;

/// `-version`.
pub fn version() -> String {
    format!("Baton {}\n", env!("CARGO_PKG_VERSION"))
}

/// `-help`.
pub fn usage() -> String {
    let mut text = format!(
        "{}Usage: baton -kernel FILE [options]\n       baton plugin info FILE\n       \
         baton state show FILE [--offset N] [--full]\n       \
         baton state check OLD NEW [--json]\n       baton completions SHELL\n       baton update [OPTION]...\n",
        version()
    );
    for (group, options) in GROUPS {
        let _ = write!(text, "\n{group}:\n");
        for option in options {
            let _ = writeln!(text, "{}", spellings(option));
            text.push_str(&wrapped(option.help));
        }
    }
    text
}

/// `baton completions SHELL`.
pub fn completions(shell: clap_complete::Shell) -> String {
    completions::script(shell)
}

/// What a value asks for help about, if it does: `help` nothing further, `NAME,help` NAME.
pub(super) fn subject(value: &str) -> Option<&str> {
    ["help", "?"].into_iter().find_map(|word| match value {
        _ if value == word => Some(""),
        _ => value.strip_suffix(word)?.strip_suffix(','),
    })
}

/// The help of an option about `subject`; `None` if the option has none, or needs plugins for it.
pub(super) fn option(option: &Opt, subject: &str) -> Option<String> {
    Some(match option.name {
        "device" => return None,
        "machine" if subject.is_empty() => machines(),
        "machine" => machine(),
        "object" => types(
            "Objects, each with an id=ID",
            subject,
            &KINDS.map(|(name, list)| (name, list.iter().map(|(k, v)| row(k, v)).collect())),
        ),
        "netdev" => types(
            "Network backends, each with an id=ID",
            subject,
            &netdev::TYPES.map(|(name, list)| {
                let spelled = |(key, kind, required): &(&str, netdev::Kind, bool)| {
                    let end = if key.ends_with('.') { "..." } else { "" };
                    let must = if *required { "(required)" } else { "" };
                    row(&format!("{key}{end}={}", kind.describe()), must)
                };
                (name, list.iter().map(spelled).collect())
            }),
        ),
        "cpu" => cpu::help(),
        "accel" => "Accelerators:\n  kvm\n".to_owned(),
        // QEMU's title.
        "chardev" if subject.is_empty() => {
            let rows = chardev::KINDS.map(|kind| row(kind, ""));
            format!(
                "Available chardev backend types:\n{}\n{}",
                rows.concat(),
                wrapped(option.help)
            )
        }
        "drive" => list("-drive", &drive::PROPERTIES),
        "blockdev" => list("-blockdev", &blockdev::PROPERTIES),
        "d" => {
            let items = log::ITEMS.iter();
            let rows = items.map(|(name, help, _)| row(name, help));
            format!(
                "Log items (comma separated):\n{}{}",
                rows.collect::<String>(),
                row("all", "all of them")
            )
        }
        // Those whose value is a list of properties.
        _ if option.section.is_some() => {
            format!("{}\n{}", spellings(option), wrapped(option.help))
        }
        _ => return None,
    })
}

fn row(name: &str, help: &str) -> String {
    format!("{}\n", format!("  {name:<28} {help}").trim_end())
}

fn list(option: &str, properties: &[(&str, &str)]) -> String {
    let rows = properties.iter().map(|(name, help)| row(name, help));
    format!("{option} properties:\n{}", rows.collect::<String>())
}

/// All types with their properties, or one.
fn types(title: &str, subject: &str, types: &[(&str, String)]) -> String {
    let one = types.iter().find(|(name, _)| *name == subject);
    match one {
        Some((name, properties)) => format!("{name} properties:\n{properties}"),
        None => {
            let all = types
                .iter()
                .map(|(name, properties)| format!("{name}\n{properties}"));
            format!("{title}:\n{}", all.collect::<String>())
        }
    }
}

/// `-machine help`.
fn machines() -> String {
    let name = MachineType::default().as_str();
    format!(
        "Machine types (-machine TYPE,help lists properties):\n{}{}",
        row("baton", &format!("the newest, now {name} (default)")),
        row(name, "")
    )
}

/// `-machine TYPE,help`.
fn machine() -> String {
    let own = [
        ("memory-backend=ID", "the -object that is the guest's RAM"),
        (
            "aux-ram-share=on|off",
            "share RAM that no object describes with a successor (default on)",
        ),
        ("memfd-alloc=on|off", "older name of aux-ram-share"),
        ("accel=kvm", "the accelerator"),
    ];
    let fixed = FIXED.map(|(key, only, why)| row(&format!("{key}={only}"), why));
    list("machine", &own) + &fixed.concat()
}

/// `-device help`.
pub fn devices<'a>(types: impl IntoIterator<Item = &'a DeviceType>) -> String {
    let mut text = String::from("Devices (-device NAME,help lists the properties of one):\n");
    for kind in types {
        let (name, bus, description) = (&kind.name, kind.bus.as_str(), &kind.description);
        let _ = writeln!(text, "  {name:<22} {bus:<9} {description}");
        for child in kind.children() {
            let _ = writeln!(
                text,
                "  {:<22} {:<9} {}",
                child.name, "child", child.description
            );
        }
    }
    text
}

/// `-device NAME,help`.
pub fn device(kind: &DeviceType) -> String {
    let (name, bus, description) = (&kind.name, kind.bus.as_str(), &kind.description);
    format!("{name}: {description} (bus class {bus})\n") + &properties(&kind.properties)
}

/// `-device NAME,help` of what sits on a `parent`.
pub fn child(parent: &DeviceType, kind: &ChildType) -> String {
    let (name, description) = (&kind.name, &kind.description);
    let bus = parent.child_bus.as_ref().map_or("", |bus| &bus.name);
    let title = format!(
        "{name}: {description} (on the {bus} of a {})\n",
        parent.name
    );
    title + &properties(&kind.properties)
}

fn properties(properties: &[Property]) -> String {
    let row = |property: &Property| {
        let said = format!("{}={}", property.name, property.kind.describe());
        format!("  {said:<34} {}\n", sentence(property))
    };
    properties.iter().map(row).collect()
}

fn sentence(property: &Property) -> String {
    match (&property.default, property.required) {
        (Some(default), _) => format!("{} (default {default})", property.help),
        (None, true) => format!("{} (required)", property.help),
        (None, false) => property.help.clone(),
    }
}

/// An option with its other names and its value: `-machine, -M VALUE`.
pub(super) fn spellings(option: &Opt) -> String {
    let mut text = format!("-{}", option.name);
    for alias in option.aliases {
        let _ = write!(text, ", -{alias}");
    }
    if let Some(value) = option.value {
        let _ = write!(text, " {value}");
    }
    text
}

/// `text` in indented lines.
pub(super) fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut column = usize::MAX;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        // The first word has no line yet to go on.
        if column.saturating_add(1 + length) > WIDTH {
            if !lines.is_empty() {
                lines.push('\n');
            }
            lines.push_str("       ");
            column = 7;
        }
        lines.push(' ');
        lines.push_str(word);
        column += 1 + length;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use baton_plugin_api::{BusClass, PropertyKind};

    use super::*;

    #[test]
    fn help_shows_options_as_they_are_written() {
        let text = usage();
        assert!(text.contains("\n-machine, -M [type=]NAME"), "{text}");
        assert!(
            text.contains("\n-S\n        Do not start the guest"),
            "{text}"
        );
        assert!(!text.contains(" --"), "{text}");
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
    }

    #[test]
    fn a_device_type_is_shown_with_its_properties() {
        let mut kind = DeviceType::new("virtio-blk-pci", BusClass::Virtio, "a disk");
        kind.properties = vec![
            Property::new("drive", PropertyKind::Drive, "the image").required(),
            Property::uint("num-queues", 1, 8, 1, "queues"),
        ];
        assert_eq!(
            device(&kind),
            "virtio-blk-pci: a disk (bus class virtio)\n  \
             drive=<id of a -drive>             the image (required)\n  \
             num-queues=<uint 1..=8>            queues (default 1)\n"
        );
        assert!(devices([&kind]).contains("  virtio-blk-pci         virtio    a disk\n"));
    }
}
