//! What may be said of the device, and what holds once it was checked.

use baton_plugin_api::{
    BusClass, Config, DeviceType, Drive, Error, FdDeclaration, Mode, Property, PropertyKind,
    Result, Section,
};

/// The descriptor of the open image, as it is handed over.
pub(crate) const IMAGE: &str = "image";
/// The vmstate section.
pub(crate) const SECTION: &str = "virtio-blk";
/// Bytes of a serial number (VIRTIO 1.3 section 5.2.6).
pub(crate) const SERIAL_BYTES: usize = 20;
/// Modes in which the open image is handed over.
pub(crate) const HANDED_OVER_IN: [Mode; 2] = [Mode::CprTransfer, Mode::CprExec];

/// The config, checked.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) id: String,
    pub(crate) drive: Drive,
    pub(crate) aio: Aio,
    pub(crate) serial: [u8; SERIAL_BYTES],
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
    /// Bytes of the unit the guest addresses.
    pub(crate) logical_block: u32,
    /// Bytes of the unit that is written without reading what is around it.
    pub(crate) physical_block: u32,
    pub(crate) discard: bool,
    pub(crate) write_zeroes: bool,
    /// Whether there is a volatile write cache, until the driver says otherwise.
    pub(crate) write_cache: bool,
    /// Whether the driver may say otherwise.
    pub(crate) config_wce: bool,
    pub(crate) restoring: Option<Mode>,
}

/// Who waits for the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aio {
    /// The kernel if it offers io_uring, threads otherwise.
    Automatic,
    /// `aio=io_uring`.
    IoUring,
    /// `aio=threads`.
    Threads,
}

/// What the descriptor says. The properties and their defaults are QEMU's, but for `num-queues`,
/// which QEMU sets to the number of vCPUs.
pub(crate) fn device_type() -> DeviceType {
    DeviceType {
        properties: vec![
            Property::new("drive", PropertyKind::Drive, "The image").required(),
            Property::string(
                "serial",
                SERIAL_BYTES as u32,
                "",
                "Serial number the guest sees",
            ),
            Property::uint("num-queues", 1, 64, 1, "Number of request queues"),
            Property::uint(
                "queue-size",
                4,
                1024,
                256,
                "Requests a queue holds, a power of two",
            ),
            Property::uint(
                "logical_block_size",
                512,
                32768,
                512,
                "Bytes of the unit the guest addresses, a power of two",
            ),
            Property::uint(
                "physical_block_size",
                512,
                32768,
                512,
                "Bytes of the unit that is fast to write, a power of two",
            ),
            Property::bool("discard", true, "Offer discard"),
            Property::bool("write-zeroes", true, "Offer write zeroes"),
            Property::bool(
                "write-cache",
                true,
                "Whether writes may wait for the guest's flush",
            ),
            Property::bool(
                "config-wce",
                true,
                "Whether the guest may turn the write cache on and off",
            ),
        ],
        sections: vec![Section::new(SECTION, 1, 1)],
        fds: vec![FdDeclaration {
            name: IMAGE.into(),
            help: "The open image, with its lock".into(),
            modes: HANDED_OVER_IN.into(),
        }],
        ..DeviceType::new("virtio-blk-pci", BusClass::Virtio, "Virtio block device")
    }
}

impl Options {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let drive = config.drive("drive")?.clone();
        if drive.format != "raw" {
            return Err(Error::invalid(format!(
                "Format '{}' is not one this device reads; convert the image with qemu-img \
                 convert -O raw, or say format=raw",
                drive.format
            )));
        }
        let aio = match drive.aio.as_deref() {
            None => Aio::Automatic,
            Some("io_uring") => Aio::IoUring,
            Some("threads") => Aio::Threads,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "Drive '{}' says aio={other}, which this device does not have; say \
                     aio=io_uring or aio=threads",
                    drive.id
                )));
            }
        };
        let logical_block = power_of_two(&config, "logical_block_size")?;
        let physical_block = power_of_two(&config, "physical_block_size")?;
        if logical_block > physical_block {
            return Err(Error::invalid(format!(
                "Property 'logical_block_size' is {logical_block}, above physical_block_size; say \
                 physical_block_size={logical_block}"
            )));
        }
        Ok(Self {
            aio,
            serial: serial(config.string("serial")?)?,
            // The bounds of the descriptor fit both.
            queues: config.uint("num-queues")? as u16,
            queue_size: power_of_two(&config, "queue-size")? as u16,
            logical_block,
            physical_block,
            discard: config.bool("discard")?,
            write_zeroes: config.bool("write-zeroes")?,
            write_cache: config.bool("write-cache")?,
            config_wce: config.bool("config-wce")?,
            restoring: config.restoring,
            id: config.id,
            drive,
        })
    }
}

fn power_of_two(config: &Config, name: &str) -> Result<u32> {
    let value = config.uint(name)?;
    u32::try_from(value)
        .ok()
        .filter(|value| value.is_power_of_two())
        .ok_or_else(|| {
            Error::invalid(format!(
                "Property '{name}' is {value}, it takes a power of two"
            ))
        })
}

fn serial(text: &str) -> Result<[u8; SERIAL_BYTES]> {
    let mut serial = [0; SERIAL_BYTES];
    let Some(place) = serial.get_mut(..text.len()) else {
        return Err(Error::invalid(format!(
            "Property 'serial' is '{text}', it takes at most {SERIAL_BYTES} bytes"
        )));
    };
    place.copy_from_slice(text.as_bytes());
    Ok(serial)
}
