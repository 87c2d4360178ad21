//! The machine's vmstate: its own sections and those of its devices.

use std::cmp::Reverse;

use baton_migration::HostError;
use baton_migration::stream::{
    Expected, Header, SectionData, SectionWriter, StateImage, section_name,
};
use baton_plugin_api::Section;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::controllers::{self, ClockState, ControllersState};
use super::pci::ConfigPortsState;
use super::power::{Power, PowerState, SleepState};
use super::{HostTime, Inventory, Machine, MachineDevice, host_time, hotplug, images, inventory};
use crate::vcpu::{self, Payload, Vcpu, VcpuState};

/// The path of the machine's own sections.
pub const MACHINE: &str = "machine";

/// What the machine as a whole was doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlobalState {
    /// QEMU's `RunState` when the migration began.
    pub runstate: String,
}

/// The machine's own sections.
pub fn sections() -> Vec<Section> {
    vec![
        global_section(),
        vcpu::section(),
        controllers::controllers_section(),
        controllers::clock_section(),
        Power::section(),
        ports_section(),
    ]
}

fn global_section() -> Section {
    Section::new("globalstate", 1, 1)
        .subsection(host_time::SUBSECTION, 1, 1)
        .subsection(inventory::SUBSECTION, 1, 1)
        .subsection(images::SUBSECTION, 1, 1)
}

/// A subsection of [`Power::section`].
fn hotplug_section() -> Section {
    let name = format!("{}/{}", Power::section().name, hotplug::SUBSECTION);
    Section::new(&name, 1, 1)
}

fn ports_section() -> Section {
    Section::new("pci-config-ports", 1, 1)
}

impl Machine {
    /// Writes what a target can prepare itself with while the guest still runs here.
    pub fn preview(&self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        self.save_inventory(out)?;
        self.devices
            .iter()
            .try_for_each(|device| device.save_own(out))
    }

    /// Takes what a preview has. Whatever of it turns out different later is loaded again.
    pub fn warm_up(&self, mut preview: StateImage) -> Result<(), HostError> {
        self.routing_once(|| {
            self.devices
                .iter()
                .try_for_each(|device| device.warm_up(&mut preview))
        })
    }

    /// Saves and loads the state of a machine that was just built, so that code, memory and the
    /// kernel's structures are there when the guest's own state comes. It shows as well, while the
    /// guest still runs elsewhere, that what is saved here can be loaded.
    pub fn rehearse(&self, header: &Header) -> Result<(), HostError> {
        let global = GlobalState {
            runstate: String::new(),
        };
        let mut stream = Vec::new();
        let mut out = SectionWriter::new(&mut stream, header)?;
        self.save(&global, &mut out)?;
        out.finish()?;
        let mut image = StateImage::read(&stream[..])?;
        self.load(&mut image)?;
        Ok(())
    }

    /// Writes the state of the stopped machine.
    pub fn save(&self, global: &GlobalState, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        put(out, &global_section(), 0, global)?;
        if self.changed {
            self.save_inventory(out)?;
        }
        if self.stopped.len() == self.vcpus.len() {
            save_all(&self.stopped, out)?;
        } else {
            save_all(&save_vcpus(&self.vcpus)?, out)?;
        }
        let vm = &self.around.vm;
        put(
            out,
            &controllers::controllers_section(),
            0,
            &ControllersState::save(vm)?,
        )?;
        put(
            out,
            &controllers::clock_section(),
            0,
            &ClockState::save(vm)?,
        )?;
        put(out, &Power::section(), 0, &self.power.state())?;
        if let Some(pending) = self.hotplug.state() {
            put(out, &hotplug_section(), 0, &pending)?;
        }
        if let Some(sleep) = self.power.sleep_state() {
            put(out, &Power::sleep_section(), 0, &sleep)?;
        }
        put(out, &ports_section(), 0, &self.ports.state())?;
        self.devices.iter().try_for_each(|device| device.save(out))
    }

