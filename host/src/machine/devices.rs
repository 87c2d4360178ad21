//! The devices of a machine, whatever their bus: created from the command line, and asked the same
//! questions by everyone else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use baton_migration::blockers::OwnedBlocker;
use baton_migration::fds::{FdKey, FdTable};
use baton_migration::handover::OutgoingFd;
use baton_migration::stream::{SectionWriter, StateImage, section_name};
use baton_migration::{HostError, MigrationEvent, Mode};
use baton_plugin_api::bus::{AcpiDevice, Region};
use baton_plugin_api::protocol::DeviceInfo;
use baton_plugin_api::{
    Blocker, BusClass, Child, Config, DeviceType, Error, ErrorKind, Result, Section,
};

use super::pci::{PciAddress, PciBus, PluggedPci};
use super::platform::PlatformDevice;
use super::virtio::{PreparedVirtio, Surroundings, VirtioPci};
use crate::chardev::Chardevs;
use crate::cli::{DeviceOption, children};
use crate::fd::duplicate;
use crate::plugin::{Bridge, Failures, PluggedDevice, Plugin, Reports};

/// A device in its place.
pub struct MachineDevice {
    id: String,
    device_type: DeviceType,
    /// What it was created from.
    config: Config,
    /// What it loads.
    sections: Vec<Section>,
    /// Where it sits, on PCI.
    at: Option<PciAddress>,
    /// What asked for it.
    option: DeviceOption,
    kind: Kind,
}

enum Kind {
    Platform(Arc<PlatformDevice>),
    Virtio(Arc<VirtioPci>),
    Pci(Arc<PluggedPci>),
}

/// A device of a plugin, realized for a place in the machine.
pub struct Instance {
    device: PluggedDevice,
    info: DeviceInfo,
    device_type: DeviceType,
    sections: Vec<Section>,
}

impl Instance {
    /// A migration went on.
    pub fn notify(&mut self, event: MigrationEvent) -> Result<()> {
        self.device.notify(event)
    }

    /// It is not needed any more.
    pub fn end(&mut self) {
        self.device.end();
    }
}

/// What a device is created with.
pub struct Creation<'a> {
    /// Its plugin and type.
    pub plugin: &'a Plugin,
    /// As above.
    pub device_type: &'a DeviceType,
    /// Checked against the type; an empty id means that the place is the id.
    pub config: Config,
    /// What asks for it.
    pub option: &'a DeviceOption,
    /// What was handed over for it.
    pub preserved: Option<Arc<FdTable>>,
}

/// Where devices go.
pub struct Slots<'a> {
    /// VM, interrupts, address spaces and RAM.
    pub surroundings: &'a Surroundings,
    /// The PCI bus.
    pub pci: &'a PciBus,
    /// Character devices.
    pub chardevs: &'a Arc<Chardevs>,
    /// How many devices of each type have no id, for their names.
    pub unnamed: &'a mut BTreeMap<String, u32>,
}

/// Gives a device that has no id one by its place, or, off the bus, by its type.
pub fn name(
    config: &mut Config,
    device_type: &DeviceType,
    at: Option<PciAddress>,
    unnamed: &mut BTreeMap<String, u32>,
) {
    if config.id.is_empty() {
        config.id = match at {
            Some(at) => at.to_string(),
            None => {
                let n = unnamed.entry(device_type.name.clone()).or_default();
                *n += 1;
                format!("{}.{}", device_type.name, *n - 1)
            }
        };
    }
    for at in 0..config.children.len() {
        if config.children[at].config.id.is_empty() {
            config.children[at].config.id = child_name(config);
        }
    }
}

/// A name for a child that has no id: the bus it sits on, and a number that no other one has.
fn child_name(config: &Config) -> String {
    let taken = |name: &String| config.children.iter().any(|c| c.config.id == *name);
    let names = (0..).map(|n: u32| format!("{}.0/{n}", config.id));
    names
        .into_iter()
        .find(|name| !taken(name))
        .unwrap_or_default()
}

impl MachineDevice {
    /// What a device of this type saves: what the host keeps of it, then its own.
    pub fn sections(device_type: &DeviceType) -> Vec<Section> {
        let own = (device_type.bus == BusClass::Virtio).then(VirtioPci::section);
        own.into_iter()
            .chain(device_type.sections.iter().cloned())
            .collect()
    }

