//! A device that is open.

use baton_plugin_api::pci::Enabled;
use baton_plugin_api::{Error, ErrorKind, Host, Result};

use crate::config::COMMAND;
use crate::emulated::Emulated;
use crate::hardware::Hardware;
use crate::interrupts::Interrupts;
use crate::mapped;
use crate::state::VfioSection;
use crate::watch::{WARNING, Watch};

/// The device once it is open.
pub(crate) struct Opened {
    host: Host,
    pub(crate) emulated: Emulated,
    interrupts: Interrupts,
    pub(crate) watch: Watch,
    /// It was handed over, at work.
    adopted: bool,
    /// Another instance may have run the device since it last did what the guest's state says.
    elsewhere: bool,
    /// The host has been told what of the BARs is memory.
    pub(crate) mapped: bool,
    /// That it cannot be reset has been said.
    warned: bool,
    // What the others are for, so the last to end.
    pub(crate) hardware: Hardware,
}

impl Opened {
    /// Asks what there is; changes nothing.
    pub(crate) fn new(host: &Host, hardware: Hardware, adopted: bool) -> Result<Self> {
        tell_kvm(host, &hardware)?;
        Ok(Self {
            host: host.clone(),
            emulated: Emulated::new(host.clone(), &hardware)?,
            interrupts: Interrupts::default(),
            watch: Watch::new(&hardware)?,
            adopted,
            elsewhere: false,
            mapped: false,
            warned: false,
            hardware,
        })
    }

    /// Takes the emulated part's state. Nothing goes to the device before the guest runs here: another
    /// process may be running it.
    pub(crate) fn load(&mut self, state: &VfioSection) -> Result<()> {
        state.check(&self.emulated.function)?;
        self.emulated.function.load(&state.function)?;
        if self.adopted {
            self.interrupts.are_on(&self.emulated.function);
        }
        self.elsewhere = true;
        Ok(())
    }

    /// Another instance may have run the device.
    pub(crate) fn was_elsewhere(&mut self) {
        self.elsewhere = true;
    }

    /// Lets the interrupts be as the guest has them.
    pub(crate) fn follow(&mut self) -> Result<()> {
        self.interrupts
            .follow(&self.hardware, &self.emulated.function)
    }

    /// The guest runs: the device becomes what its state says, where it may have been another instance's.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.emulated.follow_power(&self.hardware);
        self.emulated.write_command(&self.hardware)?;
        if !self.elsewhere {
            return self.follow();
        }
        let function = &self.emulated.function;
        self.interrupts.bind(&self.hardware, function)?;
        self.elsewhere = false;
        // Some may have come to the other instance, and after its state was read.
        let (Some(Enabled::Msix(vectors)) | Some(Enabled::Msi(vectors))) = function.enabled()
        else {
            return Ok(());
        };
        (0..vectors).try_for_each(|vector| function.interrupt(vector))
    }

    /// Back to power-on. Nothing decodes, interrupts or reaches memory before the device is reset, which
    /// keeps the registers of config space.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.emulated.function.reset();
        self.interrupts.off(&self.hardware)?;
        self.elsewhere = false;
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
    pub(crate) fn map_bars(&self) {
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

/// Has KVM know of the group. After the device is open: the kernel would tie an open device to the VM of
/// this process for good.
fn tell_kvm(host: &Host, hardware: &Hardware) -> Result<()> {
    let group = hardware.group();
    match host.vfio_file(group.fd()) {
        Err(e) if !group.container().is_coherent() => Err(Error::invalid(format!(
            "The host's IOMMU does not keep this device's DMA coherent with the caches \
             (VFIO_DMA_CC_IOMMU), and KVM cannot be told: {}; use a newer Baton, or put the device \
             behind another IOMMU",
            e.message
        ))),
        _ => Ok(()),
    }
}
