//! A serial port: a 16550A UART, at the ports and interrupts of a PC's COM1 to COM4.
//!
//! What the guest sends goes to the character device at once, in the vCPU's own write, as long as
//! it takes it; what it does not take waits in a bounded buffer for the device's thread. That
//! thread also feeds the guest's input. Neither ever waits for the other end.

mod output;
mod port;
mod state;
mod uart;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use baton_plugin_api::bus::{AcpiDevice, Region, RegionKind};
use baton_plugin_api::{
    BusClass, Chardev, Config, Device, DeviceThread, DeviceType, Direction, Error, GuestRam, Host,
    PlatformDevice, PlatformInfo, Property, PropertyKind, Result, Section, Stream, no_such_section,
    wire,
};

use output::Output;
use port::Port;
use state::{SerialSection, UnsentSection};

baton_plugin_api::export_plugin! {
    description: "A serial port: 16550A UART",
    devices: [platform IsaSerial],
}

const SECTION: &str = "serial";
const UNSENT: &str = "serial/unsent";
const PORTS: u64 = 8;
/// First port and interrupt of COM1 to COM4 on a PC.
const STANDARD: [(u64, u64); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

struct IsaSerial {
    id: String,
    chardev: Option<String>,
    index: u32,
    iobase: u64,
    irq: u32,
    host: Host,
    port: Option<Arc<Port>>,
    thread: Option<DeviceThread>,
}

impl Device for IsaSerial {
    fn device_type() -> DeviceType {
        let optional = |name, max, help| {
            let kind = PropertyKind::Uint { min: 0, max };
            Property::new(name, kind, help)
        };
        DeviceType {
            properties: vec![
                Property::new(
                    "chardev",
                    PropertyKind::Chardev,
                    "Where the guest's output goes and its input comes from; without it, nowhere",
                ),
                Property::uint("index", 0, 3, 0, "0 to 3 are COM1 to COM4"),
                optional("iobase", 0x1_0000 - PORTS, "First port, if not the usual"),
                optional("irq", 15, "Interrupt, if not the usual"),
            ],
            sections: vec![Section::new(SECTION, 1, 1).subsection("unsent", 1, 1)],
            ..DeviceType::new("isa-serial", BusClass::Platform, "Serial port (16550A)")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        let index = config.uint("index")?;
        let (iobase, irq) = usize::try_from(index)
            .ok()
            .and_then(|at| STANDARD.get(at))
            .ok_or_else(|| Error::invalid(format!("Property 'index' is {index}, say 0 to 3")))?;
        Ok(Self {
            chardev: config.string_if_said("chardev")?.map(str::to_owned),
            index: index as u32,
            iobase: config.uint_if_said("iobase")?.unwrap_or(*iobase),
            irq: config.uint_if_said("irq")?.unwrap_or(*irq) as u32,
            id: config.id,
            host,
            port: None,
            thread: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let chardev = match &self.chardev {
            Some(id) => self.host.chardev(id)?,
            None => Chardev::default(),
        };
        let stream = |fd: Option<_>, direction| {
            let open = |fd| Stream::new(fd, direction).map(Arc::new);
            fd.map(open).transpose()
        };
        let input = stream(chardev.input, Direction::Input)
            .map_err(|e| Error::io(self.about("Cannot look at the input of"), &e))?;
        let output = stream(chardev.output, Direction::Output)
            .map_err(|e| Error::io(self.about("Cannot look at the output of"), &e))?;
        let name = self.chardev.clone().unwrap_or_default();
        let output = Output::new(output, name, self.host.clone());
        self.port = Some(Arc::new(Port::new(input, output, self.host.irqfd(0)?)?));
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.port()?.reset();
        Ok(())
    }

    fn needed(&mut self, subsection: &str) -> bool {
        match (&self.port, subsection) {
            (Some(port), UNSENT) => !port.unsent().is_empty(),
            _ => true,
        }
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        match section {
            SECTION => wire::encode(&self.port()?.save()),
            UNSENT => wire::encode(&UnsentSection {
                bytes: self.port()?.unsent(),
            }),
            _ => Err(no_such_section(section)),
        }
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        match section {
            SECTION => {
                let section: SerialSection = wire::decode("the UART's state", data)?;
                self.port()?.load(section.try_into()?);
                Ok(())
            }
            UNSENT => {
                let section: UnsentSection = wire::decode("the unsent output", data)?;
                self.port()?.load_unsent(section.checked()?);
                Ok(())
            }
            _ => Err(no_such_section(section)),
        }
    }
}

impl PlatformDevice for IsaSerial {
    fn platform(&self) -> PlatformInfo {
        PlatformInfo {
            regions: vec![Region {
                kind: RegionKind::Port,
                base: self.iobase,
                size: PORTS,
            }],
            irqs: vec![self.irq],
            acpi: Some(AcpiDevice {
                name: format!("COM{}", self.index + 1),
                hid: "PNP0501".into(),
                uid: self.index + 1,
            }),
        }
    }

    fn read(&mut self, _region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(port) = &self.port {
            port.read(offset, data);
        }
    }

    fn write(&mut self, _region: u32, offset: u64, data: &[u8]) {
        if let Some(port) = &self.port {
            port.write(offset, data);
        }
    }

    fn start(&mut self, _memory: GuestRam) -> Result<()> {
        let port = self.port()?.clone();
        port.start()?;
        if port.needs_thread() {
            let body = move |waiter: &_| port.serve(waiter);
            self.thread = Some(DeviceThread::spawn(&self.id, self.host.clone(), body)?);
        }
        Ok(())
    }

    fn settle(&mut self) {
        self.thread.iter().for_each(DeviceThread::settle);
    }

    fn quiesce(&mut self) -> Result<()> {
        let outcome = self.thread.take().map_or(Ok(()), DeviceThread::stop);
        if let Some(port) = &self.port {
            port.quiesced();
        }
        outcome
    }
}

impl IsaSerial {
    fn port(&self) -> Result<&Arc<Port>> {
        self.port
            .as_ref()
            .ok_or_else(|| Error::state("It is not realized"))
    }

    fn about(&self, what: &str) -> String {
        format!("{what} chardev '{}'", self.chardev.as_deref().unwrap_or(""))
    }
}
