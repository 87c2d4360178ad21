//! The tables as a guest would read them, and the AML through ACPICA's compiler.

use std::fs;
use std::process::Command;

use baton_plugin_api::bus::{AcpiDevice, Region, RegionKind};
use vm_memory::GuestAddress;

use super::*;

type Described = (AcpiDevice, Vec<Region>, Vec<u32>);

const MMIO64: Range<u64> = 0x1_4000_0000..0x9_4000_0000;

fn device(name: &str, hid: &str) -> Described {
    (
        AcpiDevice {
            name: name.to_owned(),
            hid: hid.to_owned(),
            uid: 0,
        },
        Vec::new(),
        Vec::new(),
    )
}

fn serial() -> Described {
    let (id, _, _) = device("COM1", "PNP0501");
    (
        id,
        vec![Region {
            kind: RegionKind::Port,
            base: 0x3f8,
            size: 8,
        }],
        vec![4],
    )
}

/// A device with one of each kind of resource.
fn many() -> Described {
    let (id, _, _) = device("TST0", "BATN0001");
    let region = |kind, base, size| Region { kind, base, size };
    let regions = vec![
        region(RegionKind::Port, 0xf000, 0x180),
        region(RegionKind::Mmio, 0xfed0_0000, 0x1000),
        region(RegionKind::Mmio, 0x20_0000_0000, 0x1_0000),
    ];
    (id, regions, vec![5, 23])
}

