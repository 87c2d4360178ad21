//! What of a device's config space is emulated, and what goes to the device.
//!
//! Emulated is what the host uses for itself, or what a guest without it must not see: BARs, MSI, MSI-X,
//! the lists of capabilities. A bit that is emulated is in `own`. The kernel's driver guards the rest,
//! as power management and function level reset.

use baton_plugin_api::bus::CONFIG_REGION;
use baton_plugin_api::pci::{ConfigSpace, Function, Msi, Msix, MsixLayout};
use baton_plugin_api::{Error, Host, Result, tracing};

use crate::config::{BAR0, COMMAND, HEADER_TYPE, RealConfig, SIZE, STATUS, id};
use crate::hardware::{BARS, Hardware};
use crate::kernel::Irq;

/// I/O and memory: whether BARs decode.
const DECODE: u8 = 0x3;
/// What of the command register the guest's state has: those, bus mastering, and INTx disable.
const COMMAND_OWN: u16 = 0x0407;
/// That there are capabilities, and that INTx is pending, which it never is.
const STATUS_OWN: u16 = 1 << 4 | 1 << 3;
/// Power Management Control/Status, and its power state.
const POWER_CONTROL: usize = 4;
const POWER_STATE: u8 = 0x3;
/// The device's type in the PCI Express capability: an endpoint, one of old, and one that is integrated
/// into the root complex, as are all on a bus without ports.
const EXPRESS_TYPE: u8 = 0xf0;
const ENDPOINTS: [u8; 2] = [0x00, 0x10];
const INTEGRATED: u8 = 0x90;
/// Alternative routing ids, SR-IOV, and BARs that can be resized: they change what others see.
const HIDDEN: [u16; 4] = [0x000e, 0x0010, 0x0015, 0x0024];

/// The emulated part in front of the device.
pub(crate) struct Emulated {
    pub(crate) function: Function,
    own: Vec<u8>,
    /// Where the register of the power state is.
    power: Option<usize>,
    pub(crate) msix: Option<MsixLayout>,
}

struct Builder {
    config: ConfigSpace,
    own: Vec<u8>,
    power: Option<usize>,
    msi: Option<Msi>,
    msix: Option<(Msix, MsixLayout)>,
}

impl Emulated {
    /// Reads what the device is.
    pub(crate) fn new(host: Host, hardware: &Hardware) -> Result<Self> {
        let size = (hardware.config_size() as usize).min(SIZE);
        let mut bytes = vec![0; size];
        // As registers are read; the kernel takes no more than a few at once.
        for (at, register) in bytes.chunks_mut(4).enumerate() {
            hardware.read_config(at as u64 * 4, register)?;
        }
        let real = RealConfig::new(bytes)?;
        let mut builder = Builder {
            config: ConfigSpace::new(real.identity()),
            own: vec![0; SIZE],
            power: None,
            msi: None,
            msix: None,
        };
        builder.header();
        builder.bars(&real, hardware)?;
        for (at, id) in real.capabilities() {
            builder.capability(&real, hardware, at, id)?;
        }
        builder.extended(&real)?;
        let Builder {
            config, own, power, ..
        } = builder;
        let (msix, layout) = builder.msix.unzip();
        Ok(Self {
            function: Function::with_interrupts(host, config, msix, builder.msi)?,
            own,
            power,
            msix: layout,
        })
    }

    /// Reads config space.
    pub(crate) fn read(&self, hardware: &Hardware, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(own) = self.own_of(offset, data.len()) else {
            return;
        };
        let mut real = vec![0; data.len()];
        if own.iter().any(|own| *own != 0xff)
            && let Err(e) = hardware.read_config(offset, &mut real)
        {
            tracing::debug!("{e}");
            real.fill(0xff);
        }
        self.function.read(CONFIG_REGION, offset, data);
        for ((byte, real), own) in data.iter_mut().zip(real).zip(own) {
            *byte = *byte & own | real & !own;
        }
    }

    /// Writes config space. The device decodes a BAR before the guest sees it, and as long as it does.
    pub(crate) fn write(&mut self, hardware: &Hardware, offset: u64, data: &[u8]) {
        let Some(own) = self.own_of(offset, data.len()).map(<[u8]>::to_vec) else {
            return;
        };
        let at = |register: usize| {
            let at = (register as u64).checked_sub(offset)? as usize;
            (at < data.len()).then_some(at)
        };
        let decodes = self.function.config().u16_at(COMMAND) as u8 & DECODE;
        let mut first = data.to_vec();
        if let Some(at) = at(COMMAND) {
            first[at] |= decodes;
        }
        let power = self.power.and_then(at);
        if power.is_some_and(|at| data[at] & POWER_STATE != 0) {
            self.function.set_asleep(true);
        }
        // Runs of bytes that are not emulated as a whole.
        let mut from = 0;
        while from < data.len() {
            let len = own[from..].iter().take_while(|own| **own != 0xff).count();
            if len > 0 {
                put(hardware, offset + from as u64, &first[from..from + len]);
            }
            from += len.max(1);
        }
        self.function.write(CONFIG_REGION, offset, data);
        if let Some(at) = at(COMMAND)
            && first[at] != data[at]
        {
            put(hardware, COMMAND as u64, &data[at..=at]);
        }
        if power.is_some() {
            self.follow_power(hardware);
        }
    }

