//! The machine: everything the guest sees, put together.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod events;
pub mod hotplug;
pub mod layout;
pub mod pci;

mod controllers;
#[cfg(any(test, feature = "fuzzing"))]
pub mod decode;
mod devices;
mod dirty;
mod disk_files;
mod host_time;
mod images;
mod interrupts;
mod inventory;
mod kvm;
mod mapped;
mod memory_slots;
mod plan;
mod platform;
mod plugging;
mod power;
mod replacing;
mod running;
mod sci;
mod sections;
mod vfio;
mod virtio;
mod waking;
mod warm;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use baton_migration::HostError;
use baton_migration::fds::{FdKey, FdTable};
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::handover::OutgoingFd;
use baton_migration::{MigrationEvent, Mode, fds};
use baton_plugin_api::bus::RegionKind;
use baton_plugin_api::{DeviceType, Drive, Object, PropertyKind};

use crate::chardev::Chardevs;
use crate::cli::{self, DeviceOption, Options};
use crate::memory::{self, Contents, Ram};
use crate::plugin::{Clocks, Failures, Opened, Registry, Reports};
use crate::vcpu::{Exits, Payload, Vcpu, carried, cpuid, features};
use kvm_bindings::CpuId;
use kvm_ioctls::Cap;

use bus::AddressSpaces;
use controllers::ControllersState;
use devices::{Creation, Slots};
use disk_files::DiskFiles;
use events::MachineEvent;
use hotplug::{GpeRegisters, Hotplug, HotplugRegisters};
use interrupts::Interrupts;
use memory_slots::MemorySlots;
use pci::{ConfigPorts, Ecam, HostBridge, PciAddress, PciBus, PciWindows};
use power::{Power, ResetRegister};
use sci::Sci;
use vfio::VfioFiles;
use virtio::Surroundings;

pub use devices::MachineDevice;
pub use host_time::HostTime;
pub use images::Images;
pub use inventory::Inventory;
pub use mapped::{MappedRange, MappedSpace};
pub use plan::{Planned, plan};
pub use plugging::Arrival;
pub use power::WakeSource;
pub use sections::{GlobalState, MACHINE, sections};

/// The owner of the boot files among handed-over descriptors.
const BOOT: &str = "boot";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// A machine, built and stopped at first.
pub struct Machine {
    // Dropped in this order: first what runs the guest, last what it runs on.
    vcpus: Vec<Vcpu>,
    devices: Vec<MachineDevice>,
    ports: Arc<ConfigPorts>,
    power: Arc<Power>,
    hotplug: Arc<Hotplug>,
    pci: Arc<PciBus>,
    chardevs: Arc<Chardevs>,
    around: Surroundings,
    kernel: Option<boot::Kernel>,
    tables: acpi::Tables,
    power_on: PowerOn,
    fingerprint: MachineFingerprint,
    /// Whether devices have come or gone since it was built.
    changed: bool,
    /// States of the vCPUs as they stopped, when that was asked for.
    stopped: Vec<Payload>,
}

/// Where a new machine's guest comes from.
pub enum Origin<'a> {
    /// It boots here.
    Fresh,
    /// From another process, whose machine this is, and which may still run it: descriptors are
    /// taken from there, and nothing shared is touched.
    HandedOver(Mode, &'a Arc<FdTable>, &'a MachineFingerprint),
    /// From another process, or another host, whose machine this is, and which may still run it: what
    /// both use is opened, and not touched until the guest runs here.
    Copied(&'a MachineFingerprint),
    /// From where it was kept, and from this machine. No process runs it.
    Kept(Contents, &'a MachineFingerprint),
}

/// What KVM's own parts are like at power-on.
struct PowerOn {
    vcpus: Vec<Payload>,
    controllers: ControllersState,
}

/// What a machine is to have beside what its options say.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Its devices, in order.
    pub devices: &'a [DeviceOption],
    /// The drives that they may name.
    pub drives: &'a [Drive],
    /// The objects that they may name.
    pub objects: &'a [Object],
}

impl<'a> Wanted<'a> {
    /// What the command line says, and no more.
    pub fn of(options: &'a Options) -> Self {
        Self {
            devices: &options.devices,
            drives: &options.drives,
            objects: &options.objects,
        }
    }
}

