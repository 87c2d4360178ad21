//! ELF kernels with a PVH note, entered as Xen's docs/misc/pvh.pandoc says.

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::initrd::Room;
use super::low_memory::{COMMAND_LINE, MEMORY_MAP, MODULE_LIST, START_INFO, write};
use super::memory_map::MemoryMap;
use super::{Entry, Error, Kernel, command_line};
use crate::machine::layout::KERNEL_START;

/// What an ELF file begins with.
pub(super) const MAGIC: &[u8; 4] = b"\x7fELF";

/// `e_ident` of a 64-bit little-endian file, behind the magic.
const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
/// `e_machine` of x86-64.
const X86_64: u16 = 62;
/// Kernels have a handful of segments.
const MAXIMUM_SEGMENTS: u16 = 128;
/// `p_type` of what is to be loaded.
const PT_LOAD: u32 = 1;
/// PVH states no limit: this is what Linux on x86 copies, without the NUL.
const COMMAND_LINE_LIMIT: usize = 2047;

/// `Elf64_Ehdr`.
#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct FileHeader {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    segments_offset: u64,
    sections_offset: u64,
    flags: u32,
    header_size: u16,
    segment_header_size: u16,
    segments: u16,
    section_header_size: u16,
    sections: u16,
    names_section: u16,
}

/// `Elf64_Phdr`.
#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// Loads a kernel whose [`MAGIC`] was found.
pub(super) fn load(
    kernel: &Kernel,
    memory: &GuestMemoryMmap<()>,
    map: &MemoryMap,
    rsdp: u64,
) -> Result<Entry, Error> {
    let segments = read_segments(kernel)?;
    let end = segments
        .iter()
        .map(|s| s.address + s.memory_size)
        .max()
        .unwrap_or(0);
    if end > map.low_end {
        return Err(kernel.too_large(end, map));
    }
    let loaded =
        Elf::load(memory, None, &mut &kernel.image, None).map_err(|source| Error::Load {
            name: kernel.name.clone(),
            source,
        })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(Error::NoPvhEntry {
            name: kernel.name.clone(),
        });
    };
    if !segments
        .iter()
        .any(|s| (s.address..s.address + s.memory_size).contains(&entry.0))
    {
        return Err(kernel.malformed(format!(
            "its PVH entry point {:#x} is in none of its segments",
            entry.0
        )));
    }
    for segment in &segments {
        clear_bss(memory, segment)?;
    }

    command_line::write(memory, &kernel.name, &kernel.cmdline, COMMAND_LINE_LIMIT)?;
    let room = Room {
        kernel_end: end,
        ram_end: map.low_end,
        limit: u64::MAX,
    };
    let initrd = kernel.load_initrd(memory, room)?;
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.size,
            ..Default::default()
        };
        write(memory, "PVH module list", MODULE_LIST, module)?;
    }
    for (i, range) in (0..).zip(&map.ranges) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        let address = MEMORY_MAP + i * size_of::<hvm_memmap_table_entry>() as u64;
        write(memory, "PVH memory map", address, entry)?;
    }
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULE_LIST } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        // At most 128: the map's constructor sees to it.
        memmap_entries: map.ranges.len() as u32,
        reserved: 0,
    };
    write(memory, "PVH start_info", START_INFO, start_info)?;
    Ok(Entry::Pvh {
        rip: entry.0,
        start_info: START_INFO,
    })
}

/// Reads the headers of the segments to load, and checks all that the loader crate relies on.
fn read_segments(kernel: &Kernel) -> Result<Vec<Segment>, Error> {
    let mut header = FileHeader::default();
    if !kernel.read_at(header.as_mut_bytes(), 0)? {
        return Err(kernel.malformed("the file ends within the ELF header"));
    }
    if header.ident[4..6] != CLASS_64_LITTLE_ENDIAN || header.machine != X86_64 {
        return Err(kernel.malformed("it is an ELF file for another processor than x86-64"));
    }
    if usize::from(header.segment_header_size) != size_of::<Segment>()
        || header.segments > MAXIMUM_SEGMENTS
    {
        return Err(kernel.malformed(format!(
            "its ELF header tells of {} segment headers of {} bytes",
            header.segments, header.segment_header_size
        )));
    }
    let file_size = kernel.image_size()?;
    let mut segments = Vec::new();
    for i in 0..u64::from(header.segments) {
        let mut segment = Segment::default();
        let offset = header
            .segments_offset
            .saturating_add(i * size_of::<Segment>() as u64);
        // An offset above i64::MAX is no offset to the kernel, and cannot be in the file anyway.
        if offset >= file_size || !kernel.read_at(segment.as_mut_bytes(), offset)? {
            return Err(kernel.malformed("the file ends within the ELF segment headers"));
        }
        if segment
            .offset
            .checked_add(segment.file_size)
            .is_none_or(|end| end > file_size)
        {
            return Err(kernel.malformed(format!("the file ends within its segment {i}")));
        }
        if segment.kind != PT_LOAD {
            continue;
        }
        if segment.memory_size < segment.file_size
            || segment.address.checked_add(segment.memory_size).is_none()
        {
            return Err(kernel.malformed(format!("the sizes of its segment {i} make no sense")));
        }
        if segment.address < KERNEL_START {
            return Err(kernel.malformed(format!(
                "its segment {i} lies at {:#x}, below 1 MiB",
                segment.address
            )));
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// Zeroes what a segment has in RAM and not in the file: after a reset of the guest it holds what
/// the last boot left there.
fn clear_bss(memory: &GuestMemoryMmap<()>, segment: &Segment) -> Result<(), Error> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    let mut address = segment.address + segment.file_size;
    let end = segment.address + segment.memory_size;
    while address < end {
        let length = (end - address).min(ZEROES.len() as u64);
        memory
            .write_slice(&ZEROES[..length as usize], GuestAddress(address))
            .map_err(|source| Error::Write {
                what: "kernel's BSS",
                address,
                source,
            })?;
        address += length;
    }
    Ok(())
}