    /// Makes times in `state`, which was kept, those of the host as it is now.
    pub fn adapt_clocks(&self, state: &mut StateImage) -> Result<(), HostError> {
        let Some(shift) = HostTime::now().since(state)? else {
            return Ok(());
        };
        tracing::info!("the host was started anew since the guest was kept");
        for id in 0..self.vcpus.len() as u32 {
            shift.apply(
                state,
                &vcpu::section(),
                id,
                |shift, vcpu: &mut VcpuState| {
                    vcpu.shift_tsc(|offset, khz| shift.tsc_offset(offset, khz));
                },
            )?;
        }
        let section = controllers::clock_section();
        shift.apply(state, &section, 0, |shift, clock: &mut ClockState| {
            clock.shift(|then| shift.monotonic(then));
        })?;
        shift.apply(
            state,
            &Power::section(),
            0,
            |shift, power: &mut PowerState| {
                power.shift(|then| shift.monotonic(then));
            },
        )
    }

    /// Takes every section out of `state`, once all of it is known to be there and to fit. The
    /// vCPUs load in parallel with the devices, and the devices' sections by their priorities.
    pub fn load(&self, state: &mut StateImage) -> Result<GlobalState, HostError> {
        if let Some(theirs) = Inventory::take(state)? {
            self.check_inventory(&theirs)?;
        }
        self.check(state)?;
        let global = get(state, &global_section(), 0)?;
        let states = (0..self.vcpus.len())
            .map(|id| state.take(&section_name(MACHINE, &vcpu::section().name), id as u32))
            .collect::<Result<Vec<SectionData>, _>>()?;
        let pending = begin_load(&self.vcpus, states)?;
        let controllers: ControllersState = get(state, &controllers::controllers_section(), 0)?;
        let clock: ClockState = get(state, &controllers::clock_section(), 0)?;
        let power: PowerState = get(state, &Power::section(), 0)?;
        let sleep: Option<SleepState> = get_if_present(state, &Power::sleep_section())?;
        let ports: ConfigPortsState = get(state, &ports_section(), 0)?;
        let hotplug = get_if_present(state, &hotplug_section())?;
        self.routing_once(|| {
            by_priority(&self.devices, MachineDevice::loads)
                .into_iter()
                .try_for_each(|(device, section)| device.load(section, state))
        })?;
        self.power.load(power, sleep)?;
        self.hotplug.load(hotplug)?;
        self.ports.load(ports);
        finish_load(pending)?;
        controllers.load(&self.around.vm)?;
        self.power.restore_line();
        self.hotplug.restore_line();
        clock.load(&self.around.vm)?;
        Ok(global)
    }

    /// The sections that a state of this machine has at least: name, instance, version.
    pub fn outline(&self) -> Vec<(String, u32, u32)> {
        let mut all = Vec::new();
        for Expected {
            device_path,
            section,
            instances,
        } in self.expected(&sections())
        {
            let name = section_name(device_path, &section.name);
            all.extend((0..instances).map(|at| (name.clone(), at, section.version)));
        }
        all
    }

    /// Whether a state with these sections could be loaded, as far as that can be known from what
    /// [`Self::outline`] says of it.
    pub fn would_load(
        &self,
        outline: &[(String, u32, u32)],
        header: &Header,
    ) -> Result<(), HostError> {
        let mut image = StateImage::new(header.clone());
        for (name, instance, version) in outline {
            image.push(SectionData {
                name: name.clone(),
                instance: *instance,
                version: *version,
                payload: Vec::new(),
            })?;
        }
        self.check(&image)
    }

    /// Refuses a state that is not of this machine before any of it is loaded.
    fn check(&self, state: &StateImage) -> Result<(), HostError> {
        self.check_devices_of(state)?;
        Ok(state.check(&self.expected(&sections()))?)
    }

    /// What a state must have, of which `own` are the machine's own sections.
    fn expected<'a>(&'a self, own: &'a [Section]) -> Vec<Expected<'a>> {
        let mut expected: Vec<_> = own
            .iter()
            .map(|section| Expected {
                device_path: MACHINE,
                section,
                instances: match section.name == vcpu::section().name {
                    true => self.vcpus.len() as u32,
                    false => 1,
                },
            })
            .collect();
        for device in &self.devices {
            expected.extend(device.loads().iter().map(|section| Expected {
                device_path: device.id(),
                section,
                instances: 1,
            }));
        }
        expected
    }
}

