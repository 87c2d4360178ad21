//! The device as the host of the guest knows it.

use std::sync::Arc;

use baton_plugin_api::bus::CONFIG_REGION;
use baton_plugin_api::pci::Enabled;
use baton_plugin_api::vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use baton_plugin_api::{
    Blocker, BusClass, Config, Device, DeviceThread, DeviceType, Error, ErrorKind, GuestRam, Host,
    Mode, PciDevice, PciInfo, Result, Section, no_such_section, tracing, wire,
};

use crate::config::COMMAND;
use crate::emulated::Emulated;
use crate::hardware::{BARS, Hardware};
use crate::interrupts::Interrupts;
use crate::kernel::DmaRange;
use crate::mapped;
use crate::properties::{self, Options};
use crate::state::VfioSection;
use crate::vfio::Vfio;
use crate::watch::{WARNING, Watch};

pub(crate) const SECTION: &str = "vfio-pci";

/// A device of the host, in the guest.
pub(crate) struct VfioPci {
    id: String,
    host: Host,
    options: Options,
    vfio: Arc<Vfio>,
    thread: Option<DeviceThread>,
    opened: Option<Opened>,
}

/// The device once it is open.
struct Opened {
    host: Host,
    emulated: Emulated,
    interrupts: Interrupts,
    watch: Watch,
    /// The guest's state has come from elsewhere, and the device does not know yet.
    loaded: bool,
    /// The host has been told what of the BARs is memory.
    mapped: bool,
    /// That it cannot be reset has been said.
    warned: bool,
    // What the others are for, so the last to end.
    hardware: Hardware,
}

impl Device for VfioPci {
    fn device_type() -> DeviceType {
        DeviceType {
            properties: properties::properties(),
            blockers: blockers(),
            sections: vec![Section::new(SECTION, 1, 1)],
            ..DeviceType::new(SECTION, BusClass::Pci, "A PCI device of the host (VFIO)")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        Self::with(&config, host, Vfio::shared())
    }

    fn realize(&mut self) -> Result<()> {
        let hardware = self.vfio.open(&self.options.device)?;
        self.opened = Some(Opened {
            host: self.host.clone(),
            emulated: Emulated::new(self.host.clone(), &hardware)?,
            interrupts: Interrupts::default(),
            watch: Watch::new(&hardware)?,
            loaded: false,
            mapped: false,
            warned: false,
            hardware,
        });
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.opened_mut()?.reset()
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        wire::encode(&VfioSection::new(&self.opened_mut()?.emulated.function))
    }

    /// Nothing goes to the device before the guest runs here: another process may be running it.
    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let state: VfioSection = wire::decode("the device's state", data)?;
        let opened = self.opened_mut()?;
        state.check(&opened.emulated.function)?;
        opened.emulated.function.load(&state.function)?;
        opened.loaded = true;
        Ok(())
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
        let (id, host) = (self.id.clone(), self.host.clone());
        let opened = self.opened_mut()?;
        opened.hardware.map(&ranges(&memory)?)?;
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
            opened: None,
        })
    }

    fn opened_mut(&mut self) -> Result<&mut Opened> {
        let missing = || Error::state("It is not realized");
        self.opened.as_mut().ok_or_else(missing)
    }
}

impl Opened {
    /// Lets the interrupts be as the guest has them.
    fn follow(&mut self) -> Result<()> {
        self.interrupts
            .follow(&self.hardware, &self.emulated.function)
    }

    /// The device becomes what the guest's state says, after that has come from elsewhere.
    fn resume(&mut self) -> Result<()> {
        self.emulated.follow_power(&self.hardware);
        self.emulated.write_command(&self.hardware)?;
        if !self.loaded {
            return self.follow();
        }
        let function = &self.emulated.function;
        self.interrupts.bind(&self.hardware, function)?;
        self.loaded = false;
        // Some may have come where the state is from, and after it was read.
        let (Some(Enabled::Msix(vectors)) | Some(Enabled::Msi(vectors))) = function.enabled()
        else {
            return Ok(());
        };
        (0..vectors).try_for_each(|vector| function.interrupt(vector))
    }

    /// Back to power-on. Nothing decodes, interrupts or reaches memory before the device is reset, which
    /// keeps the registers of config space.
    fn reset(&mut self) -> Result<()> {
        self.emulated.function.reset();
        self.interrupts.off(&self.hardware)?;
        self.loaded = false;
        self.hardware.write_config(COMMAND as u64, &[0; 2])?;
        match self.hardware.reset() {
            Ok(true) => {}
            Ok(false) if self.warned => {}
            Ok(false) => {
                self.warned = true;
                self.warn(&format!(
                    "{} has no way to be reset; it is only kept from memory and interrupts, and its \
                     driver has to do with what it finds",
                    self.hardware.name()
                ));
            }
            Err(e) => self.warn(&e.message),
        }
        self.emulated.follow_power(&self.hardware);
        Ok(())
    }

    /// Gives the guest what can be reached without an exit; the rest, or everything if the host does not
    /// know how, comes as accesses.
    fn map_bars(&self) {
        for (bar, region) in (0..).zip(self.hardware.bars()) {
            for (offset, size) in mapped::parts(bar, region, self.emulated.msix.as_ref()) {
                let at = region.offset + offset;
                match self.host.pci_map(bar, offset, size, self.hardware.fd(), at) {
                    Ok(()) => {}
                    Err(e) if e.kind == ErrorKind::Unsupported => return,
                    Err(e) => self.warn(&format!("Accesses to BAR {bar} are slow: {e}")),
                }
            }
        }
    }

    fn warn(&self, message: &str) {
        self.host.log(WARNING, module_path!(), message);
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

fn blockers() -> Vec<Blocker> {
    vec![
        Blocker {
            id: "vfio-normal".into(),
            reason: "VFIO migration is not supported in kernel".into(),
            remedy: "Take the device away with device_del first, and add one on the target".into(),
            modes: vec![Mode::Normal],
            unless_suspended: false,
        },
        Blocker {
            id: "vfio-at-work".into(),
            reason: "VFIO device only supports cpr-reboot for runstate suspended".into(),
            remedy: "Suspend the guest to RAM first".into(),
            modes: vec![Mode::CprReboot],
            unless_suspended: true,
        },
        Blocker {
            id: "vfio-live".into(),
            reason: "A VFIO device cannot be handed over".into(),
            remedy: "Take the device away with device_del first, and add it again afterwards"
                .into(),
            modes: vec![Mode::CprTransfer, Mode::CprExec],
            unless_suspended: false,
        },
    ]
}
