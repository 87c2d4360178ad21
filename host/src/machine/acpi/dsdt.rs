//! The differentiated system description table: what the operating system cannot enumerate by
//! itself (ACPI 6.5 section 5.2.11.1).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::fadt::{PM_TIMER_LENGTH, PM1_CONTROL_LENGTH, PM1_EVENT_LENGTH};
use super::{AcpiInput, Error, OEM_ID, OEM_REVISION, OEM_TABLE_ID, devices, hotplug, pci};
use crate::machine::layout::{
    ECAM_SIZE, ECAM_START, GPE0_LENGTH, GPE0_PORT, PCI_HOTPLUG_LENGTH, PCI_HOTPLUG_PORT,
    PM_TIMER_PORT, PM1_CONTROL_PORT, PM1_EVENT_PORT, SLEEP_TYPE_S3, SLEEP_TYPE_S5,
};

/// From 2 on integers have 64 bits.
const REVISION: u8 = 2;

/// The DSDT.
pub(super) fn dsdt(input: &AcpiInput<'_>) -> Result<Sdt, Error> {
    let mut devices = pci::host_bridge(&input.mmio64);
    devices.extend(motherboard());
    for id in 0..input.vcpus {
        devices.extend(processor(id));
    }
    devices.extend(devices::devices(input.devices)?);

    let mut body = Scope::raw("_SB_".into(), devices);
    body.extend(hotplug::events());
    Name::new("_S3_".into(), &sleep(SLEEP_TYPE_S3)).to_aml_bytes(&mut body);
    Name::new("_S5_".into(), &sleep(SLEEP_TYPE_S5)).to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body);
    Ok(dsdt)
}

/// A sleep state: what to write to PM1 control (section 7.4.2).
fn sleep(kind: u8) -> impl Aml {
    struct Sleep(u8);
    impl Aml for Sleep {
        fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
            // PM1a, PM1b, which does not exist, and two reserved.
            Package::new(vec![&self.0, &0u8, &0u8, &0u8]).to_aml_bytes(sink);
        }
    }
    Sleep(kind)
}

/// Registers that belong to no other device, so that nothing is placed over them (PNP0C02). Linux
/// does not use ECAM unless it is reserved so.
fn motherboard() -> Vec<u8> {
    let mut bytes = Vec::new();
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, ECAM_START as u32, ECAM_SIZE as u32),
                    &ports(PM1_EVENT_PORT, PM1_EVENT_LENGTH),
                    &ports(PM1_CONTROL_PORT, PM1_CONTROL_LENGTH),
                    &ports(PM_TIMER_PORT, PM_TIMER_LENGTH),
                    &ports(GPE0_PORT, GPE0_LENGTH),
                    &ports(PCI_HOTPLUG_PORT, PCI_HOTPLUG_LENGTH),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

fn ports(base: u16, length: u8) -> IO {
    IO::new(base, base, 1, length)
}

/// A processor device, which the MADT refers to by its UID (section 8.4).
fn processor(id: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    Device::new(
        // Four characters are enough for the 4096 processors that KVM takes at most.
        format!("C{id:03X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0007"),
            &Name::new("_UID".into(), &id),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}