    /// Creates and realizes a device.
    pub fn create(
        creation: Creation<'_>,
        slots: &mut Slots<'_>,
    ) -> std::result::Result<Self, HostError> {
        let Creation {
            plugin,
            device_type,
            mut config,
            option,
            preserved,
        } = creation;
        let on_pci = device_type.bus != BusClass::Platform;
        let at = if on_pci {
            Some(slots.pci.place(option.address)?)
        } else {
            None
        };
        name(&mut config, device_type, at, slots.unnamed);
        let id = config.id.clone();
        let chardevs = Arc::clone(slots.chardevs);
        let bridge = Bridge::new(&id, preserved, chardevs, slots.surroundings.reports.clone());
        let device = PluggedDevice::create(plugin, device_type, &config, Arc::clone(&bridge))?;
        let around = slots.surroundings;
        let kind = match device_type.bus {
            BusClass::Platform => Kind::Platform(PlatformDevice::realize(
                device,
                &bridge,
                &around.vm,
                &around.interrupts,
                &around.spaces,
                &around.ram,
            )?),
            BusClass::Virtio => {
                Kind::Virtio(PreparedVirtio::new(device, &bridge)?.realize(around)?)
            }
            BusClass::Pci => Kind::Pci(PluggedPci::realize(device, &bridge, around)?),
        };
        match (&kind, at) {
            (Kind::Virtio(function), Some(at)) => slots.pci.insert(at, Arc::clone(function) as _),
            (Kind::Pci(function), Some(at)) => slots.pci.insert(at, Arc::clone(function) as _),
            _ => {}
        }
        Ok(Self {
            id,
            device_type: device_type.clone(),
            config,
            sections: Self::sections(device_type),
            at,
            option: option.clone(),
            kind,
        })
    }

    /// Its id, unique in the machine.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is.
    pub fn device_type(&self) -> &DeviceType {
        &self.device_type
    }

    /// What it was created from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What sits on its own bus, and what asked for that.
    pub fn children(&self) -> impl Iterator<Item = (&Child, &DeviceOption)> {
        self.config.children.iter().zip(&self.option.children)
    }

    /// The name of its own bus, if it has one, and of what kind it is.
    pub fn child_bus(&self) -> Option<(String, &str)> {
        let kind = &self.device_type.child_bus.as_ref()?.name;
        Some((children::name(&self.option, kind), kind))
    }

    /// Where it sits, for people.
    pub fn place(&self) -> String {
        self.at
            .map_or_else(|| "platform".to_owned(), |at| at.to_string())
    }

    /// Where it sits, if it is on PCI.
    pub fn at(&self) -> Option<PciAddress> {
        self.at
    }

    /// What asked for it.
    pub fn option(&self) -> &DeviceOption {
        &self.option
    }

    /// What asks for it to be where it is.
    pub fn pinned_option(&self) -> DeviceOption {
        self.option.pinned(self.at)
    }

    /// Its entry in the DSDT, if it has one.
    pub fn acpi(&self) -> Option<(AcpiDevice, Vec<Region>, Vec<u32>)> {
        let Kind::Platform(device) = &self.kind else {
            return None;
        };
        let info = device.info();
        Some((info.acpi.clone()?, info.regions.clone(), info.irqs.clone()))
    }

    /// The guest runs from now on.
    pub fn start(&self) -> Result<()> {
        match &self.kind {
            Kind::Platform(device) => device.start(),
            Kind::Virtio(device) => device.start(),
            Kind::Pci(device) => device.start(),
        }
    }

    /// The guest is about to stop. An error comes again with [`Self::quiesce`].
    pub fn settle(&self) {
        match &self.kind {
            Kind::Platform(device) => device.settle(),
            Kind::Virtio(device) => device.settle(),
            Kind::Pci(device) => device.settle(),
        }
    }

    /// The guest has stopped.
    pub fn quiesce(&self) -> Result<()> {
        match &self.kind {
            Kind::Platform(device) => device.quiesce(),
            Kind::Virtio(device) => device.quiesce(),
            Kind::Pci(device) => device.quiesce(),
        }
    }

    /// It goes for good, off the bus it may still be known on, while the guest may run. A platform
    /// device stays.
    pub fn unplug(&self) {
        match &self.kind {
            Kind::Platform(_) => {}
            Kind::Virtio(device) => device.unplug(),
            Kind::Pci(device) => device.unplug(),
        }
    }

