//! Processors and interrupt controllers (ACPI 6.5 section 5.2.12).

use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::layout::{IOAPIC, LAPIC, SCI};

/// Revision of the table; 5 has every structure used here.
const REVISION: u8 = 5;
/// There are also two 8259s.
const PCAT_COMPAT: u32 = 1;
/// The processor is usable.
const ENABLED: u32 = 1;
/// From this APIC id on a processor needs the x2APIC structure: 255 means all processors in the
/// older one.
const FIRST_X2APIC_ID: u32 = 255;
/// The line of the local APIC that NMIs come by.
const NMI_LINE: u8 = 1;
/// Polarity and trigger of MPS INTI flags: as the bus has it (ISA: active high, edge).
const AS_BUS: u16 = 0;
/// Active high, level: ISA's polarity, so that IRQ 9 is wired alike in all modes.
const HIGH_LEVEL: u16 = 0b11_01;

/// The MADT for processors with APIC ids 0 and up; a processor's UID is its APIC id.
pub(super) fn madt(vcpus: u32) -> Sdt {
    let mut body = Vec::new();
    body.extend((LAPIC as u32).to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        processor(&mut body, id);
    }
    io_apic(&mut body);
    // KVM's timer, the 8254, is wired to pin 2, as on PCs.
    override_irq(&mut body, 0, 2, AS_BUS);
    override_irq(&mut body, SCI as u8, SCI, HIGH_LEVEL);
    nmi(&mut body, vcpus);

    let mut madt = Sdt::new(*b"APIC", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&body);
    madt
}

/// Processor local APIC, or its successor (sections 5.2.12.2 and 5.2.12.12).
fn processor(body: &mut Vec<u8>, id: u32) {
    if id < FIRST_X2APIC_ID {
        body.extend([0, 8, id as u8, id as u8]);
        body.extend(ENABLED.to_le_bytes());
    } else {
        body.extend([9, 16, 0, 0]);
        body.extend(id.to_le_bytes());
        body.extend(ENABLED.to_le_bytes());
        body.extend(id.to_le_bytes());
    }
}

/// I/O APIC 0, from global system interrupt 0 on (section 5.2.12.3).
fn io_apic(body: &mut Vec<u8>) {
    body.extend([1, 12, 0, 0]);
    body.extend((IOAPIC as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
}

/// Interrupt source override of an ISA interrupt (section 5.2.12.5).
fn override_irq(body: &mut Vec<u8>, irq: u8, gsi: u32, flags: u16) {
    body.extend([2, 10, 0, irq]);
    body.extend(gsi.to_le_bytes());
    body.extend(flags.to_le_bytes());
}

/// Local APIC NMI of all processors, and the same for those with the newer structure (sections
/// 5.2.12.7 and 5.2.12.13).
fn nmi(body: &mut Vec<u8>, vcpus: u32) {
    body.extend([4, 6, 0xff]);
    body.extend(AS_BUS.to_le_bytes());
    body.push(NMI_LINE);
    if vcpus > FIRST_X2APIC_ID {
        body.extend([10, 12]);
        body.extend(AS_BUS.to_le_bytes());
        body.extend(u32::MAX.to_le_bytes());
        body.extend([NMI_LINE, 0, 0, 0]);
    }
}
