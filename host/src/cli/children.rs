//! Which device a `-device` sits on, if it is one for the bus of another device.

use baton_plugin_api::ChildType;

use super::device::{BUS, DeviceOption};
use super::error::CliError;
use crate::plugin::Registry;

/// Where something sits.
pub struct Seat<'a> {
    /// The place of its parent among the devices.
    pub parent: usize,
    /// What it is.
    pub kind: &'a ChildType,
}

/// These devices with each child among the [`children`](DeviceOption::children) of the device that it
/// sits on, which was said before it.
pub fn seat(devices: &[DeviceOption], registry: &Registry) -> Result<Vec<DeviceOption>, CliError> {
    let mut seated: Vec<DeviceOption> = Vec::new();
    for device in devices {
        let seat = find(&seated, device, registry).map_err(|reason| device.error(reason))?;
        match seat {
            Some(seat) => seated[seat.parent].children.push(device.clone()),
            None => seated.push(device.clone()),
        }
    }
    Ok(seated)
}

/// Where `option` sits among `devices`; nothing if it is no child.
pub fn find<'a>(
    devices: &[DeviceOption],
    option: &DeviceOption,
    registry: &'a Registry,
) -> Result<Option<Seat<'a>>, String> {
    let Some((parent_type, kind)) = registry.child(&option.driver) else {
        return Ok(None);
    };
    let bus = parent_type.child_bus.as_ref().map_or("", |bus| &bus.name);
    let fits = |device: &&DeviceOption| device.driver == parent_type.name;
    let named = |device: &DeviceOption| option.bus.as_ref().is_none_or(|b| *b == name(device, bus));
    let parent = devices.iter().position(|d| fits(&d) && named(d));
    if let Some(parent) = parent {
        return Ok(Some(Seat { parent, kind }));
    }
    let known = devices.iter().filter(fits).map(|d| name(d, bus));
    let known: Vec<_> = known.collect();
    Err(match (&option.bus, known.is_empty()) {
        (Some(said), _) if said == BUS => {
            format!(
                "Device '{}' can't go on PCI bus; it sits on a {bus}",
                kind.name
            )
        }
        (Some(said), false) => format!("Bus '{said}' not found; there is {}", known.join(", ")),
        _ => format!(
            "No '{bus}' bus found for device '{}'; add a {} before it",
            kind.name, parent_type.name
        ),
    })
}

/// The name of a device's own bus, of this kind. As in QEMU, the kind's if the device has no id.
pub fn name(device: &DeviceOption, bus: &str) -> String {
    let owner = device.id.as_ref().map_or(bus, |id| id.as_str());
    format!("{owner}.0")
}