fn tables(vcpus: u32, devices: &[Described]) -> Result<Tables, Error> {
    build(&AcpiInput {
        vcpus,
        mmio64: MMIO64,
        devices,
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

impl Tables {
    fn at(&self, address: u64) -> &[u8] {
        &self.image[(address - ACPI_TABLES) as usize..]
    }

    /// The table at an address, by its own length.
    fn table(&self, address: u64) -> &[u8] {
        let bytes = self.at(address);
        &bytes[..u32_at(bytes, 4) as usize]
    }

    /// A table that the XSDT names.
    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        let xsdt = self.table(u64_at(self.at(self.rsdp), 24));
        xsdt[36..]
            .chunks(8)
            .map(|entry| self.table(u64_at(entry, 0)))
            .find(|table| table[..4] == signature[..])
            .expect("the XSDT names the table")
    }

    fn dsdt(&self) -> &[u8] {
        self.table(u64_at(self.find(b"FACP"), 140))
    }
}

/// The MADT's structures, as type and bytes.
fn structures(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while let [kind, length, ..] = *rest {
        found.push((kind, &rest[..usize::from(length)]));
        rest = &rest[usize::from(length)..];
    }
    found
}

#[test]
fn every_table_is_found_from_the_rsdp_with_a_right_checksum() {
    let tables = tables(2, &[serial()]).expect("tables");
    let rsdp = &tables.at(tables.rsdp)[..36];
    assert_eq!(tables.rsdp, ACPI_TABLES);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert!(sums_to_zero(&rsdp[..20]) && sums_to_zero(rsdp));
    let xsdt = tables.table(u64_at(rsdp, 24));
    assert!(xsdt.starts_with(b"XSDT") && sums_to_zero(xsdt));
    assert_eq!(xsdt.len(), 36 + 3 * 8);
    for signature in [b"FACP", b"APIC", b"MCFG"] {
        assert!(sums_to_zero(tables.find(signature)));
    }
    assert!(tables.dsdt().starts_with(b"DSDT") && sums_to_zero(tables.dsdt()));
}

#[test]
fn fadt_tells_of_full_hardware_with_fixed_buttons() {
    let tables = tables(1, &[]).expect("tables");
    let fadt = tables.find(b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    assert_eq!(u64_at(fadt, 132), tables.facs);
    assert_eq!(u64::from(u32_at(fadt, 36)), tables.facs);
    assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9);
    assert_eq!(
        [56, 64, 76].map(|offset| u32_at(fadt, offset)),
        [0x600, 0x604, 0x608]
    );
    assert_eq!([fadt[88], fadt[89], fadt[91]], [4, 2, 4]);
    // SMI_CMD, and the flags: WBINVD, PROC_C1, RESET_REG_SUP.
    assert_eq!(u32_at(fadt, 48), 0);
    assert_eq!(u32_at(fadt, 112), 1 | 1 << 2 | 1 << 10);
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b101);
    // The reset register: port space, 8 bits, byte access.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
    assert_eq!(fadt[148..152], [1, 32, 0, 2]);
    assert_eq!(u64_at(fadt, 152), 0x600);
}

#[test]
fn facs_is_aligned_and_asks_for_the_32_bit_vector() {
    let tables = tables(1, &[]).expect("tables");
    let facs = &tables.at(tables.facs)[..64];
    assert_eq!(tables.facs % 64, 0);
    // Whatever else the tables have: a guest may be woken by another build.
    assert_eq!(tables.facs, crate::machine::layout::FACS);
    let most = self::tables(300, &[serial(), many()]).expect("tables");
    assert_eq!(most.facs, tables.facs);
    assert_eq!(&facs[..8], b"FACS\x40\0\0\0");
    assert_eq!((u32_at(facs, 12), u32_at(facs, 20), facs[32]), (0, 0, 2));
}

#[test]
fn madt_lists_processors_and_wires_the_timer_and_the_sci() {
    let tables = tables(3, &[]).expect("tables");
    let madt = tables.find(b"APIC");
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let expected: [&[u8]; 7] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 2, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert!(structures(madt).iter().map(|s| s.1).eq(expected));
}

#[test]
fn madt_uses_x2apic_structures_from_id_255_on() {
    let tables = tables(257, &[]).expect("tables");
    let structures = structures(tables.find(b"APIC"));
    let of_type = |kind| structures.iter().filter(move |s| s.0 == kind).map(|s| s.1);
    assert_eq!(of_type(0).count(), 255);
    assert_eq!(of_type(0).nth(254), Some(&[0, 8, 254, 254, 1, 0, 0, 0][..]));
    let ids: Vec<_> = of_type(9)
        .map(|s| (u32_at(s, 4), u32_at(s, 8), u32_at(s, 12)))
        .collect();
    assert_eq!(ids, [(255, 1, 255), (256, 1, 256)]);
    assert_eq!(
        of_type(10).next(),
        Some(&[10, 12, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0][..])
    );
}

#[test]
fn mcfg_has_all_buses_in_one_segment() {
    let tables = tables(1, &[]).expect("tables");
    let mcfg = tables.find(b"MCFG");
    assert_eq!((mcfg.len(), u64_at(mcfg, 44)), (60, 0xe000_0000));
    assert_eq!(mcfg[52..56], [0, 0, 0, 255]);
}

#[test]
fn same_machine_gives_the_same_bytes() {
    let devices = [serial(), many()];
    let first = tables(4, &devices).expect("tables");
    assert_eq!(first, tables(4, &devices).expect("tables"));
}

#[test]
fn tables_that_outgrow_their_room_are_refused() {
    let error = tables(4096, &[]).expect_err("too many processors");
    assert!(
        matches!(error, Error::TooLarge { room: 0x2_0000, .. }),
        "{error}"
    );
    tables(1024, &[serial()]).expect("tables of a large machine");
}

#[test]
fn tables_go_where_they_say() {
    let tables = tables(1, &[]).expect("tables");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("RAM");
    tables.write(&memory).expect("written");
    let mut read = vec![0; tables.image.len()];
    memory
        .read_slice(&mut read, GuestAddress(ACPI_TABLES))
        .expect("read");
    assert_eq!(read, tables.image);
    let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xe_0000)]).expect("RAM");
    assert!(matches!(tables.write(&small), Err(Error::Write(_))));
}

