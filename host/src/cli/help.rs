//! What the options that only print something print.

use std::fmt::Write;

use baton_plugin_api::{DeviceType, Property};

use super::completions;
use super::machine::MachineType;
use super::object::KINDS;
use super::table::{GROUPS, Opt};

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

/// `-machine help`.
pub fn machine() -> String {
    let name = MachineType::default().as_str();
    format!(
        "Machine types:\n  baton      the newest, now {name} (default)\n  {name}\n\
         Properties:\n  \
         memory-backend=ID      the -object that is the guest's RAM\n  \
         aux-ram-share=on|off   share RAM that no object describes with a successor (default on)\n  \
         memfd-alloc=on|off     older name of aux-ram-share\n  \
         accel=kvm\n"
    )
}

/// `-object help`.
pub fn object() -> String {
    let mut text = String::from("Objects, each with an id=ID:\n");
    for (kind, properties) in KINDS {
        let _ = writeln!(text, "{kind}");
        for (property, help) in properties {
            let _ = writeln!(text, "  {property:<22} {help}");
        }
    }
    text
}

/// `-device help`.
pub fn devices<'a>(types: impl IntoIterator<Item = &'a DeviceType>) -> String {
    let mut text = String::from("Devices (-device NAME,help lists the properties of one):\n");
    for kind in types {
        let (name, bus, description) = (&kind.name, kind.bus.as_str(), &kind.description);
        let _ = writeln!(text, "  {name:<22} {bus:<9} {description}");
    }
    text
}

/// `-device NAME,help`.
pub fn device(kind: &DeviceType) -> String {
    let (name, bus, description) = (&kind.name, kind.bus.as_str(), &kind.description);
    let mut text = format!("{name}: {description} (bus class {bus})\n");
    for property in &kind.properties {
        let said = format!("{}={}", property.name, property.kind.describe());
        let _ = writeln!(text, "  {said:<34} {}", sentence(property));
    }
    text
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
fn wrapped(text: &str) -> String {
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
