//! A platform device of a plugin in the machine.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::bus::{PlatformInfo, Region};
use baton_plugin_api::protocol::{DeviceInfo, HostReply, HostRequest, StartArguments};
use baton_plugin_api::{Error, Result};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::bus::{AddressSpaces, BusDevice};
use super::interrupts::Interrupts;
use super::layout::IOAPIC_PINS;
use crate::fd::duplicate;
use crate::memory::Ram;
use crate::plugin::{Bridge, DeviceBridge, PluggedDevice};

/// A platform device, mapped and wired.
pub struct PlatformDevice {
    device: Mutex<PluggedDevice>,
    info: PlatformInfo,
    ram: Arc<Ram>,
    running: Mutex<bool>,
    /// Its bridge, which lives as long as the device.
    lines: Arc<Lines>,
}

/// The device's interrupt lines. A device may ask for one before the host knows which line of the
/// machine it is; it is wired once that is known.
struct Lines {
    interrupts: Arc<Interrupts>,
    vm: Arc<VmFd>,
    wiring: Mutex<Wiring>,
}

#[derive(Default)]
struct Wiring {
    events: BTreeMap<u32, EventFd>,
    info: Option<PlatformInfo>,
}

impl Lines {
    fn irqfd(&self, line: u32) -> Result<HostReply> {
        let mut wiring = self.lock();
        if line >= 32 {
            return Err(Error::invalid(format!("There is no interrupt line {line}")));
        }
        if !wiring.events.contains_key(&line) {
            let event = EventFd::new(vmm_sys_util::eventfd::EFD_CLOEXEC)
                .map_err(|e| Error::io("Cannot make an eventfd", &e))?;
            if let Some(info) = &wiring.info {
                self.wire(info, line, &event)?;
            }
            wiring.events.insert(line, event);
        }
        let event = &wiring.events[&line];
        duplicate(event.as_raw_fd())
            .map(crate::plugin::given)
            .map_err(|e| Error::io("Cannot duplicate an eventfd", &e))
    }

    fn wire(&self, info: &PlatformInfo, line: u32, event: &EventFd) -> Result<()> {
        let gsi = info
            .irqs
            .get(line as usize)
            .ok_or_else(|| Error::invalid(format!("The device has no interrupt line {line}")))?;
        self.interrupts
            .wire_line(*gsi, event)
            .map_err(|e| Error::invalid(e.to_string()))
    }

    fn know(&self, info: &PlatformInfo) -> Result<()> {
        let mut wiring = self.lock();
        for (&line, event) in &wiring.events {
            self.wire(info, line, event)?;
        }
        wiring.info = Some(info.clone());
        Ok(())
    }

    fn ioeventfd(&self, region: u32, offset: u64, width: u32, fd: i32) -> Result<HostReply> {
        let wiring = self.lock();
        let region = wiring
            .info
            .as_ref()
            .and_then(|info| info.regions.get(region as usize))
            .ok_or_else(|| Error::invalid(format!("The device has no region {region}")))?;
        if width != 0 {
            return Err(Error::invalid(
                "An ioeventfd of a platform device takes any width",
            ));
        }
        let address = match region.kind {
            baton_plugin_api::bus::RegionKind::Port => IoEventAddress::Pio(region.base + offset),
            baton_plugin_api::bus::RegionKind::Mmio => IoEventAddress::Mmio(region.base + offset),
        };
        let event = baton_plugin_api::fd::eventfd_from(
            duplicate(fd).map_err(|e| Error::io("Cannot duplicate an eventfd", &e))?,
        );
        self.vm
            .register_ioevent(&event, &address, NoDatamatch)
            .map_err(|e| Error::invalid(format!("KVM cannot register an ioeventfd: {e}")))?;
        Ok(HostReply::Done)
    }