impl Machine {
    /// Builds the machine that `options` describe, with these devices; the character devices are open.
    pub fn build(
        options: &Options,
        wanted: Wanted<'_>,
        registry: &Registry,
        origin: Origin<'_>,
        chardevs: &Arc<Chardevs>,
        events: &Sender<MachineEvent>,
    ) -> Result<Self, HostError> {
        let (restoring, preserved, contents, source) = match origin {
            Origin::Fresh => (None, None, Contents::New, None),
            Origin::HandedOver(mode, fds, source) => {
                (Some(mode), Some(fds), Contents::New, Some(source))
            }
            Origin::Copied(source) => (Some(Mode::Normal), None, Contents::New, Some(source)),
            Origin::Kept(contents, source) => (Some(Mode::CprReboot), None, contents, Some(source)),
        };
        let host = kvm::Host::open()?;
        if options.cpus > host.max_vcpus() {
            let most = host.max_vcpus();
            return Err(format!(
                "-smp {}: at most {most} vCPUs are possible here",
                options.cpus
            )
            .into());
        }
        let ram_fd = take(preserved, memory::OWNER, options.memory.id.as_str())?;
        let ram = Arc::new(Ram::new(&options.memory, ram_fd, contents)?);
        let vm = host.create_vm(&ram)?;
        let interrupts = Interrupts::new(Arc::clone(&vm))?;
        let spaces = Arc::new(AddressSpaces::default());
        let pci = Arc::new(PciBus::default());
        pci.insert(
            PciAddress {
                slot: 0,
                function: 0,
            },
            Arc::new(HostBridge::new()),
        );
        let ports = Arc::new(ConfigPorts::new(Arc::clone(&pci)));
        let lines = Arc::clone(&interrupts);
        let sci = Sci::new(move |level| lines.set_line(layout::SCI, level));
        let power = Power::new(Arc::clone(&sci), events.clone());
        let hotplug = Hotplug::new(Arc::clone(&pci), sci, events.clone());
        map_chipset(&spaces, &pci, &ports, &power, events)?;
        map_hotplug(&spaces, &hotplug)?;
        let reports = Reports {
            failures: Failures::default(),
            clocks: Clocks::new(events.clone()),
            opened: Opened::new(events.clone()),
        };
        let slots = u32::try_from(host.kvm.get_nr_memslots()).unwrap_or(u32::MAX);
        let around = Surroundings {
            memory_slots: MemorySlots::new(Arc::clone(&vm) as _, slots),
            vfio: VfioFiles::new(Arc::clone(&vm)),
            vm,
            interrupts,
            spaces,
            ram,
            reports,
        };
        let mut slots = Slots {
            surroundings: &around,
            pci: &pci,
            chardevs,
            unnamed: &mut BTreeMap::new(),
        };
        let devices = create_devices(
            (options, wanted),
            registry,
            restoring,
            preserved,
            &mut slots,
        )?;
        let entries: Vec<_> = devices.iter().filter_map(MachineDevice::acpi).collect();
        let mmio64 = PciWindows::new(around.ram.end()).mmio64;
        let tables = acpi::build(&acpi::AcpiInput {
            vcpus: options.cpus,
            mmio64: mmio64.0..mmio64.1,
            devices: &entries,
        })?;
        let exits = Exits {
            spaces: Arc::clone(&around.spaces),
            report: events.clone(),
        };
        let mut supported = host.supported_cpuid()?;
        if let Some(source) = source {
            supported = carried::adopt(&supported, &source.cpu)?;
        }
        features::apply(&mut supported, &options.cpu.changes)
            .map_err(|reason| format!("{}: {reason}", options.cpu.origin))?;
        let vcpus = (0..options.cpus)
            .map(|id| {
                Vcpu::create(
                    &host.kvm,
                    &around.vm,
                    id,
                    options.cpus,
                    &supported,
                    exits.clone(),
                )
                .map_err(|e| format!("vCPU {id}: {e}").into())
            })
            .collect::<Result<Vec<_>, HostError>>()?;
        let power_on = PowerOn {
            vcpus: sections::save_vcpus(&vcpus)?,
            controllers: ControllersState::save(&around.vm)?,
        };
        let fingerprint = fingerprint(options, &host, &supported)?;
        Ok(Self {
            vcpus,
            devices,
            ports,
            power,
            hotplug,
            pci,
            chardevs: Arc::clone(chardevs),
            kernel: open_kernel(options, preserved)?,
            tables,
            power_on,
            fingerprint,
            around,
            changed: false,
            stopped: Vec::new(),
        })
    }

    /// What [`Self::build`] would build for the guest of `source`, in the terms that must agree with
    /// those of the source: its CPU is the source's as far as this host can offer that.
    pub fn expected_fingerprint(
        options: &Options,
        source: &MachineFingerprint,
    ) -> Result<MachineFingerprint, HostError> {
        let host = kvm::Host::open()?;
        let supported = host.supported_cpuid()?;
        let ours = fingerprint(options, &host, &supported)?;
        Ok(MachineFingerprint {
            cpu: carried::agree(&ours.cpu, &source.cpu),
            ..ours
        })
    }

    /// The PCI bus.
    pub fn pci(&self) -> &PciBus {
        &self.pci
    }