#[test]
fn device_that_acpi_cannot_express_is_refused_by_name() {
    let refused = |devices: &[Described], text: &str| {
        let error = tables(1, devices).expect_err(text).to_string();
        assert!(
            error.contains(text) && error.contains(devices[0].0.name.as_str()),
            "{error}"
        );
    };
    for name in ["", "COM", "COM10", "1COM", "com1", "CO.1", "ÄÖ"] {
        refused(&[device(name, "PNP0501")], "not four of A-Z");
    }
    refused(&[device("C0A1", "PNP0501")], "processors have names");
    refused(&[device("PCI0", "PNP0501")], "another device");
    refused(&[serial(), serial()], "another device");
    for hid in [
        "",
        "PNP05",
        "pnp0501",
        "PNP05G1",
        "ACPI007",
        "BATON0001",
        "PN_0501",
        "ÄÖÜ1",
    ] {
        refused(&[device("COM1", hid)], "no hardware id");
    }
    for (kind, base, size) in [
        (RegionKind::Port, 0x3f8, 0),
        (RegionKind::Port, 0xfff8, 9),
        (RegionKind::Port, u64::MAX, 2),
        (RegionKind::Mmio, (1 << 52) - 1, 2),
        (RegionKind::Mmio, u64::MAX, u64::MAX),
    ] {
        let (id, _, _) = device("DEV0", "PNP0501");
        refused(&[(id, vec![Region { kind, base, size }], vec![])], "region");
    }
    let (id, _, _) = device("DEV0", "PNP0501");
    refused(
        &[(id, vec![], vec![24])],
        "interrupt 24 is beyond the last, 23",
    );
}

/// Disassembles a DSDT with ACPICA's iasl, which checks it on the way, and compiles the result.
/// None where iasl is not installed.
fn iasl(test: &str, tables: &Tables) -> Option<String> {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED {test}: iasl is not installed (package acpica-tools)");
        return None;
    }
    let folder = std::env::temp_dir().join(format!("baton-{test}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("dsdt.aml"), tables.dsdt()).expect("the table written");
    let run = |arguments: &[&str]| {
        let output = Command::new("iasl")
            .args(arguments)
            .current_dir(&folder)
            .output()
            .expect("iasl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "iasl {arguments:?}: {text}");
        text
    };
    let disassembly = run(&["-d", "dsdt.aml"]);
    assert!(
        !disassembly.contains("Error") && !disassembly.contains("Warning"),
        "{disassembly}"
    );
    let source = fs::read_to_string(folder.join("dsdt.dsl")).expect("the source");
    let compilation = run(&["-ve", "-p", "again", "dsdt.dsl"]);
    assert!(
        compilation.contains("0 Errors, 0 Warnings"),
        "{compilation}\n{source}"
    );
    let again = fs::read(folder.join("again.aml")).expect("the table compiled");
    // The header has the compiler's own name and so another checksum.
    assert_eq!(
        again[36..],
        tables.dsdt()[36..],
        "compiles to other AML\n{source}"
    );
    fs::remove_dir_all(folder).expect("the folder removed");
    Some(source)
}

#[test]
fn iasl_reads_the_dsdt_and_compiles_it_to_the_same_bytes() {
    let tables = tables(2, &[serial(), many()]).expect("tables");
    let Some(source) = iasl(
        "iasl_reads_the_dsdt_and_compiles_it_to_the_same_bytes",
        &tables,
    ) else {
        return;
    };
    for text in [
        "PNP0A08",
        "PNP0C02",
        "ACPI0007",
        "PNP0501",
        "BATN0001",
        "0x000000093FFFFFFF",
        "0x0000000140000000",
        "Method (_OSC, 4, NotSerialized)",
        "Name (_S3",
        "Name (_S5",
    ] {
        assert!(
            source.contains(text) || source.contains(&text.to_lowercase()),
            "{text}\n{source}"
        );
    }
}

#[test]
fn machine_without_a_64_bit_window_has_a_sound_dsdt() {
    let tables = build(&AcpiInput {
        vcpus: 1,
        mmio64: 0..0,
        devices: &[],
    })
    .expect("tables");
    if let Some(source) = iasl("machine_without_a_64_bit_window_has_a_sound_dsdt", &tables) {
        assert!(!source.contains("QWordMemory"), "{source}");
    }
}
