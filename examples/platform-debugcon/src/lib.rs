//! A debug console: what the guest writes to port 0xe9 goes to a character device.

use std::{fs::File, io::Write};

use baton_plugin_api::bus::{Region, RegionKind};
use baton_plugin_api::*;

export_plugin! { description: "A debug console", devices: [platform Debugcon] }

const PORT: u64 = 0xe9;

struct Debugcon {
    chardev: String,
    host: Host,
    output: Option<File>,
}

impl Device for Debugcon {
    fn device_type() -> DeviceType {
        let help = "Where the guest's output goes";
        DeviceType {
            properties: vec![Property::new("chardev", PropertyKind::Chardev, help).required()],
            ..DeviceType::new("isa-debugcon", BusClass::Platform, "Debug console")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        let chardev = config.string("chardev")?.to_owned();
        Ok(Self {
            chardev,
            host,
            output: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        self.output = self.host.chardev(&self.chardev)?.output.map(File::from);
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }
}

impl PlatformDevice for Debugcon {
    fn platform(&self) -> PlatformInfo {
        let region = Region {
            kind: RegionKind::Port,
            base: PORT,
            size: 1,
        };
        PlatformInfo {
            regions: vec![region],
            ..PlatformInfo::default()
        }
    }

    fn read(&mut self, _region: u32, _offset: u64, data: &mut [u8]) {
        // A guest that reads the port's own number knows that the console is there.
        data.fill(PORT as u8);
    }

    fn write(&mut self, _region: u32, _offset: u64, data: &[u8]) {
        // The guest waits for a reader, and a console nobody reads any more is no failure.
        let _ = self.output.as_mut().map(|output| output.write_all(data));
    }
}

#[cfg(test)]
mod tests;
