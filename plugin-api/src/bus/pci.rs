//! PCI functions with a config space, BARs and MSI-X of their own.

use serde::{Deserialize, Serialize};

use crate::abi::Adapter;
use crate::config::Config;
use crate::descriptor::DeviceType;
use crate::device::{Device, common_call};
use crate::error::Result;
use crate::host::Host;
use crate::memory::{GuestRam, guest_memory};
use crate::protocol::{DeviceInfo, Reply, Request};

/// The region number of config space in reads and writes; BARs are 0 to 5.
pub const CONFIG_REGION: u32 = u32::MAX;

/// What a PCI function needs of the host. Everything else is in its config space, which the host
/// reads and programs as a firmware does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PciInfo {
    /// How many MSI-X vectors it has, at most 2048. The messages of MSI are vectors, too.
    pub msix_vectors: u16,
    /// The size of each BAR in bytes, 0 for one that is not there.
    pub bar_sizes: [u64; 6],
    /// The BARs that decode ports; the others decode memory.
    #[serde(default)]
    pub port_bars: Vec<u32>,
}

/// A PCI function.
///
/// It tells the host of what the guest programs: [`Host::pci_bar`] whenever a BAR moves, begins or
/// ceases to decode, [`Host::msix_vector`] whenever a vector's message or mask changes. After
/// `load` it tells both anew. A [`Function`](crate::pci::Function) does all of this.
pub trait PciDevice: Device {
    /// What it needs; asked once, after `realize`.
    fn pci(&self) -> PciInfo;

    /// Reads config space ([`CONFIG_REGION`]) or a BAR.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]);

    /// Writes config space ([`CONFIG_REGION`]) or a BAR.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]);

    /// The guest runs; threads may be started and memory accessed.
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

/// Makes an ABI device of a PCI function.
pub struct PciAdapter<D>(D);

impl<D: PciDevice> Adapter for PciAdapter<D> {
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
                Ok(Reply::Info(DeviceInfo::Pci(self.0.pci())))
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

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        self.0.read(region, offset, data);
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.0.write(region, offset, data);
    }
}