    fn lock(&self) -> MutexGuard<'_, Wiring> {
        self.wiring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceBridge for Lines {
    fn call(&self, request: HostRequest) -> Result<HostReply> {
        match request {
            HostRequest::Irqfd { line } => self.irqfd(line),
            HostRequest::IoEventFd {
                region,
                offset,
                width,
                fd,
            } => self.ioeventfd(region, offset, width, fd),
            HostRequest::Failed { .. } => Ok(HostReply::Done),
            other => Err(Error::state(format!(
                "A platform device has no use for {other:?}"
            ))),
        }
    }

    fn set_irq(&self, line: u32, level: bool) {
        let gsi = self
            .lock()
            .info
            .as_ref()
            .and_then(|info| info.irqs.get(line as usize).copied());
        if let Some(gsi) = gsi {
            self.interrupts.set_line(gsi, level);
        }
    }
}

impl PlatformDevice {
    /// Realizes a created device and maps its regions.
    pub fn realize(
        mut device: PluggedDevice,
        bridge: &Bridge,
        vm: &Arc<VmFd>,
        interrupts: &Arc<Interrupts>,
        spaces: &AddressSpaces,
        ram: &Arc<Ram>,
    ) -> Result<Arc<Self>> {
        let lines = Arc::new(Lines {
            interrupts: Arc::clone(interrupts),
            vm: Arc::clone(vm),
            wiring: Mutex::default(),
        });
        bridge.install(Arc::clone(&lines) as _);
        let id = device.id().to_owned();
        let DeviceInfo::Platform(info) = device.realize()? else {
            return Err(device.not_of_its_class());
        };
        check(&info).map_err(|e| Error::invalid(e).in_device(&id))?;
        lines.know(&info).map_err(|e| e.in_device(&id))?;
        let this = Arc::new(Self {
            device: Mutex::new(device),
            info,
            ram: Arc::clone(ram),
            running: Mutex::new(false),
            lines,
        });
        for (index, region) in this.info.regions.iter().enumerate() {
            let decoder = Arc::new(Decoder {
                device: Arc::clone(&this),
                region: index as u32,
            });
            spaces
                .insert(region.kind, region.base, region.size, decoder)
                .map_err(|e| Error::invalid(e.to_string()).in_device(&id))?;
        }
        Ok(this)
    }

    /// What the device described itself as.
    pub fn info(&self) -> &PlatformInfo {
        &self.info
    }

    /// The services of its place, for another instance.
    pub fn bridge(&self) -> Arc<dyn DeviceBridge> {
        Arc::clone(&self.lines) as _
    }

    /// Puts another instance in its place; gives the one that was there.
    pub fn put(&self, new: PluggedDevice) -> PluggedDevice {
        std::mem::replace(&mut *self.lock(), new)
    }

    /// The guest runs from now on.
    pub fn start(&self) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !*running {
            let memory = self.ram.table();
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

    /// Back to power-on; the guest does not run.
    pub fn reset(&self) -> Result<()> {
        self.lock().reset()
    }

    /// Runs `f` on the device, whose register calls wait meanwhile.
    pub fn with_device<T>(&self, f: impl FnOnce(&mut PluggedDevice) -> T) -> T {
        f(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, PluggedDevice> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Decoder {
    device: Arc<PlatformDevice>,
    region: u32,
}

impl BusDevice for Decoder {
    fn name(&self) -> String {
        self.device.lock().id().to_owned()
    }

    #[inline]
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.lock().read(self.region, offset, data);
    }

    #[inline]
    fn write(&self, offset: u64, data: &[u8]) {
        self.device.lock().write(self.region, offset, data);
    }
}

fn check(info: &PlatformInfo) -> std::result::Result<(), String> {
    if let Some(irq) = info.irqs.iter().find(|irq| **irq >= IOAPIC_PINS) {
        return Err(format!(
            "Interrupt {irq} is none of the machine's {IOAPIC_PINS}"
        ));
    }
    let bad = |r: &&Region| {
        let end = r.base.checked_add(r.size);
        let limit = match r.kind {
            baton_plugin_api::bus::RegionKind::Port => 1 << 16,
            baton_plugin_api::bus::RegionKind::Mmio => 1 << 52,
        };
        r.size == 0 || end.is_none_or(|end| end > limit)
    };
    match info.regions.iter().find(bad) {
        Some(r) => Err(format!(
            "{:#x} bytes from {:#x} are no region",
            r.size, r.base
        )),
        None => Ok(()),
    }
}
