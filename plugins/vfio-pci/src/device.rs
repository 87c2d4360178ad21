//! The device as the host of the guest knows it.

use std::sync::Arc;

use baton_plugin_api::bus::CONFIG_REGION;
use baton_plugin_api::vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use baton_plugin_api::{
    Blocker, BusClass, Config, Device, DeviceThread, DeviceType, Error, Fd, GuestRam, Host,
    MigrationEvent, Mode, PciDevice, PciInfo, Result, Section, no_such_section, tracing, wire,
};

use crate::handover::{self, HandedOver, Handover};
use crate::hardware::BARS;
use crate::kernel::DmaRange;
use crate::opened::Opened;
use crate::properties::{self, Options};
use crate::state::VfioSection;
use crate::vfio::Vfio;

pub(crate) const SECTION: &str = "vfio-pci";

/// A device of the host, in the guest.
pub(crate) struct VfioPci {
    id: String,
    host: Host,
    options: Options,
    vfio: Arc<Vfio>,
    thread: Option<DeviceThread>,
    handover: Handover,
    opened: Option<Opened>,
}

impl Device for VfioPci {
    fn device_type() -> DeviceType {
        DeviceType {
            properties: properties::properties(),
            blockers: handover::blockers(),
            fds: handover::declarations(),
            sections: vec![Section::new(SECTION, 1, 1)],
            ..DeviceType::new(SECTION, BusClass::Pci, "A PCI device of the host (VFIO)")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        Self::with(&config, host, Vfio::shared())
    }

    fn realize(&mut self) -> Result<()> {
        let device = &self.options.device;
        let (hardware, adopted) = match HandedOver::claim(&self.host)? {
            Some(handed) => (self.vfio.adopt(device, handed)?, true),
            None => (self.vfio.open(device)?, false),
        };
        self.opened = Some(Opened::new(&self.host, hardware, adopted)?);
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.opened_mut()?.reset()
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let given = self.handover == Handover::Given;
        let opened = self.opened_mut()?;
        if given {
            // The guest stands still, and whoever is handed the device knows next where its memory is.
            // `start` takes that back.
            opened.hardware.group().container().take_addresses()?;
        }
        wire::encode(&VfioSection::new(&opened.emulated.function))
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let state: VfioSection = wire::decode("the device's state", data)?;
        self.opened_mut()?.load(&state)
    }

    fn blockers(&mut self, _mode: Mode) -> Vec<Blocker> {
        let opened = self.opened.as_ref();
        opened.map_or_else(Vec::new, |it| handover::blockers_of(&it.hardware))
    }

    fn fds(&mut self, mode: Mode) -> Vec<Fd> {
        let Some(opened) = self.opened.as_ref().filter(|_| mode.preserves_fds()) else {
            return Vec::new();
        };
        self.handover.give();
        handover::fds(&opened.hardware)
    }

    fn notify(&mut self, event: MigrationEvent) {
        if self.handover.notify(event)
            && let Some(opened) = &mut self.opened
        {
            opened.was_elsewhere();
        }
    }
}

impl PciDevice for VfioPci {
    fn pci(&self) -> PciInfo {
        let opened = self.opened.as_ref();
        opened.map_or_else(PciInfo::default, |it| it.emulated.function.info())
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(opened) = &self.opened else {
            return;
        };
        if region == CONFIG_REGION {
            opened.emulated.read(&opened.hardware, offset, data);
        } else if !opened.emulated.function.read(region, offset, data)
            && let Some(bar) = bar(region)
            && let Err(e) = opened.hardware.read_bar(bar, offset, data)
        {
            tracing::debug!("{e}");
            data.fill(0xff);
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let Some(opened) = &mut self.opened else {
            return;
        };
        if region == CONFIG_REGION {
            opened.emulated.write(&opened.hardware, offset, data);
            if let Err(e) = opened.follow() {
                self.host.failed(&e.message);
            }
        } else if !opened.emulated.function.write(region, offset, data)
            && let Some(bar) = bar(region)
            && let Err(e) = opened.hardware.write_bar(bar, offset, data)
        {
            tracing::debug!("{e}");
        }
    }

    fn start(&mut self, memory: GuestRam) -> Result<()> {
        let map = self.options.map;
        let given = self.handover == Handover::Given;
        let (id, host) = (self.id.clone(), self.host.clone());
        let opened = self.opened_mut()?;
        if given {
            opened.was_elsewhere();
        }
        let container = opened.hardware.group().container();
        container.map(&ranges(&memory)?)?;
        opened.resume()?;
        if map && !std::mem::replace(&mut opened.mapped, true) {
            opened.map_bars();
        }
        self.thread = opened.watch.start(&id, &host, &opened.hardware)?;
        Ok(())
    }

    /// The device itself goes on: nothing can hold up what a driver in the guest has told it to do, and
    /// it may write guest memory until the guest runs again. That is sound. The memory is pinned and
    /// stays mapped for the device until the container ends, not only until here; nobody in this process
    /// looks at it; and the guest expects such writes at any time. Whoever copies memory meanwhile would
    /// miss some, so that a mode that does is blocked.
    fn quiesce(&mut self) -> Result<()> {
        self.thread.take().map_or(Ok(()), DeviceThread::stop)
    }
}

impl VfioPci {
    /// A device of a certain VFIO.
    pub(crate) fn with(config: &Config, host: Host, vfio: Arc<Vfio>) -> Result<Self> {
        Ok(Self {
            options: Options::new(config)?,
            id: config.id.clone(),
            host,
            vfio,
            thread: None,
            handover: Handover::Idle,
            opened: None,
        })
    }

    fn opened_mut(&mut self) -> Result<&mut Opened> {
        let missing = || Error::state("It is not realized");
        self.opened.as_mut().ok_or_else(missing)
    }
}

fn bar(region: u32) -> Option<usize> {
    usize::try_from(region).ok().filter(|bar| *bar < BARS)
}

/// Guest memory, as a device finds it.
fn ranges(memory: &GuestRam) -> Result<Vec<DmaRange>> {
    let range = |region: &<GuestRam as GuestMemoryBackend>::R| {
        let start = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|e| Error::invalid(format!("Guest memory is not mapped: {e}")))?;
        Ok(DmaRange {
            iova: region.start_addr().0,
            size: region.len(),
            address: start as u64,
        })
    };
    memory.iter().map(range).collect()
}
