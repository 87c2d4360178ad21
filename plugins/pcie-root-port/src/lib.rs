//! A PCI Express root port (PCI Express 4.0 sections 1.3.1 and 7.5): a bridge whose bus stays empty.
//!
//! A guest finds a type 1 header, numbers the bus behind it and gives it windows, as with any bridge.
//! There is no slot: nothing can be plugged behind it.

#[cfg(test)]
mod tests;

use baton_plugin_api::pci::{
    BarKind, ConfigSpace, Function, FunctionState, Identity, MsixPlace, PORT_ROOT,
};
use baton_plugin_api::{
    BusClass, Config, Device, DeviceType, Error, GuestRam, Host, PciDevice, PciInfo, Property,
    Result, Section, no_such_section, wire,
};

baton_plugin_api::export_plugin! {
    description: "A PCI Express root port with nothing behind it",
    devices: [pci RootPort],
}

const SECTION: &str = "pcie-root-port";
/// The generic root port of QEMU's PCI ids (docs/specs/pci-ids.rst).
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x000c,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    class: 0x06_0400,
    revision: 0,
};
/// For events of the port itself, of which there are none: Linux's driver does not take a port that
/// cannot interrupt.
const MSIX: MsixPlace = MsixPlace {
    vectors: 1,
    bar: 0,
    table: 0,
    pending: 0x800,
};
const MSIX_SIZE: u64 = 0x1000;

struct RootPort {
    host: Host,
    port: u8,
    function: Option<Function>,
}

impl Device for RootPort {
    fn device_type() -> DeviceType {
        let number = "The port's number in its Link Capabilities register";
        DeviceType {
            sections: vec![Section::new(SECTION, 1, 1)],
            properties: vec![Property::uint("port", 0, 255, 0, number)],
            ..DeviceType::new("pcie-root-port", BusClass::Pci, "PCI Express root port")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        Ok(Self {
            host,
            // The host has checked the range.
            port: config.uint("port")? as u8,
            function: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let mut config = ConfigSpace::bridge(IDENTITY);
        config.add_bar(usize::from(MSIX.bar), BarKind::Memory32, MSIX_SIZE)?;
        config.add_express(PORT_ROOT, self.port)?;
        self.function = Some(Function::new(self.host.clone(), config, Some(MSIX))?);
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.function()?.reset();
        Ok(())
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        wire::encode(&self.function()?.state())
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let state: FunctionState = wire::decode("the port's state", data)?;
        self.function()?.load(&state)
    }
}

impl PciDevice for RootPort {
    fn pci(&self) -> PciInfo {
        self.function
            .as_ref()
            .map_or_else(PciInfo::default, Function::info)
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(function) = &self.function
            && !function.read(region, offset, data)
        {
            data.fill(0);
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        if let Some(function) = &mut self.function {
            function.write(region, offset, data);
        }
    }

    fn start(&mut self, _memory: GuestRam) -> Result<()> {
        Ok(())
    }

    fn quiesce(&mut self) -> Result<()> {
        Ok(())
    }
}

impl RootPort {
    fn function(&mut self) -> Result<&mut Function> {
        let missing = || Error::state("It is not realized");
        self.function.as_mut().ok_or_else(missing)
    }
}
