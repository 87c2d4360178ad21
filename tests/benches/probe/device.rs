//! A device to measure calls with. The plugin and the bench compile this same file, so that both
//! sides of the comparison do the same work.

use std::sync::{Mutex, PoisonError};

use baton_plugin_api::{
    BusClass, Config, Device, DeviceType, Host, PlatformDevice, PlatformInfo, Result,
};

/// What a register access costs beside the call itself.
pub struct Probe {
    plain: [u8; 8],
    shared: Mutex<[u8; 8]>,
}

/// Region of registers that nobody else uses: the cheapest device there can be.
pub const PLAIN: u32 = 0;
/// Region of registers behind a lock, as in every device that has a thread.
pub const SHARED: u32 = 1;

impl Device for Probe {
    fn device_type() -> DeviceType {
        DeviceType::new(
            "probe",
            BusClass::Platform,
            "Registers to measure calls with",
        )
    }

    fn create(_config: Config, _host: Host) -> Result<Self> {
        Ok(Self::new())
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }
}

impl PlatformDevice for Probe {
    fn platform(&self) -> PlatformInfo {
        PlatformInfo::default()
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        match region {
            PLAIN => fill(data, &self.plain, offset),
            SHARED => {
                let registers = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                fill(data, &registers, offset);
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, _region: u32, offset: u64, data: &[u8]) {
        if let (Some(register), Some(value)) = (self.plain.get_mut(offset as usize), data.first()) {
            *register = *value;
        }
    }
}

impl Probe {
    /// With registers that hold their numbers.
    pub fn new() -> Self {
        let registers = [0, 1, 2, 3, 4, 5, 6, 7];
        Self {
            plain: registers,
            shared: Mutex::new(registers),
        }
    }
}

fn fill(data: &mut [u8], registers: &[u8; 8], offset: u64) {
    for (byte, register) in data.iter_mut().zip(registers.iter().skip(offset as usize)) {
        *byte = *register;
    }
}
