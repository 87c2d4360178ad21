//! A PCI function whose config space and BARs are a plugin's own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use baton_plugin_api::bus::{CONFIG_REGION, PciInfo, RegionKind};
use baton_plugin_api::protocol::{DeviceInfo, HostReply, HostRequest, StartArguments};
use baton_plugin_api::{Error, Result};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::parts::{BarParts, Part};
use super::{BarMap, PciFunction};
use crate::fd::duplicate;
use crate::machine::bus::BusDevice;
use crate::machine::interrupts::Vector;
use crate::machine::vfio::VfioFile;
use crate::machine::virtio::Surroundings;
use crate::plugin::{Bridge, DeviceBridge, PluggedDevice};

/// A PCI function in a plugin.
pub struct PluggedPci {
    device: Mutex<PluggedDevice>,
    wires: Arc<Wires>,
    machine: Surroundings,
    bar_sizes: [u64; 6],
    running: Mutex<bool>,
}

/// The most vectors a function may have: PCI 3.0 section 6.8.2.
const VECTORS_MAX: u32 = 2048;

/// What the function has told the host: kept apart from the device, which tells it from within its
/// own calls.
struct Wires {
    machine: Surroundings,
    told: Mutex<Told>,
}

struct Told {
    info: PciInfo,
    // Before the BARs, whose accesses are the function's once these are gone.
    parts: BarParts,
    bars: BarMap,
    vectors: BTreeMap<u32, Vector>,
    /// What KVM was told that it is, if it is a device of the host's.
    vfio: Vec<VfioFile>,
    function: Weak<PluggedPci>,
}

impl Told {
    /// What a BAR decodes, and its bytes.
    fn bar(&self, bar: u32) -> Result<(RegionKind, u64)> {
        let size = self.info.bar_sizes.get(bar as usize).copied().unwrap_or(0);
        if size == 0 {
            return Err(Error::invalid(format!("The function has no BAR {bar}")));
        }
        let kind = if self.info.port_bars.contains(&bar) {
            RegionKind::Port
        } else {
            RegionKind::Mmio
        };
        Ok((kind, size))
    }
}

