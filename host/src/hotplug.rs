//! Devices that an operator plugs into and unplugs from a VM, whatever it is doing.

use std::sync::Arc;

use baton_migration::{HostError, Mode, error_chain};
use baton_plugin_api::{BusClass, DeviceType, Drive, Object};
use serde_json::json;

use crate::blockers;
use crate::chardev::Chardev;
use crate::cli::children::{self, Seat};
use crate::cli::{Backends, DeviceOption, Options};
use crate::machine::pci::PciAddress;
use crate::machine::{Arrival, Machine, MachineDevice, Wanted, plan};
use crate::plugin::RegistryError;
use crate::runstate::RunState;
use crate::vm::{Deferred, State, Vm};

/// Why a device does not come or go; the texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// There is none of that id.
    #[error("Device '{0}' not found")]
    NotFound(String),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl From<String> for PlugError {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl From<HostError> for PlugError {
    fn from(e: HostError) -> Self {
        Self::Other(error_chain(&*e))
    }
}

/// A bus on which devices stay for as long as the machine is there.
fn fixed_bus(bus: &str) -> PlugError {
    format!("Bus '{bus}' does not support hotplugging").into()
}

impl Vm {
    /// The QMP command `device_add`: a device comes, and a guest that was started is told of it.
    pub fn device_add(&self, option: &DeviceOption) -> Result<(), PlugError> {
        let mut state = self.state();
        if state.migrating {
            return Err("device_add not allowed while migrating".to_owned().into());
        }
        self.remove_ejected_from(&mut state);
        let registry = self.registry();
        if let Some(seat) = children::find(&state.devices, option, &registry)? {
            self.check_id(&state, option)?;
            return self.attach(&mut state, option, &seat);
        }
        let (plugin, device_type) = registry.device(&option.driver).map_err(|e| match e {
            RegistryError::Unknown { name, nearest } => format!(
                "'{name}' is not a valid device model name{}",
                nearest.map_or_else(String::new, |name| format!("; did you mean '{name}'?"))
            ),
            other => other.to_string(),
        })?;
        if device_type.bus == BusClass::Platform {
            return Err(fixed_bus(device_type.bus.as_str()));
        }
        self.check_id(&state, option)?;
        check_place(&state, device_type, option)?;
        // The guest is in another process, and so is what the device has open.
        let waits = state.runstate == RunState::InMigrate;
        let (drives, objects) = (state.drives(&self.options), state.objects(&self.options));
        let handed_over = match &state.deferred {
            Some(Deferred::Transfer(handover)) => Some(Arc::clone(handover.fds())),
            _ => None,
        };
        let restored = waits.then_some((Mode::CprTransfer, handed_over));
        let Some(machine) = &mut state.machine else {
            return self.announce(&mut state, option);
        };
        let chardevs = self.chardevs.configs();
        let mut backends = backends(&self.options, machine, (&drives, &chardevs, &objects));
        let config = backends
            .configure(device_type, option)
            .map_err(|e| e.reason)?;
        let arrival = Arrival {
            plugin,
            device_type,
            config,
            option,
            restored,
        };
        let device = machine.plug(arrival)?;
        let (id, at) = (device.id().to_owned(), device.at());
        if let Err(e) = blockers::check_device(&self.options, machine, &id) {
            machine.unplug(|device| device.id() == id);
            return Err(e.into());
        }
        if state.runstate.is_running()
            && let Some(machine) = &state.machine
        {
            machine.start_device(&id);
        }
        state.note_devices();
        match (state.runstate, &state.machine, at) {
            // It finds the device where it boots, and so does who gives BARs their addresses.
            (RunState::Prelaunch, ..) => state.unbooted = true,
            (RunState::InMigrate, ..) => {}
            (_, Some(machine), Some(at)) => machine.hotplug().plugged(at),
            _ => {}
        }
        Ok(())
    }

    /// Something comes to sit on the bus of a device.
    fn attach(
        &self,
        state: &mut State,
        option: &DeviceOption,
        seat: &Seat<'_>,
    ) -> Result<(), PlugError> {
        let (drives, objects) = (state.drives(&self.options), state.objects(&self.options));
        let runs = state.runstate.is_running();
        let Some(machine) = &mut state.machine else {
            if state.runstate != RunState::InMigrate {
                return Err(no_machine());
            }
            state.devices[seat.parent].children.push(option.clone());
            let planned = self.plan(state);
            if planned.is_err() {
                state.devices[seat.parent].children.pop();
            }
            return planned.map_err(PlugError::from);
        };
        let chardevs = self.chardevs.configs();
        let mut backends = backends(&self.options, machine, (&drives, &chardevs, &objects));
        let child = backends.configure_child(seat.kind, option);
        let child = child.map_err(|e| e.reason)?;
        let parent = machine.devices()[seat.parent].id().to_owned();
        machine.attach(&parent, child, option.clone(), runs)?;
        state.note_devices();
        Ok(())
    }

    /// Without a machine: notes the device for the one that is built when its guest comes.
    fn announce(&self, state: &mut State, option: &DeviceOption) -> Result<(), PlugError> {
        if state.runstate != RunState::InMigrate {
            return Err(no_machine());
        }
        state.devices.push(option.clone());
        let planned = self.plan(state);
        if planned.is_err() {
            state.devices.pop();
        }
        planned.map_err(PlugError::from)
    }

    /// Whether the machine that is built later can have what it is to have.
    pub(crate) fn plan(&self, state: &State) -> Result<(), HostError> {
        let wanted = Wanted {
            devices: &state.devices,
            drives: &state.drives(&self.options),
            objects: &state.objects(&self.options),
        };
        plan(&self.options, wanted, &self.registry()).map(drop)
    }

    fn check_id(&self, state: &State, option: &DeviceOption) -> Result<(), PlugError> {
        let Some(id) = option.id.as_ref() else {
            return Ok(());
        };
        let said = state.devices.iter().flat_map(DeviceOption::family);
        let mut said = said.filter_map(|device| device.id.as_ref());
        let made = state.machine.as_ref().and_then(|m| m.device(id.as_str()));
        match made.is_some() || said.any(|other| other == id) {
            true => Err(format!("Duplicate device ID '{id}'").into()),
            false => Ok(()),
        }
    }

    /// The QMP command `device_del`: a guest that was started is asked to let go of the device, which
    /// goes once it has. Of a guest that was not, it goes now.
    pub fn device_del(&self, id: &str) -> Result<(), PlugError> {
        let mut state = self.state();
        if state.migrating {
            return Err("device_del not allowed while migrating".to_owned().into());
        }
        self.remove_ejected_from(&mut state);
        let runstate = state.runstate;
        let Some(machine) = &mut state.machine else {
            let named = |device: &DeviceOption| {
                device.hotplugged && device.id.as_ref().is_some_and(|own| own.as_str() == id)
            };
            if !remove(&mut state.devices, named) {
                return Err(PlugError::NotFound(id.to_owned()));
            }
            self.emit_deleted(id, true);
            return Ok(());
        };
        if let Some(said) = machine.child(id).map(|(_, said)| said.id.is_some()) {
            machine.detach(id, runstate.is_running())?;
            state.note_devices();
            self.emit_deleted(id, said);
            return Ok(());
        }
        let device = machine
            .device(id)
            .ok_or_else(|| PlugError::NotFound(id.to_owned()))?;
        let at = device
            .at()
            .ok_or_else(|| fixed_bus(device.device_type().bus.as_str()))?;
        if matches!(runstate, RunState::Prelaunch | RunState::InMigrate) {
            let gone = machine.unplug(|device| device.id() == id);
            self.removed(&mut state, &gone);
            state.unbooted |= runstate == RunState::Prelaunch;
            return Ok(());
        }
        machine.hotplug().request_unplug(at);
        Ok(())
    }

    /// Removes what the guest has ejected.
    pub fn remove_ejected(&self) {
        self.remove_ejected_from(&mut self.state());
    }

    /// The same. What is being handed over stays as it is; the end of the migration comes back to it.
    pub(crate) fn remove_ejected_from(&self, state: &mut State) {
        let leaving = matches!(
            state.runstate,
            RunState::FinishMigrate | RunState::PostMigrate
        );
        let (false, Some(machine)) = (state.migrating || leaving, &mut state.machine) else {
            return;
        };
        let slots = machine.ejected_slots();
        if slots.is_empty() {
            return;
        }
        let leaves =
            |device: &MachineDevice| device.at().is_some_and(|at| slots.contains(&at.slot));
        let gone = machine.unplug(leaves);
        self.removed(state, &gone);
    }

    /// The guest could not let go of what is in a slot.
    pub fn unplug_refused(&self, slot: u8) {
        let state = self.state();
        let machine = state.machine.iter();
        for device in machine.flat_map(Machine::devices) {
            if device.at().is_some_and(|at| at.slot == slot) {
                self.emit_about("DEVICE_UNPLUG_GUEST_ERROR", device.id(), named(device));
            }
        }
    }

    /// Devices have gone.
    fn removed(&self, state: &mut State, gone: &[MachineDevice]) {
        state.note_devices();
        for device in gone {
            self.emit_deleted(device.id(), named(device));
        }
    }

    fn emit_deleted(&self, id: &str, named: bool) {
        self.emit_about("DEVICE_DELETED", id, named);
    }

    fn emit_about(&self, event: &str, id: &str, named: bool) {
        let data = match named {
            true => json!({ "device": id, "path": format!("/machine/peripheral/{id}") }),
            false => json!({ "path": format!("/machine/peripheral-anon/{id}") }),
        };
        self.events.emit(event, Some(data));
    }
}

fn no_machine() -> PlugError {
    "There is no machine in this process".to_owned().into()
}

/// What the devices of `machine` are connected to, and what of it is free.
fn backends<'a>(
    options: &'a Options,
    machine: &Machine,
    (drives, chardevs, objects): (&'a [Drive], &'a [Chardev], &'a [Object]),
) -> Backends<'a> {
    let backends = Backends::new(drives, chardevs).with_netdevs(&options.netdevs);
    let mut backends = backends.with_objects(objects);
    for device in machine.devices() {
        // It is created already; this notes what it is connected to.
        let _ = backends.configure(device.device_type(), device.option());
    }
    backends
}

