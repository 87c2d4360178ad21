//! Which numbers and names ports have. The texts of errors are QEMU's where it has one.

use std::collections::BTreeMap;

use baton_plugin_api::{Child, ChildType, Error, Property, PropertyKind, Result};

use crate::port::Port;

pub(crate) const PORT: &str = "virtserialport";
pub(crate) const CONSOLE: &str = "virtconsole";

/// The longest name of a port, in bytes.
const NAME_MAX: u32 = 255;

/// What may sit on the bus of ports.
pub(crate) fn types() -> Vec<ChildType> {
    let kind = |name: &str, description: &str, first| ChildType {
        name: name.into(),
        description: description.into(),
        properties: vec![
            Property::new("chardev", PropertyKind::Chardev, "Its other end"),
            Property::new(
                "name",
                PropertyKind::String { max_len: NAME_MAX },
                "What the guest finds it by",
            ),
            Property::new(
                "nr",
                PropertyKind::Uint {
                    min: first,
                    max: u64::from(crate::device::PORTS_MAX) - 1,
                },
                "Its number (default: the first free one)",
            ),
        ],
    };
    vec![
        kind(PORT, "Port for a program in the guest", 1),
        kind(CONSOLE, "Console of the guest", 0),
    ]
}

/// A port for `child` beside `ports`, of which there are at most `most`.
pub(crate) fn seat(ports: &BTreeMap<u32, Port>, child: &Child, most: u32) -> Result<Port> {
    let Child {
        device_type,
        config,
    } = child;
    let refused = |what: String| Error::invalid(format!("'{}': {what}", config.id));
    let console = device_type == CONSOLE;
    let name = config.string_if_said("name")?.unwrap_or_default();
    if !name.is_empty() && ports.values().any(|port| port.name == name) {
        let text = format!("virtio-serial-bus: A port already exists by name {name}");
        return Err(refused(text));
    }
    // Port 0 is what a driver uses that knows of no others, and that is a console.
    let first = u32::from(!console);
    let said = config.uint_if_said("nr")?.map(|nr| nr as u32);
    let number = match said {
        Some(nr) if nr >= most => {
            return Err(refused(format!(
                "virtio-serial-bus: Out-of-range port id specified, max. allowed: {}; say more \
                 max_ports",
                most - 1
            )));
        }
        Some(nr) if ports.contains_key(&nr) => {
            return Err(refused(format!(
                "virtio-serial-bus: A port already exists at id {nr}"
            )));
        }
        Some(nr) => nr,
        None => (first..most)
            .find(|nr| !ports.contains_key(nr))
            .ok_or_else(|| {
                refused(
                    "virtio-serial-bus: Maximum port limit for this device reached; say more \
                     max_ports, or add a virtio-serial-pci"
                        .into(),
                )
            })?,
    };
    Ok(Port {
        id: config.id.clone(),
        number,
        fixed: said.is_some(),
        name: name.to_owned(),
        console,
        chardev: config.string_if_said("chardev")?.map(str::to_owned),
        ..Port::default()
    })
}
