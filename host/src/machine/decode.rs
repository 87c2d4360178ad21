//! The host's sections without a machine: for the state files that are kept, and for fuzzing.

use baton_migration::stream::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::controllers::{ClockState, ControllersState};
use super::hotplug::HotplugState;
use super::pci::ConfigPortsState;
use super::power::{PowerState, SleepState};
use super::{GlobalState, HostTime, Images, Inventory, virtio};
use crate::vcpu::VcpuState;

/// Decodes the payload of one of the host's sections, checks what can be checked without KVM, and
/// gives the payload that would be written. `None` if there is no such section.
pub fn again(section: &str, payload: &[u8]) -> Option<Result<Vec<u8>, String>> {
    Some(match section {
        "globalstate" => value::<GlobalState>(payload, |_| Ok(())),
        "globalstate/host-time" => value::<HostTime>(payload, |_| Ok(())),
        "globalstate/devices" => value::<Inventory>(payload, |_| Ok(())),
        "globalstate/images" => value::<Images>(payload, |_| Ok(())),
        "cpu" => value::<VcpuState>(payload, |_| Ok(())),
        "irqchip" => value::<ControllersState>(payload, |_| Ok(())),
        "kvmclock" => value::<ClockState>(payload, |_| Ok(())),
        "acpi-pm" => value::<PowerState>(payload, PowerState::check),
        "acpi-pm/pci-hotplug" => value::<HotplugState>(payload, HotplugState::check),
        "acpi-pm/sleep" => value::<SleepState>(payload, SleepState::check),
        "pci-config-ports" => value::<ConfigPortsState>(payload, |_| Ok(())),
        "virtio-pci" => virtio::again(payload),
        _ => return None,
    })
}

fn value<T: Serialize + DeserializeOwned>(
    payload: &[u8],
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<Vec<u8>, String> {
    let value: T = decode("section", payload).map_err(|e| baton_migration::error_chain(&e))?;
    check(&value)?;
    encode("section", &value).map_err(|e| baton_migration::error_chain(&e))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use baton_migration::stream::StateImage;

    use super::*;

    /// `tests/golden/README.md` says how these files come about; that there is one of every section
    /// is a test of the test kit's.
    #[test]
    fn every_golden_file_of_the_host_loads_and_is_saved_again_as_it_was() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        let current: BTreeSet<_> = super::super::sections()
            .into_iter()
            .chain([virtio::VirtioPci::section()])
            .flat_map(|section| section.names().collect::<Vec<_>>())
            .map(|(name, versions)| (name, *versions.end()))
            .collect();
        let mut seen = BTreeSet::new();
        for folder in ["machine", "virtio-pci"] {
            for entry in golden.join(folder).read_dir().unwrap() {
                let path = entry.unwrap().path();
                let image = StateImage::read(&std::fs::read(&path).unwrap()[..]).unwrap();
                let section = image.sections().next().unwrap();
                let (_, name) = section.name.split_once('/').unwrap();
                let written = again(name, &section.payload)
                    .unwrap_or_else(|| panic!("{}: nobody loads it", path.display()))
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let key = (name.to_owned(), section.version);
                assert!(
                    written == section.payload || !current.contains(&key),
                    "{}: the layout has changed, so the version must",
                    path.display()
                );
                seen.insert(key);
            }
        }
        let unseen: Vec<_> = current.difference(&seen).collect();
        assert!(unseen.is_empty(), "There is no file of {unseen:?}");
    }
}
