//! The PCI Express host bridge (PCI Firmware 3.3 sections 4.1 and 4.5, ACPI 6.5 section 6.2.11).

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Local, Method, Name, NotEqual, Or, Path, ResourceTemplate, Return, Store, Uuid,
};

use super::hotplug;
use crate::machine::layout::{
    ECAM_LAST_BUS, MMIO32_SIZE, MMIO32_START, PORT_WINDOW_SIZE, PORT_WINDOW_START,
};

/// Configuration mechanism 1, which the bridge decodes itself: 0xcf8 to 0xcff.
const CONFIG_PORTS: u16 = 0xcf8;

/// What of PCI Express the operating system may control natively (PCI Firmware 3.3 table 4-5): power
/// management events, error reporting, the capability structure. Hot-plug is ACPI's, and SHPC is not
/// there.
const NATIVE: u32 = 1 << 2 | 1 << 3 | 1 << 4;
/// `_OSC` status: the UUID is not known.
const UNRECOGNIZED_UUID: u32 = 1 << 2;
/// `_OSC` status: the revision is not known.
const UNRECOGNIZED_REVISION: u32 = 1 << 3;
/// `_OSC` status: less was granted than asked for.
const MASKED: u32 = 1 << 4;

/// Device `PCI0` with its windows; interrupts are MSI only, so there is no `_PRT`.
pub(super) fn host_bridge(mmio64: &Range<u64>) -> Vec<u8> {
    let buses = AddressSpace::new_bus_number(0, u16::from(ECAM_LAST_BUS));
    let config = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, 8);
    // No larger than the window for BARs: the rest is full of platform devices.
    let ports = AddressSpace::new_io(
        PORT_WINDOW_START,
        PORT_WINDOW_START + (PORT_WINDOW_SIZE - 1),
        None,
    );
    let memory32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        MMIO32_START as u32,
        (MMIO32_START + MMIO32_SIZE - 1) as u32,
        None,
    );
    let memory64 = (!mmio64.is_empty()).then(|| {
        AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            mmio64.start,
            mmio64.end - 1,
            None,
        )
    });
    let mut resources: Vec<&dyn Aml> = vec![&buses, &config, &ports, &memory32];
    resources.extend(memory64.as_ref().map(|window| window as &dyn Aml));

    let mut bytes = Vec::new();
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &Capabilities,
            &hotplug::Slots,
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

/// `_OSC`: grants native control, with whatever the operating system supports.
struct Capabilities;

impl Aml for Capabilities {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let status = Path::new("CDW1");
        let control = Path::new("CDW3");
        let uuid = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
        Method::new(
            "_OSC".into(),
            4,
            false,
            vec![
                &CreateDWordField::new(&status, &Arg(3), &0u8),
                &If::new(
                    &Equal::new(&Arg(0), &uuid),
                    vec![
                        &CreateDWordField::new(&control, &Arg(3), &8u8),
                        &Store::new(&Local(0), &control),
                        &And::new(&control, &Local(0), &NATIVE),
                        &If::new(
                            &NotEqual::new(&control, &Local(0)),
                            vec![&Or::new(&status, &status, &MASKED)],
                        ),
                        &If::new(
                            &NotEqual::new(&Arg(1), &1u8),
                            vec![&Or::new(&status, &status, &UNRECOGNIZED_REVISION)],
                        ),
                    ],
                ),
                &Else::new(vec![&Or::new(&status, &status, &UNRECOGNIZED_UUID)]),
                &Return::new(&Arg(3)),
            ],
        )
        .to_aml_bytes(sink);
    }
}