    /// The devices, in the order they were created.
    pub fn devices(&self) -> &[MachineDevice] {
        &self.devices
    }

    /// Which devices have failed.
    pub fn failures(&self) -> &Failures {
        &self.around.reports.failures
    }

    /// The virtual CPUs' threads, in the CPUs' order.
    pub fn cpu_threads(&self) -> impl Iterator<Item = i32> {
        self.vcpus.iter().map(Vcpu::thread_id)
    }

    /// The clocks that the guest has set.
    pub fn clocks(&self) -> &Clocks {
        &self.around.reports.clocks
    }

    /// The devices' children that the guest uses.
    pub fn opened(&self) -> &Opened {
        &self.around.reports.opened
    }

    /// What a target must have in common with it.
    pub fn fingerprint(&self) -> &MachineFingerprint {
        &self.fingerprint
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.around.ram
    }

    /// Another process will use what the devices of this stopped machine have open: they write back
    /// what was not, and let go of what one process alone can have.
    pub fn release_shared(&self) -> Result<(), HostError> {
        self.disk_files()?.write_back()?;
        for device in &self.devices {
            device.notify(MigrationEvent::Switchover)?;
        }
        Ok(())
    }

    /// Collects changes of interrupt routes while `f` runs, and tells the kernel once.
    pub fn routing_once<T>(
        &self,
        f: impl FnOnce() -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        self.around.interrupts.hold();
        let result = f();
        let released = self.around.interrupts.release();
        let value = result?;
        released?;
        Ok(value)
    }

    /// The files behind the devices.
    pub fn disk_files(&self) -> Result<DiskFiles, HostError> {
        // What is handed over is what is open.
        let fds = self.devices.iter().map(|d| d.fds(Mode::CprTransfer));
        let fds: Vec<Vec<OutgoingFd>> = fds.collect::<Result<_, _>>()?;
        Ok(DiskFiles::among(fds.into_iter().flatten().map(|fd| fd.fd)))
    }

    /// The files behind the devices, as a kept guest remembers them.
    pub fn images(&self) -> Result<Images, HostError> {
        let fds = self.devices.iter().map(|d| d.fds(Mode::CprTransfer));
        let fds: Vec<Vec<OutgoingFd>> = fds.collect::<Result<_, _>>()?;
        Ok(Images::among(fds.into_iter().flatten()))
    }

    /// Everything the target needs of this process in `mode`.
    pub fn fds(&self, mode: Mode) -> Result<Vec<OutgoingFd>, HostError> {
        let mut all = self.chardevs.handover(mode)?;
        if let Some(file) = self.around.ram.shared_file() {
            let key = FdKey::new(memory::OWNER, self.around.ram.id(), 0);
            all.push(OutgoingFd { key, fd: file? });
        }
        if let Some(kernel) = &self.kernel {
            let mut add = |name: &str, file: &File| -> std::io::Result<()> {
                let fd = file.as_fd().try_clone_to_owned()?;
                all.push(OutgoingFd {
                    key: FdKey::new(BOOT, name, 0),
                    fd,
                });
                Ok(())
            };
            add(KERNEL, &kernel.image)?;
            if let Some((initrd, _)) = &kernel.initrd {
                add(INITRD, initrd)?;
            }
        }
        for device in &self.devices {
            all.extend(device.fds(mode)?);
        }
        Ok(all)
    }
}

impl Drop for Machine {
    /// Lets go of everything. Functions on the bus know the address spaces and these know them, so
    /// that neither would go by itself, nor RAM and descriptors with them.
    fn drop(&mut self) {
        self.vcpus.clear();
        for device in &self.devices {
            if let Err(e) = device.quiesce() {
                tracing::debug!("while the machine ends: {e}");
            }
        }
        self.around.spaces.clear();
        self.pci.clear();
    }
}

fn fingerprint(
    options: &Options,
    host: &kvm::Host,
    supported: &CpuId,
) -> Result<MachineFingerprint, HostError> {
    let deadline = host.kvm.check_extension(Cap::TscDeadlineTimer);
    let cpuid = cpuid::guest_cpuid(supported, 0, options.cpus, deadline)?;
    Ok(MachineFingerprint {
        machine_type: options.machine.kind.as_str().to_owned(),
        vcpus: options.cpus,
        ram: memory::fingerprint(options.memory.size),
        cpu: cpuid::digest(&cpuid),
    })
}

fn take(
    preserved: Option<&Arc<FdTable>>,
    owner: &str,
    name: &str,
) -> Result<Option<std::os::fd::OwnedFd>, fds::FdError> {
    match preserved {
        Some(table) if table.has(owner, name, 0) => table.take(owner, name, 0).map(Some),
        _ => Ok(None),
    }
}

