//! Devices with ports, MMIO and interrupt lines of the machine itself.

use serde::{Deserialize, Serialize};

use crate::abi::Adapter;
use crate::config::Config;
use crate::descriptor::DeviceType;
use crate::device::{Device, common_call};
use crate::error::Result;
use crate::host::Host;
use crate::memory::{GuestRam, guest_memory};
use crate::protocol::{DeviceInfo, Reply, Request};

/// What a platform device decodes and raises.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlatformInfo {
    /// The device's regions; reads and writes name one by its index.
    pub regions: Vec<Region>,
    /// Global system interrupts; lines of [`Host::irqfd`] and [`Host::set_irq`] are indices here.
    #[serde(default)]
    pub irqs: Vec<u32>,
    /// How ACPI describes it, if it does.
    #[serde(default)]
    pub acpi: Option<AcpiDevice>,
}

/// Ports or memory that a device decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Ports or memory.
    pub kind: RegionKind,
    /// The first port or address.
    pub base: u64,
    /// How many.
    pub size: u64,
}

/// The two address spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionKind {
    /// I/O ports.
    Port,
    /// Memory.
    Mmio,
}

/// An entry in the DSDT; its resources are the regions and interrupts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiDevice {
    /// Four characters.
    pub name: String,
    /// The hardware id, such as `PNP0501`.
    pub hid: String,
    /// The unique id among devices of one `hid`.
    #[serde(default)]
    pub uid: u32,
}

/// A platform device.
pub trait PlatformDevice: Device {
    /// What it decodes and raises; asked once, after `realize`.
    fn platform(&self) -> PlatformInfo;

    /// Reads a register: 1, 2, 4 or 8 bytes.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]);

    /// Writes a register: 1, 2, 4 or 8 bytes.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]);

    /// The guest runs; threads may be started.
    fn start(&mut self, memory: GuestRam) -> Result<()> {
        drop(memory);
        Ok(())
    }

    /// The guest is about to stop: tell threads to end, without waiting for them. Registers are
    /// still accessed.
    fn settle(&mut self) {}

    /// The guest has stopped; threads end.
    fn quiesce(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Makes an ABI device of a platform device.
pub struct PlatformAdapter<D>(D);

impl<D: PlatformDevice> Adapter for PlatformAdapter<D> {
    fn device_type() -> DeviceType {
        D::device_type()
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        D::create(config, host).map(Self)
    }

    fn call(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::Realize => {
                self.0.realize()?;
                Ok(Reply::Info(DeviceInfo::Platform(self.0.platform())))
            }
            Request::Start(arguments) => {
                #[allow(unsafe_code)]
                // SAFETY: the host keeps the regions mapped until `Quiesce`, by contract.
                let memory = unsafe { guest_memory(&arguments.memory) }?;
                self.0.start(memory).map(|()| Reply::Done)
            }
            Request::Settle => {
                self.0.settle();
                Ok(Reply::Done)
            }
            Request::Quiesce => self
                .0
                .quiesce()
                .map(|()| Reply::Quiesced { queues: Vec::new() }),
            other => common_call(&mut self.0, other).unwrap_or_else(|r| Err(r.unsupported())),
        }
    }

    #[inline]
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        self.0.read(region, offset, data);
    }

    #[inline]
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.0.write(region, offset, data);
    }
}
