//! Devices of a kernel that is not there, as a host drives them.

mod access;
mod fake;
mod garbage;
mod handover;
mod interrupts;
mod life;
mod opening;
mod state;

use std::sync::Arc;

use baton_plugin_api::bus::CONFIG_REGION;
use baton_plugin_api::testing::{TestHost, config_of};
use baton_plugin_api::{Device, PciDevice, Value};

use crate::device::VfioPci;
use crate::kernel::Irq;
use crate::vfio::Vfio;
use fake::{Fake, FakeDevice};

const NAME: &str = "0000:01:00.0";
const POWER: u64 = 0x40;
const MSI: u64 = 0x50;
const MSIX: u64 = 0x70;
const EXPRESS: u64 = 0x80;
const VECTORS: u32 = 5;
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;

/// A network card: registers and the MSI-X structures in a BAR of 64 bits, ports, power management, MSI,
/// MSI-X, and PCI Express with extended capabilities.
fn card() -> FakeDevice {
    let mut card = FakeDevice::new([0x8000, 0, 0x20, 0, 0x1000, 0]);
    card.put(0x00, &[0x86, 0x80, 0x21, 0x15]);
    card.put(0x06, &[0x18, 0x00]);
    card.put(0x08, &[0x01, 0x00, 0x00, 0x02, 0x10, 0x00, 0x80]);
    card.put(0x10, &[0x04, 0, 0, 0xfe, 0, 0, 0, 0, 0x01, 0xe0]);
    card.put(0x20, &[0, 0, 0x10, 0xfe]);
    card.put(0x2c, &[0x86, 0x80, 0x02, 0x00, 0x01, 0x00, 0xf0, 0xff]);
    card.put(0x34, &[POWER as u8]);
    card.put(0x3c, &[0x0b, 0x01]);
    card.put(POWER as usize, &[0x01, MSI as u8, 0x23, 0xc8, 0x08, 0x20]);
    card.config_writable[POWER as usize + 4] = 0x03;
    // 64 bits, maskable, 4 messages.
    card.put(MSI as usize, &[0x05, MSIX as u8, 0x84, 0x01]);
    card.put(
        MSIX as usize,
        &[0x11, EXPRESS as u8, VECTORS as u8 - 1, 0x00],
    );
    card.put(MSIX as usize + 4, &(TABLE as u32).to_le_bytes());
    card.put(MSIX as usize + 8, &(PENDING as u32).to_le_bytes());
    // Version 2, an endpoint; its Device Control, and its link.
    card.put(EXPRESS as usize, &[0x10, 0x00, 0x02, 0x00]);
    card.config_writable[EXPRESS as usize + 8..EXPRESS as usize + 10].fill(0xff);
    card.put(
        EXPRESS as usize + 0x0c,
        &[0x42, 0xf4, 0x42, 0x00, 0x40, 0, 0x42, 0x10],
    );
    // Alternative routing ids, error reporting, SR-IOV, a serial number.
    card.put(0x100, &[0x0e, 0x00, 0x01, 0x14]);
    card.put(0x140, &[0x01, 0x00, 0x02, 0x18]);
    card.put(0x180, &[0x10, 0x00, 0x01, 0x1a]);
    card.put(0x1a0, &[0x03, 0x00, 0x01, 0x00]);
    let irqs = [
        (Irq::Msi, 4),
        (Irq::Msix, VECTORS),
        (Irq::Error, 1),
        (Irq::Request, 1),
    ];
    card.irqs.extend(irqs);
    card
}

/// A device, its host, and the kernel behind it.
struct Bench {
    kernel: Arc<Fake>,
    vfio: Arc<Vfio>,
    host: Arc<TestHost>,
    device: VfioPci,
}

impl Bench {
    /// With a realized card.
    fn new() -> Self {
        Self::with(card(), &[])
    }

    fn with(card: FakeDevice, said: &[(&str, Value)]) -> Self {
        let kernel = Fake::new([(NAME, card)]);
        let vfio = Vfio::new(Arc::clone(&kernel) as _);
        let host = TestHost::new();
        let mut device = device(&vfio, &host, said);
        device.realize().unwrap();
        kernel.calls();
        Self {
            kernel,
            vfio,
            host,
            device,
        }
    }

    fn read(&mut self, region: u32, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.read(region, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn config(&mut self, offset: u64) -> u32 {
        self.read(CONFIG_REGION, offset, 4) as u32
    }

    fn set(&mut self, offset: u64, data: &[u8]) {
        self.device.write(CONFIG_REGION, offset, data);
    }

    fn card<T>(&self, f: impl FnOnce(&mut FakeDevice) -> T) -> T {
        f(self.kernel.state().devices.get_mut(NAME).unwrap())
    }

    /// BAR 0 at an address, decoding, and the device may reach memory.
    fn place(&mut self, address: u64) {
        self.set(0x10, &address.to_le_bytes()[..4]);
        self.set(0x14, &address.to_le_bytes()[4..]);
        self.set(0x04, &[0x06, 0x04]);
    }

    /// Programs a vector, masked or not.
    fn program(&mut self, vector: u64, masked: bool) {
        let entry = TABLE + vector * 16;
        let data = 0x40 + vector as u32;
        self.device.write(0, entry, &0xfee0_0000u64.to_le_bytes());
        self.device.write(0, entry + 8, &data.to_le_bytes());
        let control = u32::from(masked);
        self.device.write(0, entry + 12, &control.to_le_bytes());
    }

    fn enable_msix(&mut self, on: bool) {
        self.set(MSIX + 2, &[0, if on { 0x80 } else { 0 }]);
    }
}

fn device(vfio: &Arc<Vfio>, host: &Arc<TestHost>, said: &[(&str, Value)]) -> VfioPci {
    let mut all = vec![("host", Value::String(NAME.to_owned()))];
    all.extend_from_slice(said);
    let config = config_of::<VfioPci>("vfio0", &all);
    VfioPci::with(&config, host.host(), Arc::clone(vfio)).unwrap()
}