    /// The device's power state decides whether BARs decode; it need not be what was written.
    pub(crate) fn follow_power(&mut self, hardware: &Hardware) {
        let Some(at) = self.power else {
            return;
        };
        let mut state = [0];
        if let Err(e) = hardware.read_config(at as u64, &mut state) {
            tracing::debug!("{e}");
        }
        self.function.set_asleep(state[0] & POWER_STATE != 0);
    }

    /// Gives the device the command register that the guest has set, unless it has it.
    pub(crate) fn write_command(&self, hardware: &Hardware) -> Result<()> {
        let mut real = [0; 2];
        hardware.read_config(COMMAND as u64, &mut real)?;
        let real = u16::from_le_bytes(real);
        let wanted = self.function.config().u16_at(COMMAND) & COMMAND_OWN | real & !COMMAND_OWN;
        if wanted != real {
            hardware.write_config(COMMAND as u64, &wanted.to_le_bytes())?;
        }
        Ok(())
    }

    fn own_of(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.own.get(start..start.checked_add(len)?)
    }
}

fn put(hardware: &Hardware, offset: u64, data: &[u8]) {
    if let Err(e) = hardware.write_config(offset, data) {
        tracing::debug!("{e}");
    }
}

impl Builder {
    fn own(&mut self, at: usize, mask: &[u8]) {
        for (own, mask) in self.own[at..].iter_mut().zip(mask) {
            *own |= mask;
        }
    }

    /// Everything but what the device's own logic answers with. The function is one of its own to the
    /// guest: not the first of many, without INTx, for which there is no line, and without a ROM.
    fn header(&mut self) {
        self.own(0x00, &[0xff; 4]);
        self.own(COMMAND, &COMMAND_OWN.to_le_bytes());
        self.own(STATUS, &STATUS_OWN.to_le_bytes());
        self.own(0x08, &[0xff; 4]);
        self.own(HEADER_TYPE, &[0xff]);
        self.own(BAR0, &[0xff; 0x18]);
        // Subsystem, ROM, the pointer to capabilities, the interrupt's line and pin.
        self.own(0x2c, &[0xff; 0x12]);
    }

    fn bars(&mut self, real: &RealConfig, hardware: &Hardware) -> Result<()> {
        for (bar, region) in hardware.bars().iter().enumerate() {
            if region.size != 0 {
                self.config.add_bar(bar, real.bar_kind(bar), region.size)?;
            }
        }
        Ok(())
    }

    fn capability(
        &mut self,
        real: &RealConfig,
        hardware: &Hardware,
        at: usize,
        id: u8,
    ) -> Result<()> {
        match id {
            id::MSI if hardware.irqs(Irq::Msi)? > 0 => {
                let layout = real.msi(at);
                self.msi = Some(Msi::place(&mut self.config, at, layout)?);
                self.own(at, &vec![0xff; layout.size()]);
            }
            id::MSIX if hardware.irqs(Irq::Msix)? > 0 => {
                let layout = real.msix(at);
                self.check_msix(&layout)?;
                let msix = Msix::place(&mut self.config, at, layout)?;
                self.msix = Some((msix, layout));
                self.own(at, &[0xff; 12]);
            }
            // Without interrupts that VFIO can deliver they are no use to the guest.
            id::MSI | id::MSIX => {}
            id::EXPRESS => self.express(real, at)?,
            _ => {
                self.config.place_capability(at, id, &[], &[])?;
                self.own(at, &[0xff; 2]);
                if id == id::POWER {
                    self.power = Some(at + POWER_CONTROL);
                }
            }
        }
        Ok(())
    }

    fn check_msix(&self, layout: &MsixLayout) -> Result<()> {
        let within = |(bar, start): (u8, u32), len: u64| {
            usize::from(bar) < BARS && u64::from(start) + len <= self.config.bar_size(bar.into())
        };
        let fits = within(layout.table, layout.table_len())
            && within(layout.pending, layout.pending_len());
        if fits {
            return Ok(());
        }
        Err(Error::invalid(
            "The host device's MSI-X table lies outside of its BARs; it cannot be passed through",
        ))
    }

    /// The guest's bus has no ports: an endpoint there is part of the root complex, and has no link.
    fn express(&mut self, real: &RealConfig, at: usize) -> Result<()> {
        let flags = real.u8(at + 2);
        let integrated = ENDPOINTS.contains(&(flags & EXPRESS_TYPE));
        let shown = if integrated {
            flags & !EXPRESS_TYPE | INTEGRATED
        } else {
            flags
        };
        self.config
            .place_capability(at, id::EXPRESS, &[shown], &[])?;
        self.own(at, &[0xff; 3]);
        if integrated {
            // Link Capabilities, Control and Status, and in version 2 their second ones.
            self.own(at + 0x0c, &[0xff; 8]);
            if flags & 0xf >= 2 {
                self.own(at + 0x2c, &[0xff; 8]);
            }
        }
        Ok(())
    }

    fn extended(&mut self, real: &RealConfig) -> Result<()> {
        for (nth, found) in real.extended().iter().enumerate() {
            let hidden = HIDDEN.contains(&found.id);
            if hidden && nth > 0 {
                continue;
            }
            // The first one stays as a link to the others, and is nothing.
            let (id, version) = if hidden {
                (0, 0)
            } else {
                (found.id, found.version)
            };
            self.config.place_extended(found.at, id, version)?;
            self.own(found.at, &[0xff; 4]);
        }
        Ok(())
    }
}
