//! An opened device.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use baton_plugin_api::vmm_sys_util::eventfd::EventFd;
use baton_plugin_api::{Error, Result};

use crate::container::Group;
use crate::kernel::{Irq, Kernel, Region};
use crate::properties::HostDevice;

/// How many BARs a function has.
pub(crate) const BARS: usize = 6;
/// VFIO_PCI_CONFIG_REGION_INDEX.
const CONFIG: u32 = 7;

/// A device with its regions. Dropped, it is the host's again once nobody else has its descriptor.
pub(crate) struct Hardware {
    kernel: Arc<dyn Kernel>,
    // Closed before its group.
    fd: OwnedFd,
    group: Arc<Group>,
    name: String,
    resets: bool,
    bars: [Region; BARS],
    config: Region,
}

impl Hardware {
    /// Asks what there is; changes nothing.
    pub(crate) fn new(
        kernel: Arc<dyn Kernel>,
        fd: OwnedFd,
        group: Arc<Group>,
        device: &HostDevice,
    ) -> Result<Self> {
        let what = || format!("Cannot tell what device {} is", device.name);
        let info = kernel
            .device_info(fd.as_fd())
            .map_err(|e| Error::io(what(), &e))?;
        if !info.pci {
            return Err(Error::invalid(format!(
                "Device {} is not on PCI; name one that lspci lists",
                device.name
            )));
        }
        let region = |index| {
            let region = kernel.region(fd.as_fd(), index);
            region.map_err(|e| Error::io(what(), &e))
        };
        let mut bars: [Region; BARS] = Default::default();
        for (index, bar) in bars.iter_mut().enumerate() {
            *bar = region(index as u32)?;
        }
        let config = region(CONFIG)?;
        Ok(Self {
            kernel,
            fd,
            group,
            name: device.name.clone(),
            resets: info.resets,
            bars,
            config,
        })
    }

    /// Its address in the host.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn bars(&self) -> &[Region; BARS] {
        &self.bars
    }

    /// Bytes of config space.
    pub(crate) fn config_size(&self) -> u64 {
        self.config.size
    }

    /// The descriptor that BARs can be mapped from.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.read(&self.config, offset, data)
    }

    pub(crate) fn write_config(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write(&self.config, offset, data)
    }

    pub(crate) fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) -> Result<()> {
        self.read(&self.bars[bar], offset, data)
    }

    pub(crate) fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Result<()> {
        self.write(&self.bars[bar], offset, data)
    }

    fn read(&self, region: &Region, offset: u64, data: &mut [u8]) -> Result<()> {
        let at = place(region, offset, data.len())?;
        self.kernel
            .read(self.fd.as_fd(), at, data)
            .map_err(|e| Error::io(format!("Cannot read a register at {offset:#x}"), &e))
    }

    fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<()> {
        let at = place(region, offset, data.len())?;
        self.kernel
            .write(self.fd.as_fd(), at, data)
            .map_err(|e| Error::io(format!("Cannot write a register at {offset:#x}"), &e))
    }

    /// How many interrupts of a kind it has.
    pub(crate) fn irqs(&self, kind: Irq) -> Result<u32> {
        self.kernel
            .irqs(self.fd.as_fd(), kind)
            .map_err(|e| Error::io("Cannot tell the device's interrupts", &e))
    }

    /// Lets the first interrupts of a kind signal these eventfds, or switches the kind off with none.
    /// Gives how many signal now, which may be fewer.
    pub(crate) fn set_irqs(&self, kind: Irq, events: &[EventFd]) -> Result<usize> {
        let fds: Vec<RawFd> = events.iter().map(AsRawFd::as_raw_fd).collect();
        let set = |fds: &[RawFd]| {
            let possible = self.kernel.set_irqs(self.fd.as_fd(), kind, fds);
            possible.map_err(|e| Error::io("Cannot set up the device's interrupts", &e))
        };
        match set(&fds)? as usize {
            0 => Ok(fds.len()),
            fewer if fewer < fds.len() && set(&fds[..fewer])? == 0 => Ok(fewer),
            _ => Err(Error::invalid("The host has no interrupts for it")),
        }
    }

    /// Resets it; false if it has no way to.
    pub(crate) fn reset(&self) -> Result<bool> {
        if !self.resets {
            return Ok(false);
        }
        self.kernel
            .reset(self.fd.as_fd())
            .map_err(|e| Error::io(format!("Cannot reset device {}", self.name), &e))?;
        Ok(true)
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }
}

/// Where an access of `len` bytes at `offset` of a region is in the descriptor.
fn place(region: &Region, offset: u64, len: usize) -> Result<u64> {
    let end = offset.checked_add(len as u64);
    if end.is_some_and(|end| end <= region.size) {
        return Ok(region.offset + offset);
    }
    Err(Error::invalid(format!(
        "There is no register at {offset:#x}"
    )))
}