    /// Makes another instance for this place, of a plugin that offers the same type: it gets duplicates
    /// of this one's descriptors, and is not in its place yet.
    pub fn instance(
        &self,
        plugin: &Plugin,
        device_type: &DeviceType,
        config: &Config,
        chardevs: &Arc<Chardevs>,
        reports: Reports,
    ) -> std::result::Result<Instance, HostError> {
        let preserved = Arc::new(FdTable::new());
        for OutgoingFd { key, fd } in self.fds(Mode::CprTransfer)? {
            preserved.insert(key, fd)?;
        }
        let table = Some(Arc::clone(&preserved));
        let bridge = Bridge::new(&self.id, table, Arc::clone(chardevs), reports);
        let mut device = PluggedDevice::create(plugin, device_type, config, Arc::clone(&bridge))?;
        bridge.install(match &self.kind {
            Kind::Platform(place) => place.bridge(),
            Kind::Virtio(place) => place.bridge(),
            Kind::Pci(place) => place.bridge(),
        });
        let info = device.realize()?;
        let fits = match (&self.kind, &info) {
            (Kind::Platform(place), DeviceInfo::Platform(info)) => place.info() == info,
            (Kind::Virtio(place), DeviceInfo::Virtio(info)) => place.fits(info),
            (Kind::Pci(place), DeviceInfo::Pci(info)) => place.fits(info),
            _ => return Err(device.not_of_its_class().into()),
        };
        if !fits {
            let text = "The new plugin's device has other registers, queues or features than the guest \
                        uses; the guest must be started anew with it";
            return Err(Error::state(text).in_device(&self.id).into());
        }
        preserved.all_claimed()?;
        Ok(Instance {
            device,
            info,
            device_type: device_type.clone(),
            sections: Self::sections(device_type),
        })
    }

    /// Puts an instance of [`Self::instance`], or one that was here before, in its place; gives the one
    /// that was there. Both are quiesced.
    pub fn put(&mut self, new: Instance) -> Instance {
        let (device, info) = match &self.kind {
            Kind::Platform(place) => (place.put(new.device), new.info),
            Kind::Virtio(place) => place.put(new.device, new.info),
            Kind::Pci(place) => (place.put(new.device), new.info),
        };
        Instance {
            device,
            info,
            device_type: std::mem::replace(&mut self.device_type, new.device_type),
            sections: std::mem::replace(&mut self.sections, new.sections),
        }
    }

    /// Something comes to sit on its own bus. The device stands still meanwhile, the guest need not:
    /// `runs` says whether it does.
    pub fn attach(&mut self, mut child: Child, option: DeviceOption, runs: bool) -> Result<()> {
        if child.config.id.is_empty() {
            child.config.id = child_name(&self.config);
        }
        self.standing_still(runs, |device| device.attach(child.clone()))?;
        self.config.children.push(child);
        self.option.children.push(option);
        Ok(())
    }

    /// A child leaves, in the same way; what it was.
    pub fn detach(&mut self, id: &str, runs: bool) -> Result<()> {
        let mut children = self.config.children.iter();
        let Some(at) = children.position(|child| child.config.id == id) else {
            return Err(Error::invalid(format!("There is no '{id}' on it")).in_device(&self.id));
        };
        self.standing_still(runs, |device| device.detach(&self.config.children[at]))?;
        self.config.children.remove(at);
        self.option.children.remove(at);
        Ok(())
    }

    fn standing_still(
        &self,
        runs: bool,
        change: impl FnOnce(&mut PluggedDevice) -> Result<()>,
    ) -> Result<()> {
        if runs {
            self.quiesce()?;
        }
        let changed = self.with_device(change);
        if runs {
            self.start()?;
        }
        changed.map_err(|e| match (e.kind, self.child_bus()) {
            // QEMU's text.
            (ErrorKind::Unsupported, Some((bus, _))) => {
                Error::invalid(format!("Bus '{bus}' does not support hotplugging"))
            }
            _ => e,
        })
    }

    /// Back to power-on.
    pub fn reset(&self) -> Result<()> {
        match &self.kind {
            Kind::Platform(device) => device.reset(),
            Kind::Virtio(device) => device.reset(),
            Kind::Pci(device) => device.reset(),
        }
    }

