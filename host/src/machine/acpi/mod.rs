//! The ACPI tables (ACPI 6.5, chapter 5): the guest learns from them of its processors, interrupt
//! controllers, PCI bus, power management registers and platform devices.
//!
//! All tables are one image, at [`ACPI_TABLES`] where a guest also finds them by scanning. The same
//! machine gives the same bytes. The tables live in guest RAM and go with it in a handover: they
//! are built when the guest boots or resets only.

mod devices;
mod dsdt;
mod fadt;
mod hotplug;
mod madt;
mod pci;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use baton_plugin_api::bus::{AcpiDevice, Region};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{ACPI_TABLES, ACPI_TABLES_END, ECAM_LAST_BUS, ECAM_START};

/// Who made the tables: padded with spaces (ACPI 6.5 table 5.4).
const OEM_ID: [u8; 6] = *b"BATON ";
/// Which tables.
const OEM_TABLE_ID: [u8; 8] = *b"BATONPC ";
/// Their revision.
const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this; the FACS needs it (ACPI 6.5 section 5.2.10).
const ALIGNMENT: usize = 64;

/// What the tables tell of.
#[derive(Debug, Clone)]
pub struct AcpiInput<'a> {
    /// Virtual CPUs; their APIC ids are 0 and up.
    pub vcpus: u32,
    /// The window for 64-bit memory BARs; empty if there is none.
    pub mmio64: Range<u64>,
    /// Platform devices, with the regions and global system interrupts of each.
    pub devices: &'a [(AcpiDevice, Vec<Region>, Vec<u32>)],
}

/// The tables of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// The guest address of the RSDP, where everything begins.
    pub rsdp: u64,
    /// The guest address of the FACS, which has the waking vector of S3.
    pub facs: u64,
    /// What goes to [`ACPI_TABLES`].
    pub image: Vec<u8>,
}

/// Why there are no tables.
#[derive(Debug, Error)]
pub enum Error {
    /// They need more than the room there is.
    #[error(
        "ACPI tables need {size} bytes, and there is room for {room}; use fewer vCPUs or platform \
         devices"
    )]
    TooLarge {
        /// What they need.
        size: usize,
        /// The room.
        room: usize,
    },
    /// A plugin describes a device in a way that ACPI cannot express.
    #[error("Cannot describe platform device '{name}' in ACPI: {what}")]
    Device {
        /// The name that the plugin gives.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// RAM does not reach so far.
    #[error(
        "Cannot write the ACPI tables at guest address {ACPI_TABLES:#x}; give the guest more \
         memory with -m"
    )]
    Write(#[from] GuestMemoryError),
}

/// Builds the tables.
///
/// # Errors
///
/// They are too large, or a device cannot be described.
pub fn build(input: &AcpiInput<'_>) -> Result<Tables, Error> {
    let mut image = Image::default();
    // First, since it is what guests scan for; its content is known last.
    let rsdp = image.add(&Rsdp::new(OEM_ID, 0));
    // Second, since its place is one for all builds: `layout::FACS`.
    let facs = image.add(&facs());
    let dsdt = image.add(&dsdt::dsdt(input)?);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(image.add(&fadt::fadt(facs, dsdt)));
    xsdt.add_entry(image.add(&madt::madt(input.vcpus)));
    xsdt.add_entry(image.add(&mcfg()));
    let xsdt = image.add(&xsdt);

    let mut bytes = image.bytes;
    let mut header = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut header);
    bytes[..header.len()].copy_from_slice(&header);

    let room = (ACPI_TABLES_END - ACPI_TABLES) as usize;
    if bytes.len() > room {
        return Err(Error::TooLarge {
            size: bytes.len(),
            room,
        });
    }
    Ok(Tables {
        rsdp,
        facs,
        image: bytes,
    })
}

impl Tables {
    /// Writes the tables to guest RAM.
    ///
    /// # Errors
    ///
    /// RAM ends before the tables do.
    pub fn write(&self, memory: &GuestMemoryMmap<()>) -> Result<(), Error> {
        Ok(memory.write_slice(&self.image, GuestAddress(ACPI_TABLES))?)
    }
}

/// The tables so far.
#[derive(Default)]
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table; returns its guest address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = ACPI_TABLES + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// Where the guest says how it wants to be woken (ACPI 6.5 section 5.2.10). Without the flag
/// 64BIT_WAKE_SUPPORTED: the VMM enters the vector in real mode, and the X vector in 32-bit mode.
fn facs() -> FACS {
    let mut facs = FACS::new();
    facs.version = 2;
    facs
}

/// Where config space is in memory (PCI Firmware 3.3 section 4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, ECAM_LAST_BUS);
    mcfg
}