/// Puts what every machine has into its address spaces.
fn map_chipset(
    spaces: &AddressSpaces,
    pci: &Arc<PciBus>,
    ports: &Arc<ConfigPorts>,
    power: &Arc<Power>,
    events: &Sender<MachineEvent>,
) -> Result<(), bus::Overlap> {
    let reset = ResetRegister::new(events.clone());
    let ports: Arc<dyn bus::BusDevice> = Arc::clone(ports) as _;
    let shared = pci::PortsWithReset::new(ports, Arc::new(reset));
    spaces.insert(
        RegionKind::Port,
        pci::CONFIG_PORTS,
        pci::CONFIG_PORTS_SIZE,
        Arc::new(shared),
    )?;
    let base = u64::from(layout::PM1_EVENT_PORT);
    spaces.insert(RegionKind::Port, base, power::PORTS, Arc::clone(power) as _)?;
    let ecam = Arc::new(Ecam::new(Arc::clone(pci)));
    spaces.insert(
        RegionKind::Mmio,
        layout::ECAM_START,
        layout::ECAM_SIZE,
        ecam,
    )
}

/// Puts the registers of hot-plug there too.
fn map_hotplug(spaces: &AddressSpaces, hotplug: &Arc<Hotplug>) -> Result<(), bus::Overlap> {
    let gpe = Arc::new(GpeRegisters(Arc::clone(hotplug)));
    let (base, size) = (layout::GPE0_PORT.into(), layout::GPE0_LENGTH.into());
    spaces.insert(RegionKind::Port, base, size, gpe)?;
    let registers = Arc::new(HotplugRegisters(Arc::clone(hotplug)));
    let base = layout::PCI_HOTPLUG_PORT.into();
    let size = layout::PCI_HOTPLUG_LENGTH.into();
    spaces.insert(RegionKind::Port, base, size, registers)
}

fn create_devices(
    (options, wanted): (&Options, Wanted<'_>),
    registry: &Registry,
    restoring: Option<Mode>,
    preserved: Option<&Arc<FdTable>>,
    slots: &mut Slots<'_>,
) -> Result<Vec<MachineDevice>, HostError> {
    let chardevs = slots.chardevs.configs();
    let backends = cli::Backends::new(wanted.drives, &chardevs);
    let backends = backends.with_netdevs(&options.netdevs);
    let mut backends = backends.with_objects(wanted.objects);
    let mut devices = Vec::new();
    for option in wanted.devices {
        let (plugin, device_type) = registry
            .device(&option.driver)
            .map_err(|e| option.error(e.to_string()))?;
        let mut config = backends.configure(device_type, option)?;
        config.restoring = restoring;
        let creation = Creation {
            plugin,
            device_type,
            config,
            option,
            preserved: preserved.cloned(),
        };
        devices.push(
            MachineDevice::create(creation, slots)
                .map_err(|e| option.error(baton_migration::error_chain(&*e)))?,
        );
    }
    for netdev in backends.idle_netdevs() {
        idle_netdev(&netdev.id, registry)?;
    }
    Ok(devices)
}

/// A network backend that no device has: a later one may take it if there are such devices at all.
fn idle_netdev(id: &str, registry: &Registry) -> Result<(), HostError> {
    let network = |kind: &DeviceType| {
        kind.properties
            .iter()
            .any(|p| p.kind == PropertyKind::Netdev)
    };
    if registry.devices().any(|(_, kind)| network(kind)) {
        // QEMU's text.
        tracing::warn!("netdev {id} has no peer");
        return Ok(());
    }
    Err(format!(
        "-netdev id={id}: netdev {id} has no peer, and no plugin that is loaded has a network \
         device; load one with -plugin, or leave it out"
    )
    .into())
}

/// Opens the kernel, or takes what was handed over: it is read again at every reset of the guest.
fn open_kernel(
    options: &Options,
    preserved: Option<&Arc<FdTable>>,
) -> Result<Option<boot::Kernel>, HostError> {
    let open = |name: &str, path: &std::path::Path| -> Result<File, HostError> {
        match take(preserved, BOOT, name)? {
            Some(fd) => Ok(File::from(fd)),
            None => File::open(path)
                .map_err(|e| format!("-{name} {}: cannot be opened: {e}", path.display()).into()),
        }
    };
    let Some(kernel) = &options.kernel else {
        return Ok(None);
    };
    let initrd = match &kernel.initrd {
        Some(path) => Some((open(INITRD, path)?, path.display().to_string())),
        None => None,
    };
    Ok(Some(boot::Kernel {
        image: open(KERNEL, &kernel.path)?,
        name: kernel.path.display().to_string(),
        initrd,
        cmdline: kernel.append.clone(),
    }))
}