impl Wires {
    fn vector<'t>(&self, told: &'t mut Told, vector: u32) -> Result<&'t mut Vector> {
        if vector >= VECTORS_MAX {
            return Err(Error::invalid(format!("There is no MSI-X vector {vector}")));
        }
        match told.vectors.entry(vector) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => {
                let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                    .map_err(|e| Error::io("Cannot make an eventfd", &e))?;
                Ok(free.insert(self.machine.interrupts.vector(event)))
            }
        }
    }

    fn set_bar(&self, told: &mut Told, bar: u32, address: Option<u64>) -> Result<()> {
        let (kind, size) = told.bar(bar)?;
        let function = told.function.clone();
        if told.bars.address(bar) != address {
            told.parts.place(bar, None);
        }
        told.bars.set(bar, kind, address, size, move || {
            Arc::new(Bar { function, bar })
        });
        let decodes = told.bars.address(bar);
        told.parts.place(bar, decodes);
        Ok(())
    }

    fn map(&self, told: &mut Told, part: Part, fd: i32, fd_offset: u64) -> Result<()> {
        let (kind, size) = told.bar(part.bar)?;
        if kind != RegionKind::Mmio {
            return Err(Error::invalid(format!("BAR {} decodes ports", part.bar)));
        }
        let fd = baton_plugin_api::fd::duplicate(fd)?;
        let at = told.bars.address(part.bar);
        told.parts.add(part, size, at, (fd, fd_offset))
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceBridge for Wires {
    fn call(&self, request: HostRequest) -> Result<HostReply> {
        let mut told = self.lock();
        match request {
            HostRequest::Irqfd { line } => {
                let event = self.vector(&mut told, line)?.event().as_raw_fd();
                return duplicate(event)
                    .map(crate::plugin::given)
                    .map_err(|e| Error::io("Cannot duplicate an eventfd", &e));
            }
            HostRequest::PciBar { bar, address } => self.set_bar(&mut told, bar, address)?,
            HostRequest::PciMap {
                bar,
                offset,
                size,
                fd,
                fd_offset,
            } => {
                let part = Part { bar, offset, size };
                self.map(&mut told, part, fd, fd_offset)?;
            }
            HostRequest::MsixVector { vector, message } => self
                .vector(&mut told, vector)?
                .set(message)
                .map_err(|e| Error::state(e.to_string()))?,
            HostRequest::VfioFile { fd } => {
                let fd = baton_plugin_api::fd::duplicate(fd)?;
                let file = self.machine.vfio.add(fd);
                let file = file.map_err(|e| Error::state(e.to_string()))?;
                // Another instance of the plugin may have said so before.
                told.vfio.retain(|known| !known.is(&file));
                told.vfio.push(file);
            }
            HostRequest::Failed { .. } => {}
            other => {
                return Err(Error::state(format!(
                    "A PCI function has no use for {other:?}"
                )));
            }
        }
        Ok(HostReply::Done)
    }
}

impl PluggedPci {
    /// Realizes a created function.
    pub fn realize(
        mut device: PluggedDevice,
        bridge: &Bridge,
        machine: &Surroundings,
    ) -> Result<Arc<Self>> {
        let wires = Arc::new(Wires {
            machine: machine.clone(),
            told: Mutex::new(Told {
                info: PciInfo::default(),
                parts: BarParts::new(Arc::clone(&machine.memory_slots)),
                bars: BarMap::new(Arc::clone(&machine.spaces)),
                vectors: BTreeMap::new(),
                vfio: Vec::new(),
                function: Weak::new(),
            }),
        });
        bridge.install(Arc::clone(&wires) as _);
        let DeviceInfo::Pci(info) = device.realize()? else {
            return Err(device.not_of_its_class());
        };
        let odd = |size: &&u64| **size != 0 && !size.is_power_of_two();
        if let Some(size) = info.bar_sizes.iter().find(odd) {
            return Err(
                Error::invalid(format!("Its plugin describes a BAR of {size:#x} bytes"))
                    .in_device(device.id()),
            );
        }
        let this = Arc::new(Self {
            device: Mutex::new(device),
            wires: Arc::clone(&wires),
            machine: machine.clone(),
            bar_sizes: info.bar_sizes,
            running: Mutex::new(false),
        });
        let mut told = wires.lock();
        told.info = info;
        told.function = Arc::downgrade(&this);
        drop(told);
        Ok(this)
    }

    /// The services of its place, for another instance.
    pub fn bridge(&self) -> Arc<dyn DeviceBridge> {
        Arc::clone(&self.wires) as _
    }

    /// Whether an instance that describes itself so can take this place.
    pub fn fits(&self, info: &PciInfo) -> bool {
        self.wires.lock().info == *info
    }

    /// Puts another instance in its place; gives the one that was there.
    pub fn put(&self, new: PluggedDevice) -> PluggedDevice {
        std::mem::replace(&mut *self.lock(), new)
    }

    /// The guest runs from now on.
    pub fn start(&self) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !*running {
            let memory = self.machine.ram.table();
            self.lock().start(StartArguments {
                memory,
                ..StartArguments::default()
            })?;
            *running = true;
        }
        Ok(())
    }

    /// The guest is about to stop. It is a hint, so an error is of no matter.
    pub fn settle(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if *running && let Err(e) = self.lock().settle() {
            tracing::debug!("while it was told that the guest stops: {e}");
        }
    }

    /// The guest has stopped.
    pub fn quiesce(&self) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *running) {
            self.lock().quiesce()?;
        }
        Ok(())
    }

    /// The function goes, while the guest may run: nothing of it is left on any bus, and its plugin's
    /// device has ended.
    pub fn unplug(&self) {
        if let Err(e) = self.quiesce() {
            tracing::warn!("while it was unplugged: {e}");
        }
        self.lock().end();
        let mut told = self.wires.lock();
        let bars = BarMap::new(Arc::clone(&self.machine.spaces));
        let parts = BarParts::new(Arc::clone(&self.machine.memory_slots));
        let gone = (
            std::mem::replace(&mut told.parts, parts),
            std::mem::replace(&mut told.bars, bars),
            std::mem::take(&mut told.vectors),
            std::mem::take(&mut told.vfio),
        );
        drop(told);
        drop(gone);
    }

    /// Back to power-on; the guest does not run.
    pub fn reset(&self) -> Result<()> {
        self.lock().reset()
    }

    /// Runs `f` on the function, whose register calls wait meanwhile.
    pub fn with_device<T>(&self, f: impl FnOnce(&mut PluggedDevice) -> T) -> T {
        f(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, PluggedDevice> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for PluggedPci {
    fn bar_sizes(&self) -> [u64; 6] {
        self.bar_sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.lock().read(CONFIG_REGION, offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        self.lock().write(CONFIG_REGION, offset, data);
    }
}

struct Bar {
    function: Weak<PluggedPci>,
    bar: u32,
}

impl BusDevice for Bar {
    fn name(&self) -> String {
        let function = self.function.upgrade();
        function
            .map(|function| function.lock().id().to_owned())
            .unwrap_or_default()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.function.upgrade() {
            Some(function) => function.lock().read(self.bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(function) = self.function.upgrade() {
            function.lock().write(self.bar, offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{BackendKind, MemoryBackend};
    use crate::machine::bus::AddressSpaces;
    use crate::machine::interrupts::Interrupts;
    use crate::machine::kvm;
    use crate::machine::memory_slots::MemorySlots;
    use crate::machine::memory_slots::tests::{Told as Slots, memory};
    use crate::machine::vfio::VfioFiles;
    use crate::memory::{Contents, Ram};
    use crate::plugin::{Clocks, Failures, Opened, Reports};
    use std::os::fd::OwnedFd;

    const PLACE: u64 = 0xd000_0000;
    const SIZE: u64 = 0x4000;

    /// A function's wires, and what KVM hears of slots; nothing without KVM.
    fn wires() -> Option<(Arc<Slots>, Wires)> {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return None;
        }
        let backend = MemoryBackend {
            id: "m".parse().unwrap(),
            size: 2 << 20,
            share: false,
            prealloc: false,
            kind: BackendKind::Ram,
        };
        let ram = Arc::new(Ram::new(&backend, None, Contents::New).unwrap());
        let vm = kvm::Host::open().unwrap().create_vm(&ram).unwrap();
        let slots = Arc::new(Slots::default());
        let tell = std::sync::mpsc::channel().0;
        let machine = Surroundings {
            memory_slots: MemorySlots::new(Arc::clone(&slots) as _, 100),
            vfio: VfioFiles::new(Arc::clone(&vm)),
            interrupts: Interrupts::new(Arc::clone(&vm)).unwrap(),
            vm,
            spaces: Arc::new(AddressSpaces::default()),
            ram,
            reports: Reports {
                failures: Failures::default(),
                clocks: Clocks::new(tell.clone()),
                opened: Opened::new(tell),
            },
        };
        let told = Told {
            info: PciInfo::default(),
            parts: BarParts::new(Arc::clone(&machine.memory_slots)),
            bars: BarMap::new(Arc::clone(&machine.spaces)),
            vectors: BTreeMap::new(),
            vfio: Vec::new(),
            function: Weak::new(),
        };
        let told = Mutex::new(told);
        Some((slots, Wires { machine, told }))
    }

    fn map(wires: &Wires, bar: u32, offset: u64, fd: i32) -> Result<HostReply> {
        wires.call(HostRequest::PciMap {
            bar,
            offset,
            size: 0x1000,
            fd,
            fd_offset: 0,
        })
    }

    fn mapped(wires: &Wires, bar: u32, offset: u64) -> Result<HostReply> {
        // The sender's own is closed at once.
        let fd: OwnedFd = memory(SIZE);
        map(wires, bar, offset, fd.as_raw_fd())
    }

    fn place(wires: &Wires, bar: u32, address: Option<u64>) {
        wires.call(HostRequest::PciBar { bar, address }).unwrap();
    }

    #[test]
    fn a_mapped_part_follows_its_bar_and_goes_with_the_function() {
        let Some((slots, wires)) = wires() else {
            return;
        };
        assert!(mapped(&wires, 0, 0).is_err(), "it is not realized");
        wires.lock().info = PciInfo {
            bar_sizes: [SIZE, SIZE, 0x2000, 0, 0, 0],
            port_bars: vec![2],
            ..PciInfo::default()
        };
        mapped(&wires, 0, 0x1000).unwrap();
        mapped(&wires, 1, 0).unwrap();
        assert_eq!(slots.places(), []);
        place(&wires, 0, Some(PLACE));
        assert_eq!(slots.places(), [(PLACE + 0x1000, 0x1000)]);
        // Where the other one is, a second one is not.
        place(&wires, 1, Some(PLACE + 0x2000));
        assert_eq!(slots.places(), [(PLACE + 0x1000, 0x1000)]);
        place(&wires, 0, Some(PLACE + SIZE));
        assert_eq!(slots.places(), [(PLACE + SIZE + 0x1000, 0x1000)]);
        mapped(&wires, 0, 0).unwrap();
        assert_eq!(slots.places().len(), 2);
        place(&wires, 0, None);
        assert_eq!(slots.places(), []);
        place(&wires, 0, Some(PLACE));
        for (bar, offset) in [(2, 0), (3, 0), (6, 0), (0, SIZE)] {
            assert!(mapped(&wires, bar, offset).is_err(), "BAR {bar}");
        }
        assert!(map(&wires, 0, 0x2000, -1).is_err());
        assert_eq!(slots.places().len(), 2);
        drop(wires);
        assert_eq!(slots.places(), []);
    }
}