/// The sections of all devices in the order in which they are loaded.
fn by_priority<D>(devices: &[D], sections: impl Fn(&D) -> &[Section]) -> Vec<(&D, &Section)> {
    let all = devices.iter().flat_map(|device| {
        sections(device)
            .iter()
            .map(move |section| (device, section))
    });
    let mut order: Vec<_> = all.collect();
    // Stable: those of one priority stay as they are.
    order.sort_by_key(|(_, section)| Reverse(section.priority));
    order
}

fn put<T: Serialize>(
    out: &mut SectionWriter<'_>,
    section: &Section,
    instance: u32,
    value: &T,
) -> Result<(), HostError> {
    let name = section_name(MACHINE, &section.name);
    Ok(out.put(&name, instance, section.version, value)?)
}

fn get<T: DeserializeOwned>(
    state: &mut StateImage,
    section: &Section,
    instance: u32,
) -> Result<T, HostError> {
    let name = section_name(MACHINE, &section.name);
    Ok(state.take(&name, instance)?.decode()?)
}

fn get_if_present<T: DeserializeOwned>(
    state: &mut StateImage,
    section: &Section,
) -> Result<Option<T>, HostError> {
    let name = section_name(MACHINE, &section.name);
    let found = state.take_if_present(&name, 0);
    Ok(found.map(|found| found.decode()).transpose()?)
}

fn save_all(states: &[Payload], out: &mut SectionWriter<'_>) -> Result<(), HostError> {
    let section = vcpu::section();
    let name = section_name(MACHINE, &section.name);
    for (id, state) in states.iter().enumerate() {
        out.put_raw(&name, id as u32, section.version, state)?;
    }
    Ok(())
}

/// The states of stopped vCPUs, read in parallel.
pub(super) fn save_vcpus(vcpus: &[Vcpu]) -> Result<Vec<Payload>, HostError> {
    let answers = vcpus
        .iter()
        .map(Vcpu::save)
        .collect::<Result<Vec<_>, _>>()?;
    let mut states = Vec::with_capacity(vcpus.len());
    for (id, answer) in answers.into_iter().enumerate() {
        let state = answer.recv().map_err(|_| crate::vcpu::VcpuError::Gone)?;
        states.push(state.map_err(|e| format!("vCPU {id}: {e}"))?);
    }
    Ok(states)
}

type Pending = Vec<std::sync::mpsc::Receiver<Result<(), crate::vcpu::VcpuError>>>;

fn begin_load(vcpus: &[Vcpu], states: Vec<SectionData>) -> Result<Pending, HostError> {
    vcpus
        .iter()
        .zip(states)
        .map(|(vcpu, state)| Ok(vcpu.load(state)?))
        .collect()
}

fn finish_load(pending: Pending) -> Result<(), HostError> {
    for (id, answer) in pending.into_iter().enumerate() {
        let loaded = answer.recv().map_err(|_| crate::vcpu::VcpuError::Gone)?;
        loaded.map_err(|e| format!("vCPU {id}: {e}"))?;
    }
    Ok(())
}

/// Gives stopped vCPUs their states of this build, in parallel.
pub(super) fn load_vcpus(vcpus: &[Vcpu], states: &[Payload]) -> Result<(), HostError> {
    let section = vcpu::section();
    let name = section_name(MACHINE, &section.name);
    let sections = states.iter().enumerate().map(|(id, payload)| SectionData {
        name: name.clone(),
        instance: id as u32,
        version: section.version,
        payload: payload.clone(),
    });
    finish_load(begin_load(vcpus, sections.collect())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_priority_is_loaded_first_and_the_rest_in_order() {
        let section = |name, priority| Section::new(name, 1, 1).priority(priority);
        let devices = [
            vec![section("a", 0), section("b", -1)],
            vec![section("c", 5), section("d", 0)],
            vec![section("e", 5)],
        ];
        let order: Vec<_> = by_priority(&devices, |device| &device[..])
            .into_iter()
            .map(|(_, section)| section.name.as_str())
            .collect();
        assert_eq!(order, ["c", "e", "a", "d", "b"]);
    }
}
