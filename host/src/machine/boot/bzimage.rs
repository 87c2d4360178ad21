//! Linux's own format, entered by the 64-bit boot protocol (Documentation/arch/x86/boot.rst).

use linux_loader::loader::bootparam::{
    LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header,
};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::initrd::Room;
use super::low_memory::{COMMAND_LINE, ZERO_PAGE, write};
use super::memory_map::MemoryMap;
use super::{Entry, Error, Kernel, command_line};
use crate::machine::layout::KERNEL_START;

/// What a setup header has in its `header` field.
pub(super) const MAGIC: &[u8; 4] = b"HdrS";
/// Where that field is.
pub(super) const MAGIC_OFFSET: u64 = 0x202;

/// Where the setup header begins.
const HEADER_OFFSET: u64 = 0x1f1;
/// The header ends where the jump at 0x200 goes: this plus the byte at 0x201.
const JUMP_BASE: usize = 0x202;
/// The first protocol whose `xloadflags` tell of the 64-bit entry.
const MINIMUM_PROTOCOL: u16 = 0x020c;
/// Where the 64-bit entry is behind the load address.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a loader without a number.
const UNKNOWN_LOADER: u8 = 0xff;
/// The largest `kernel_alignment` that makes sense: that of the largest page.
const MAXIMUM_ALIGNMENT: u64 = 1 << 30;

/// Loads a kernel whose [`MAGIC`] was found.
pub(super) fn load(
    kernel: &Kernel,
    memory: &GuestMemoryMmap<()>,
    map: &MemoryMap,
    rsdp: u64,
) -> Result<Entry, Error> {
    let mut header = read_header(kernel)?;
    let end = runtime_end(kernel, &header)?;
    if end > map.low_end {
        return Err(kernel.too_large(end, map));
    }
    BzImage::load(
        memory,
        Some(GuestAddress(KERNEL_START)),
        &mut &kernel.image,
        None,
    )
    .map_err(|source| Error::Load {
        name: kernel.name.clone(),
        source,
    })?;

    command_line::write(
        memory,
        &kernel.name,
        &kernel.cmdline,
        header.cmdline_size as usize,
    )?;
    let room = Room {
        kernel_end: end,
        ram_end: map.low_end,
        // The header names the last byte an initrd may occupy.
        limit: u64::from(header.initrd_addr_max) + 1,
    };
    if let Some(initrd) = kernel.load_initrd(memory, room)? {
        // Below 3 GiB, as `room` is.
        header.ramdisk_image = initrd.start as u32;
        header.ramdisk_size = initrd.size as u32;
    }
    header.type_of_loader = UNKNOWN_LOADER;
    header.code32_start = KERNEL_START as u32;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    write(memory, "zero page", ZERO_PAGE, zero_page(header, map, rsdp))?;
    Ok(Entry::Linux64 {
        rip: KERNEL_START + ENTRY_64,
        zero_page: ZERO_PAGE,
    })
}

/// Reads the header and checks what is relied on later.
fn read_header(kernel: &Kernel) -> Result<setup_header, Error> {
    let mut header = setup_header::default();
    if !kernel.read_at(header.as_mut_slice(), HEADER_OFFSET)? {
        return Err(kernel.malformed("the file ends within the setup header"));
    }
    let version = header.version;
    if version < MINIMUM_PROTOCOL {
        return Err(kernel.malformed(format!(
            "its boot protocol is {}.{:02}, and 2.12 (Linux 3.8) is the oldest with a 64-bit entry",
            version >> 8,
            version & 0xff
        )));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(kernel.malformed("it is a zImage, to be loaded below 1 MiB"));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(kernel.malformed("it is a 32-bit kernel; use a 64-bit one"));
    }
    // What lies behind the end that the header states for itself is code, not fields.
    let jump = header.jump.to_le_bytes()[1];
    let length = (JUMP_BASE + usize::from(jump)).saturating_sub(HEADER_OFFSET as usize);
    let bytes = header.as_mut_slice();
    if let Some(behind) = bytes.get_mut(length..) {
        behind.fill(0);
    }
    Ok(header)
}

/// Where the memory ends that the kernel uses before it looks at the memory map.
fn runtime_end(kernel: &Kernel, header: &setup_header) -> Result<u64, Error> {
    // 0 means 4, for the sake of very old kernels (boot.rst).
    let sectors = match header.setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    let setup_size = (sectors + 1) * 512;
    let file_size = kernel.image_size()?;
    // In units of 16 bytes, the last of which may be incomplete in the file.
    let code_size = u64::from(header.syssize) * 16;
    if setup_size + code_size > file_size + 15 || file_size <= setup_size + ENTRY_64 {
        return Err(kernel.malformed(format!(
            "the file is {file_size} bytes long, and its header promises {}",
            setup_size + code_size.max(ENTRY_64 + 1)
        )));
    }
    let alignment = u64::from(header.kernel_alignment);
    if !alignment.is_power_of_two() || alignment > MAXIMUM_ALIGNMENT {
        return Err(kernel.malformed(format!("its alignment is {alignment:#x}")));
    }
    // A relocatable kernel runs at its load address, aligned, but not below its preferred one;
    // any other at its preferred one (boot.rst, `init_size`).
    let preferred = header.pref_address;
    let start = match header.relocatable_kernel {
        0 => preferred,
        _ => KERNEL_START.next_multiple_of(alignment).max(preferred),
    };
    let running_end = start.checked_add(u64::from(header.init_size));
    let loaded_end = KERNEL_START + (file_size - setup_size);
    running_end
        .map(|end| end.max(loaded_end))
        .ok_or_else(|| kernel.malformed(format!("its preferred address is {preferred:#x}")))
}

fn zero_page(header: setup_header, map: &MemoryMap, rsdp: u64) -> boot_params {
    let mut page = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp,
        ..boot_params::default()
    };
    for (entry, range) in page.e820_table.iter_mut().zip(&map.ranges) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
    }
    // At most 128: the map's constructor sees to it.
    page.e820_entries = map.ranges.len() as u8;
    page
}