    /// What blocks `mode` now.
    pub fn blockers(&self, mode: Mode, failures: &Failures) -> Vec<OwnedBlocker> {
        let mut blockers = match self.with_device(|device| device.blockers(mode)) {
            Ok(blockers) => blockers,
            Err(e) => vec![Blocker {
                id: "device-does-not-answer".into(),
                reason: e.message,
                remedy: "Unplug the device, or reset the guest".into(),
                modes: vec![mode],
                unless_suspended: false,
            }],
        };
        if let Some(reason) = failures.get(&self.id) {
            blockers.push(Blocker {
                id: "device-failed".into(),
                reason: format!("the device has failed: {reason}"),
                remedy: "Unplug the device, or restart the guest".into(),
                modes: Mode::ALL.to_vec(),
                unless_suspended: false,
            });
        }
        let owned = |blocker| OwnedBlocker {
            owner: self.id.clone(),
            blocker,
        };
        blockers.into_iter().map(owned).collect()
    }

    /// Duplicates of what it hands over in `mode`.
    pub fn fds(&self, mode: Mode) -> std::result::Result<Vec<OutgoingFd>, HostError> {
        self.with_device(|device| {
            let fds = device.fds(mode)?;
            fds.into_iter()
                .map(|fd| {
                    Ok(OutgoingFd {
                        key: FdKey::new(&self.id, &fd.name, fd.instance),
                        fd: duplicate(fd.fd)?,
                    })
                })
                .collect()
        })
    }

    /// A migration went on.
    pub fn notify(&self, event: MigrationEvent) -> Result<()> {
        self.with_device(|device| device.notify(event))
    }

    /// When it wants a suspended guest woken.
    pub fn wake_time(&self) -> Result<Option<SystemTime>> {
        self.with_device(PluggedDevice::wake_time)
    }

    /// Writes what the host keeps of the device; it may be written while the guest runs.
    pub fn save_own(&self, out: &mut SectionWriter<'_>) -> std::result::Result<(), HostError> {
        if let Kind::Virtio(device) = &self.kind {
            let section = VirtioPci::section();
            let name = section_name(&self.id, &section.name);
            out.put_raw(&name, 0, section.version, &device.save()?)?;
        }
        Ok(())
    }

    /// Writes every section of the quiesced device, and the subsections that are needed.
    pub fn save(&self, out: &mut SectionWriter<'_>) -> std::result::Result<(), HostError> {
        self.save_own(out)?;
        self.with_device(|device| {
            for (name, loads) in self.device_type.sections.iter().flat_map(Section::names) {
                if let Some(data) = device.save(&name)? {
                    let name = section_name(&self.id, &name);
                    out.put_raw(&name, 0, *loads.end(), &data)?;
                }
            }
            Ok(())
        })
    }

    /// Takes what the host keeps of the device out of a preview, if it is there.
    pub fn warm_up(&self, preview: &mut StateImage) -> std::result::Result<(), HostError> {
        if let Kind::Virtio(device) = &self.kind {
            let section = VirtioPci::section();
            let name = section_name(&self.id, &section.name);
            if let Some(data) = preview.take_if_present(&name, 0) {
                data.check_version(&(section.minimum_version..=section.version))?;
                device.load(&data.payload)?;
            }
        }
        Ok(())
    }

    /// All it loads: what the host keeps of it, then its own.
    pub fn loads(&self) -> &[Section] {
        &self.sections
    }

    /// Loads one of its sections, and what there is of subsections.
    pub fn load(
        &self,
        section: &Section,
        state: &mut StateImage,
    ) -> std::result::Result<(), HostError> {
        for (at, (name, loads)) in section.names().enumerate() {
            let path = section_name(&self.id, &name);
            let data = match state.take_if_present(&path, 0) {
                Some(data) => data,
                None if at > 0 => continue,
                None => state.take(&path, 0)?,
            };
            data.check_version(&loads)?;
            match &self.kind {
                Kind::Virtio(device) if name == VirtioPci::section().name => {
                    device.load(&data.payload)?;
                }
                _ => self.with_device(|d| d.load(&name, data.version, data.payload))?,
            }
        }
        Ok(())
    }

    fn with_device<T>(&self, f: impl FnOnce(&mut PluggedDevice) -> T) -> T {
        match &self.kind {
            Kind::Platform(device) => device.with_device(f),
            Kind::Virtio(device) => device.with_device(f),
            Kind::Pci(device) => device.with_device(f),
        }
    }
}
