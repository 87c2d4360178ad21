//! Which devices a guest has and where, so that a machine with others is refused by the device's name
//! before anything is loaded, and one with the same devices in other places at all.

use std::collections::BTreeMap;

use baton_migration::HostError;
use baton_migration::stream::{SectionWriter, StateImage, section_name};
use baton_plugin_api::Section;
use serde::{Deserialize, Serialize};

use super::sections::MACHINE;
use super::{Machine, MachineDevice};

/// Of section `globalstate`: of a machine whose devices have come and gone since it was built, since
/// its command line alone does not tell of them. A preview always has it.
pub(super) const SUBSECTION: &str = "devices";

/// The devices of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    devices: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: String,
    driver: String,
    place: String,
}

impl Inventory {
    fn of(devices: &[MachineDevice]) -> Self {
        let item = |device: &MachineDevice| Item {
            id: device.id().to_owned(),
            driver: device.device_type().name.clone(),
            place: device.place(),
        };
        Self {
            devices: devices.iter().map(item).collect(),
        }
    }

    fn section() -> Section {
        Section::new(&format!("globalstate/{SUBSECTION}"), 1, 1)
    }

    /// Takes it out of a state or a preview, if it is there.
    pub fn take(state: &mut StateImage) -> Result<Option<Self>, HostError> {
        let section = Self::section();
        let name = section_name(MACHINE, &section.name);
        let Some(found) = state.take_if_present(&name, 0) else {
            return Ok(None);
        };
        found.check_version(&(section.minimum_version..=section.version))?;
        Ok(Some(found.decode()?))
    }

    /// An error that names the first device in which `self`, the guest's, differs from `ours`.
    fn compare(&self, ours: &Self) -> Result<(), String> {
        let by_id = |all: &Self| -> BTreeMap<String, Item> {
            let items = all.devices.iter().cloned();
            items.map(|item| (item.id.clone(), item)).collect()
        };
        let (theirs, ours) = (by_id(self), by_id(ours));
        for (id, item) in &theirs {
            let Item { driver, place, .. } = item;
            match ours.get(id) {
                None => return Err(missing(&format!("'{id}' ({driver} at {place})"))),
                Some(own) if own.driver != *driver => {
                    return Err(format!(
                        "Device '{id}' is a {driver} of the guest and a {} here; start this machine \
                         with the source's devices",
                        own.driver
                    ));
                }
                Some(own) if own.place != *place => {
                    return Err(format!(
                        "Device '{id}' is at {place} for the guest and at {} here; say addr= as \
                         query-devices of the source does",
                        own.place
                    ));
                }
                Some(_) => {}
            }
        }
        match ours.values().find(|item| !theirs.contains_key(&item.id)) {
            Some(Item { id, driver, .. }) => Err(extra(id, driver)),
            None => Ok(()),
        }
    }
}

fn missing(device: &str) -> String {
    format!(
        "Device {device} of the guest is not in this machine; add it with -device, or after \
         -incoming defer with device_add: query-devices of the source has its arguments"
    )
}

fn extra(id: &str, driver: &str) -> String {
    format!("Device '{id}' ({driver}) of this machine is none of the guest's; leave it out")
}

impl Machine {
    /// Writes which devices there are.
    pub(super) fn save_inventory(&self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        let section = Inventory::section();
        let name = section_name(MACHINE, &section.name);
        Ok(out.put(&name, 0, section.version, &Inventory::of(&self.devices))?)
    }

    /// Refuses a guest with other devices, or with devices in other places.
    pub fn check_inventory(&self, theirs: &Inventory) -> Result<(), HostError> {
        Ok(theirs.compare(&Inventory::of(&self.devices))?)
    }

    /// The same for a state, which may say no more of its devices than their names.
    pub(super) fn check_devices_of(&self, state: &StateImage) -> Result<(), String> {
        let owner = |name: &str| name.split_once('/').map(|(owner, _)| owner.to_owned());
        let theirs: Vec<_> = state.sections().filter_map(|s| owner(&s.name)).collect();
        let foreign = |id: &&String| *id != MACHINE && self.device(id).is_none();
        if let Some(id) = theirs.iter().find(foreign) {
            return Err(missing(&format!("'{id}'")));
        }
        let absent = |device: &&MachineDevice| {
            !device.loads().is_empty() && !theirs.iter().any(|id| id == device.id())
        };
        match self.devices.iter().find(absent) {
            Some(device) => Err(extra(device.id(), &device.device_type().name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(devices: &[(&str, &str, &str)]) -> Inventory {
        let item = |&(id, driver, place): &(&str, &str, &str)| Item {
            id: id.into(),
            driver: driver.into(),
            place: place.into(),
        };
        Inventory {
            devices: devices.iter().map(item).collect(),
        }
    }

    #[test]
    fn every_difference_is_told_by_the_devices_name() {
        let guest = inventory(&[("d0", "virtio-blk-pci", "a"), ("r0", "virtio-rng-pci", "b")]);
        assert_eq!(guest.compare(&guest), Ok(()));
        for (ours, text) in [
            (
                inventory(&[("r0", "virtio-rng-pci", "b")]),
                "Device 'd0' (virtio-blk-pci at a) of the guest is not in this machine",
            ),
            (
                inventory(&[("d0", "virtio-blk-pci", "c"), ("r0", "virtio-rng-pci", "b")]),
                "Device 'd0' is at a for the guest and at c here",
            ),
            (
                inventory(&[("d0", "virtio-rng-pci", "a"), ("r0", "virtio-rng-pci", "b")]),
                "Device 'd0' is a virtio-blk-pci of the guest and a virtio-rng-pci here",
            ),
            (
                inventory(&[
                    ("d0", "virtio-blk-pci", "a"),
                    ("r0", "virtio-rng-pci", "b"),
                    ("x", "edu", "d"),
                ]),
                "Device 'x' (edu) of this machine is none of the guest's",
            ),
        ] {
            let error = guest.compare(&ours).unwrap_err();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