/// Removes the first of these devices, or of what sits on them, that is `wanted`; false if none is.
fn remove(devices: &mut Vec<DeviceOption>, wanted: impl Fn(&DeviceOption) -> bool + Copy) -> bool {
    if let Some(at) = devices.iter().position(wanted) {
        devices.remove(at);
        return true;
    }
    devices
        .iter_mut()
        .any(|device| remove(&mut device.children, wanted))
}

/// Whether its id was said.
fn named(device: &MachineDevice) -> bool {
    device.option().id.is_some()
}

/// Refuses a place that a guest that runs could not find a device in.
fn check_place(
    state: &State,
    device_type: &DeviceType,
    option: &DeviceOption,
) -> Result<(), PlugError> {
    let Some(at) = option.address else {
        return Ok(());
    };
    let (slot, function) = (at.slot, at.function);
    let devices = || state.machine.iter().flat_map(Machine::devices);
    let what = |device: &MachineDevice| format!("{},id={}", device.device_type().name, device.id());
    if let Some(other) = devices().find(|device| device.at() == Some(at)) {
        return Err(format!(
            "PCI: slot {slot} function {function} not available for {}, in use by {}",
            device_type.name,
            what(other)
        )
        .into());
    }
    if matches!(state.runstate, RunState::Prelaunch | RunState::InMigrate) || function == 0 {
        return Ok(());
    }
    let first = PciAddress { slot, function: 0 };
    Err(match devices().find(|device| device.at() == Some(first)) {
        Some(other) => format!(
            "PCI: slot {slot} function 0 already occupied by {}, new func {} cannot be exposed to \
             guest.",
            what(other),
            device_type.name
        ),
        None => format!(
            "PCI: slot {slot} has no function 0, without which a guest does not see function \
             {function}; use addr={slot:x}"
        ),
    }
    .into())
}
