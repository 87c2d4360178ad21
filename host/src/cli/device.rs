//! `-device`.

use serde_json::{Map, Value};

use crate::machine::pci::PciAddress;

use super::error::CliError;
use super::id::Id;
use super::number;
use super::pairs::Pairs;

/// The name of the PCI bus.
pub(super) const BUS: &str = "pcie.0";

/// A device to make. Its properties are text until the device type's descriptor is known: see
/// [`Backends::configure`](super::Backends::configure).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOption {
    /// The device type.
    pub driver: String,
    /// `id=`.
    pub id: Option<Id>,
    /// `addr=`: its place on PCI bus 0.
    pub address: Option<PciAddress>,
    /// `bus=`: `pcie.0`, or the bus of a device.
    pub bus: Option<String>,
    /// All other properties in the order said.
    pub properties: Vec<(String, String)>,
    /// What was said, for errors: the option and its value.
    pub origin: String,
    /// Whether it is one of `device_add`, and not of the command line.
    pub hotplugged: bool,
    /// What sits on its own bus; see [`seat`](super::children::seat).
    pub children: Vec<DeviceOption>,
}

impl DeviceOption {
    /// One value of `-device`: `NAME,key=value,...` or a JSON object.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let pairs = Pairs::parse_or_json(text, "driver")?;
        Self::read(pairs, format!("-device {text}"), false)
    }

    /// The arguments of the QMP command `device_add`.
    pub fn from_arguments(arguments: Map<String, Value>) -> Result<Self, String> {
        Self::read(Pairs::from_json(arguments)?, "device_add".to_owned(), true)
    }

    /// The arguments of `device_add` that a value of `-device` stands for.
    pub fn arguments_of(text: &str) -> Result<Map<String, Value>, String> {
        let pairs = Pairs::parse_or_json(text, "driver")?.rest();
        Ok(pairs
            .into_iter()
            .map(|(key, value)| (key, value.into()))
            .collect())
    }

    /// The arguments of `device_add` that ask for the same.
    pub fn arguments(&self) -> Map<String, Value> {
        let mut all = Map::new();
        let mut put = |key: &str, value: String| all.insert(key.to_owned(), value.into());
        put("driver", self.driver.clone());
        if let Some(id) = &self.id {
            put("id", id.to_string());
        }
        if let Some(bus) = &self.bus {
            put("bus", bus.clone());
        }
        if let Some(PciAddress { slot, function }) = self.address {
            put("addr", format!("{slot:x}.{function}"));
        }
        for (key, value) in &self.properties {
            put(key, value.clone());
        }
        all
    }

    fn read(mut pairs: Pairs, origin: String, hotplugged: bool) -> Result<Self, String> {
        let driver = pairs.require("driver")?;
        let id = pairs.take("id").map(|id| id.parse()).transpose()?;
        let address = pairs
            .take("addr")
            .map(|addr| pci_address(&addr))
            .transpose()?;
        let bus = pairs.take("bus");
        Ok(Self {
            driver,
            id,
            address,
            bus,
            properties: pairs.rest(),
            origin,
            hotplugged,
            children: Vec::new(),
        })
    }

    /// The same where it is known to be.
    pub fn pinned(&self, address: Option<PciAddress>) -> Self {
        Self {
            address,
            bus: address.map(|_| BUS.to_owned()),
            ..self.clone()
        }
    }

    /// It, and what sits on it.
    pub fn family(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.children)
    }

    /// A device that another option, `origin`, asks for.
    pub(super) fn implied(driver: &str, properties: &[(&str, &str)], origin: String) -> Self {
        Self {
            driver: driver.to_owned(),
            properties: properties
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            origin,
            ..Self::default()
        }
    }

    /// An error of this device.
    pub fn error(&self, reason: impl Into<String>) -> CliError {
        CliError::new(self.origin.clone(), reason)
    }
}

/// `SLOT` or `SLOT.FUNCTION`, both hexadecimal, as in QEMU.
fn pci_address(text: &str) -> Result<PciAddress, String> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let part = |text: &str, last| {
        number::digits(text.strip_prefix("0x").unwrap_or(text), 16)
            .and_then(|number| u8::try_from(number).ok())
            .filter(|number| *number <= last)
    };
    match part(slot, PciAddress::SLOTS - 1).zip(part(function, 7)) {
        Some((0, _)) => Err("PCI slot 0 is taken by the host bridge; use 1 to 1f".to_owned()),
        Some((slot, function)) => Ok(PciAddress { slot, function }),
        None => Err(format!(
            "Parameter 'addr' is '{text}'; it expects SLOT or SLOT.FUNCTION, hexadecimal, up to \
             1f.7"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_place_and_properties() {
        let texts = [
            "virtio-blk-pci,id=disk,bus=pcie.0,addr=0x1f.7,drive=d0,num-queues=4",
            r#"{"driver": "virtio-blk-pci", "id": "disk", "bus": "pcie.0", "addr": "1f.7",
                "drive": "d0", "num-queues": 4}"#,
        ];
        for text in texts {
            let device = DeviceOption::parse(text).unwrap();
            let address = PciAddress {
                slot: 31,
                function: 7,
            };
            assert_eq!(device.driver, "virtio-blk-pci");
            assert_eq!(device.id.unwrap().as_str(), "disk");
            assert_eq!(
                (device.address, device.bus.as_deref()),
                (Some(address), Some(BUS))
            );
            assert_eq!(
                device.properties,
                [("drive", "d0"), ("num-queues", "4")].map(|(k, v)| (k.into(), v.into()))
            );
        }
    }

    #[test]
    fn slots_are_hexadecimal() {
        let slot = |text: &str| pci_address(text).map(|address| address.slot);
        assert_eq!(slot("10"), Ok(16));
        assert_eq!(slot("0xa"), Ok(10));
    }

    #[test]
    fn places_that_are_not_there_are_refused() {
        for (text, reason) in [
            (
                "x,addr=0",
                "PCI slot 0 is taken by the host bridge; use 1 to 1f",
            ),
            (
                "x,addr=20",
                "Parameter 'addr' is '20'; it expects SLOT or SLOT.FUNCTION, hexadecimal, up to 1f.7",
            ),
            (
                "x,addr=1.8",
                "Parameter 'addr' is '1.8'; it expects SLOT or SLOT.FUNCTION, hexadecimal, up to 1f.7",
            ),
            ("id=x", "Parameter 'driver' is missing"),
            ("x,drive", "Expected '=' after parameter 'drive'"),
            (
                "x,id=1",
                "Parameter 'id' expects an identifier: letters, digits, '-', '.' and '_', \
                 starting with a letter",
            ),
        ] {
            assert_eq!(DeviceOption::parse(text).unwrap_err(), reason);
        }
    }
}
