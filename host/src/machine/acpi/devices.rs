//! Platform devices as their plugins describe them: an id, and resources made of their regions and
//! interrupts. Plugins are not trusted to know ACPI's rules, so names are checked.

use std::collections::BTreeSet;

use acpi_tables::aml::{AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt};
use acpi_tables::aml::{Memory32Fixed, Name, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};
use baton_plugin_api::bus::{AcpiDevice, Region, RegionKind};

use super::Error;
use crate::machine::layout::IOAPIC_PINS;

/// What is in the same scope already; processors follow the pattern C000.
const TAKEN: [&str; 2] = ["PCI0", "MBRD"];
/// Ports of one descriptor: its length is a byte, and a power of two reads well.
const PORTS_PER_DESCRIPTOR: u64 = 128;

/// All devices, as the content of a scope.
pub(super) fn devices(devices: &[(AcpiDevice, Vec<Region>, Vec<u32>)]) -> Result<Vec<u8>, Error> {
    let mut names: BTreeSet<&str> = TAKEN.into();
    let mut bytes = Vec::new();
    for (device, regions, irqs) in devices {
        let fail = |what: String| Error::Device {
            name: device.name.clone(),
            what,
        };
        check_name(&device.name).map_err(fail)?;
        if !names.insert(&device.name) {
            return Err(fail(
                "another device has the name; give it another one".to_owned(),
            ));
        }
        let resources = resources(regions, irqs).map_err(fail)?;
        Device::new(
            device.name.as_str().into(),
            vec![
                &Name::new(
                    "_HID".into(),
                    hardware_id(&device.hid).map_err(fail)?.as_ref(),
                ),
                &Name::new("_UID".into(), &device.uid),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(resources.iter().map(AsRef::as_ref).collect()),
                ),
            ],
        )
        .to_aml_bytes(&mut bytes);
    }
    Ok(bytes)
}

/// A name segment (ACPI 6.5 section 20.2.2), not one of the processors'.
fn check_name(name: &str) -> Result<(), String> {
    let lead = |b: u8| b.is_ascii_uppercase() || b == b'_';
    match name.as_bytes() {
        [first, rest @ ..]
            if rest.len() == 3
                && lead(*first)
                && rest.iter().all(|&b| lead(b) || b.is_ascii_digit()) => {}
        _ => return Err("its name is not four of A-Z, 0-9 and _, a digit not first".to_owned()),
    }
    match name.as_bytes() {
        [b'C', id @ ..] if id.iter().all(u8::is_ascii_hexdigit) => {
            Err("processors have names of C and three hexadecimal digits".to_owned())
        }
        _ => Ok(()),
    }
}

/// `_HID`: `PNP0501` and its like are numbers, `ACPI0007` and its like are text (section 6.1.5).
fn hardware_id(hid: &str) -> Result<Box<dyn Aml>, String> {
    let hexadecimal = |digits: &[u8]| {
        digits
            .iter()
            .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
    };
    let bytes = hid.as_bytes();
    if bytes.len() == 7 && bytes[..3].iter().all(u8::is_ascii_uppercase) && hexadecimal(&bytes[3..])
    {
        Ok(Box::new(EISAName::new(hid)))
    } else if bytes.len() == 8
        && bytes[..4]
            .iter()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        && hexadecimal(&bytes[4..])
    {
        Ok(Box::new(hid.to_owned()))
    } else {
        Err(format!(
            "'{hid}' is no hardware id such as PNP0501 or ACPI0007"
        ))
    }
}

/// `_CRS`: the ports, memory and interrupts.
fn resources(regions: &[Region], irqs: &[u32]) -> Result<Vec<Box<dyn Aml>>, String> {
    let mut resources: Vec<Box<dyn Aml>> = Vec::new();
    for region in regions {
        let Region { kind, base, size } = *region;
        let space = match kind {
            RegionKind::Port => 1 << 16,
            RegionKind::Mmio => 1 << 52,
        };
        let end = base
            .checked_add(size)
            .filter(|&end| size > 0 && end <= space);
        let end = end.ok_or_else(|| {
            format!("no {kind:?} region has its {size:#x} bytes at {base:#x}").to_lowercase()
        })?;
        match kind {
            RegionKind::Port => {
                for start in (base..end).step_by(PORTS_PER_DESCRIPTOR as usize) {
                    let length = (end - start).min(PORTS_PER_DESCRIPTOR);
                    let start = start as u16;
                    resources.push(Box::new(IO::new(start, start, 1, length as u8)));
                }
            }
            RegionKind::Mmio if end <= 1 << 32 => {
                resources.push(Box::new(Memory32Fixed::new(true, base as u32, size as u32)));
            }
            RegionKind::Mmio => resources.push(Box::new(HighMemory { base, end })),
        }
    }
    for &irq in irqs {
        if irq >= IOAPIC_PINS {
            return Err(format!(
                "interrupt {irq} is beyond the last, {}",
                IOAPIC_PINS - 1
            ));
        }
        // Consumed, edge, active high, exclusive: an irqfd pulses the line.
        resources.push(Box::new(Interrupt::new(true, true, false, false, irq)));
    }
    Ok(resources)
}

/// Memory that ends above 4 GiB. The crate makes address space descriptors of producers, that is,
/// windows of bridges; a device consumes its own (ACPI 6.5 section 6.4.3.5.1, general flags bit 0).
struct HighMemory {
    base: u64,
    end: u64,
}

impl Aml for HighMemory {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// Where general flags are in the descriptor.
        const GENERAL_FLAGS: usize = 4;
        const CONSUMER: u8 = 1;
        let mut bytes = Vec::new();
        AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            self.base,
            self.end - 1,
            None,
        )
        .to_aml_bytes(&mut bytes);
        bytes[GENERAL_FLAGS] |= CONSUMER;
        sink.vec(&bytes);
    }
}
