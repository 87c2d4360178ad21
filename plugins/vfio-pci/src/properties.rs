//! Which device of the host: `host=` or `sysfsdev=`.

use std::path::{Path, PathBuf};

use baton_plugin_api::{Config, Error, Property, PropertyKind, Result};

const HOST: &str = "host";
const SYSFSDEV: &str = "sysfsdev";
const NO_MMAP: &str = "x-no-mmap";
/// Where the kernel lists PCI devices.
pub(crate) const DEVICES: &str = "/sys/bus/pci/devices";
const LONGEST: u32 = 4096;

/// A PCI device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Its address, as in `0000:01:00.0`.
    pub(crate) name: String,
    /// Its folder in sysfs.
    pub(crate) folder: PathBuf,
}

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) device: HostDevice,
    /// Whether BARs may be memory of the guest, and not only registers.
    pub(crate) map: bool,
}

pub(crate) fn properties() -> Vec<Property> {
    let text = PropertyKind::String { max_len: LONGEST };
    vec![
        Property::new(
            HOST,
            text.clone(),
            "The device's address: [DDDD:]BB:DD.F, as lspci -D shows it",
        ),
        Property::new(SYSFSDEV, text, "The device's folder in sysfs instead"),
        Property::bool(
            NO_MMAP,
            false,
            "Lets every access to a BAR come to the plugin, to see what a driver does",
        ),
    ]
}

impl Options {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let said = (
            config.string_if_said(HOST)?,
            config.string_if_said(SYSFSDEV)?,
        );
        let device = match said {
            (Some(host), None) => HostDevice::at(host)?,
            (None, Some(folder)) => HostDevice::in_folder(Path::new(folder))?,
            (None, None) => {
                return Err(Error::invalid(
                    "No host device provided; say host=DDDD:BB:DD.F or sysfsdev=PATH (lspci -D lists \
                     the devices)",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "Both host= and sysfsdev= are said; say one of them",
                ));
            }
        };
        Ok(Self {
            device,
            map: !config.bool(NO_MMAP)?,
        })
    }
}

impl HostDevice {
    fn at(said: &str) -> Result<Self> {
        let name = address(said).ok_or_else(|| {
            Error::invalid(format!(
                "host={said} is no PCI address; say [DDDD:]BB:DD.F, as lspci -D shows it"
            ))
        })?;
        Ok(Self {
            folder: Path::new(DEVICES).join(&name),
            name,
        })
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let last = folder.file_name().and_then(|name| name.to_str());
        let name = last.and_then(|last| address(last).filter(|name| name == last));
        let name = name.ok_or_else(|| {
            Error::invalid(format!(
                "sysfsdev={} is no PCI device's folder; say {DEVICES}/DDDD:BB:DD.F",
                folder.display()
            ))
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            name,
        })
    }
}

/// A PCI address as the kernel writes it.
fn address(said: &str) -> Option<String> {
    let (rest, function) = said.rsplit_once('.')?;
    let mut parts = rest.rsplit(':');
    let (slot, bus, domain) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0"));
    if parts.next().is_some() {
        return None;
    }
    let number = |text: &str, most: u32| {
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
        let value = u32::from_str_radix(text, 16).ok()?;
        (digits && value <= most).then_some(value)
    };
    let domain = number(domain, u32::MAX)?;
    let (bus, slot) = (number(bus, 0xff)?, number(slot, 0x1f)?);
    let function = number(function, 7)?;
    Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_plugin_api::Value;
    use baton_plugin_api::testing::config_of;

    use crate::device::VfioPci;

    fn options(said: &[(&str, &str)]) -> Result<Options> {
        let said: Vec<_> = said
            .iter()
            .map(|(name, value)| (*name, Value::String((*value).to_owned())))
            .collect();
        Options::new(&config_of::<VfioPci>("vfio0", &said))
    }

    #[test]
    fn a_device_is_named_by_its_address_or_its_folder() {
        for (said, name) in [
            ("01:00.0", "0000:01:00.0"),
            ("0000:01:00.0", "0000:01:00.0"),
            ("1:0:1f.7", "0001:00:1f.7"),
            ("10000:e1:0.1", "10000:e1:00.1"),
        ] {
            let device = options(&[("host", said)]).unwrap().device;
            assert_eq!(device.name, name);
            assert_eq!(device.folder, Path::new(DEVICES).join(name));
        }
        let folder = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/";
        let found = options(&[("sysfsdev", folder)]).unwrap();
        assert_eq!(found.device.name, "0000:01:00.0");
        assert_eq!(found.device.folder, Path::new(folder));
        assert!(found.map);
    }

    #[test]
    fn anything_else_is_refused_with_what_to_say() {
        for said in [
            "",
            "1",
            "01:00",
            "01:20.0",
            "01:00.8",
            "100:00.0",
            "0:0:01:00.0",
            "x:00.0",
            "+1:00.0",
            "01:00.",
            ":00.0",
            "01:00.0 ",
        ] {
            let error = options(&[("host", said)]).unwrap_err();
            assert!(error.message.contains("say [DDDD:]BB:DD.F"), "{error}");
        }
        for said in [
            "/",
            "",
            "/sys/bus/pci/devices/01:00.0",
            "/sys/bus/mdev/devices/8a2e",
        ] {
            let error = options(&[("sysfsdev", said)]).unwrap_err();
            assert!(error.message.contains("say /sys/bus/pci"), "{error}");
        }
        let none = options(&[]).unwrap_err();
        assert!(none.message.contains("say host="), "{none}");
        let both = options(&[("host", "01:00.0"), ("sysfsdev", "/x/0000:01:00.0")]).unwrap_err();
        assert!(both.message.contains("say one of them"), "{both}");
    }
}
