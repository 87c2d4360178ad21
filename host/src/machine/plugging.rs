//! Devices that come to and leave a machine that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_migration::fds::FdTable;
use baton_migration::{HostError, Mode};
use baton_plugin_api::{Child, Config, DeviceType};

use super::devices::{Creation, Slots};
use super::hotplug::{Hotplug, slots};
use super::{Machine, MachineDevice};
use crate::cli::DeviceOption;
use crate::plugin::Plugin;

/// A device that is to come.
pub struct Arrival<'a> {
    /// Its plugin and type.
    pub plugin: &'a Plugin,
    /// As above.
    pub device_type: &'a DeviceType,
    /// Checked against the type.
    pub config: Config,
    /// What asks for it.
    pub option: &'a DeviceOption,
    /// How it comes, if its guest is in another process: with what was handed over for it.
    pub restored: Option<(Mode, Option<Arc<FdTable>>)>,
}

impl Machine {
    /// Adds a device, which does not run yet, and of which the guest is not told.
    pub fn plug(&mut self, arrival: Arrival<'_>) -> Result<&MachineDevice, HostError> {
        let (restoring, preserved) = arrival.restored.unzip();
        let mut config = arrival.config;
        config.restoring = restoring;
        let creation = Creation {
            plugin: arrival.plugin,
            device_type: arrival.device_type,
            config,
            option: arrival.option,
            preserved: preserved.flatten(),
        };
        let mut slots = Slots {
            surroundings: &self.around,
            pci: &self.pci,
            chardevs: &self.chardevs,
            // It is on PCI, so that its place is its name.
            unnamed: &mut BTreeMap::new(),
        };
        let device = MachineDevice::create(creation, &mut slots)?;
        self.changed = true;
        Ok(self.devices.push_mut(device))
    }

    /// Lets a device that came by [`Self::plug`] run, beside the guest that runs.
    pub fn start_device(&self, id: &str) {
        if let Some(device) = self.device(id)
            && let Err(e) = device.start()
        {
            self.around.reports.failures.add(device.id(), &e.message);
        }
    }

    /// Something comes to sit on the bus of device `parent`.
    pub fn attach(
        &mut self,
        parent: &str,
        child: Child,
        option: DeviceOption,
        runs: bool,
    ) -> Result<(), HostError> {
        let device = self.devices.iter_mut().find(|d| d.id() == parent);
        let device = device.ok_or_else(|| format!("There is no device '{parent}'"))?;
        device.attach(child, option, runs)?;
        self.changed = true;
        Ok(())
    }

    /// The child `id` of a device leaves; false if there is none.
    pub fn detach(&mut self, id: &str, runs: bool) -> Result<bool, HostError> {
        let has = |device: &&mut MachineDevice| device.children().any(|(c, _)| c.config.id == id);
        let Some(device) = self.devices.iter_mut().find(has) else {
            return Ok(false);
        };
        device.detach(id, runs)?;
        self.changed = true;
        self.around.reports.opened.forget(id);
        Ok(true)
    }

    /// Takes devices away, and what they had with them. A platform device stays.
    pub fn unplug(&mut self, leaves: impl Fn(&MachineDevice) -> bool) -> Vec<MachineDevice> {
        let leaves = |device: &mut MachineDevice| device.at().is_some() && leaves(device);
        let gone: Vec<_> = self.devices.extract_if(.., leaves).collect();
        self.changed |= !gone.is_empty();
        for device in &gone {
            if let Some(at) = device.at() {
                self.pci.remove(at);
                device.unplug();
                self.around.reports.failures.remove(device.id());
                for (child, _) in device.children() {
                    self.around.reports.opened.forget(&child.config.id);
                }
                if !self
                    .devices
                    .iter()
                    .any(|other| other.at().is_some_and(|other| other.slot == at.slot))
                {
                    self.hotplug.unplugged(at.slot);
                }
            }
        }
        gone
    }

    /// The slots that the guest has ejected and whose devices are still there.
    pub fn ejected_slots(&self) -> Vec<u8> {
        slots(self.hotplug.ejected()).collect()
    }

    /// The device `id`.
    pub fn device(&self, id: &str) -> Option<&MachineDevice> {
        self.devices.iter().find(|device| device.id() == id)
    }

    /// What sits on the bus of a device under the id `id`, and what asked for it.
    pub fn child(&self, id: &str) -> Option<(&Child, &DeviceOption)> {
        let mut all = self.devices.iter().flat_map(MachineDevice::children);
        all.find(|(child, _)| child.config.id == id)
    }

    /// What tells the guest of devices that come and go.
    pub fn hotplug(&self) -> &Hotplug {
        &self.hotplug
    }
}
