//! Where the boot data lies in the first 640 KiB, until the kernel has copied what it wants of it.
//!
//! Nothing here outlives the guest's first moments: no state file depends on these numbers.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::Error;

/// The descriptor table of the 64-bit entry.
pub(super) const GDT: u64 = 0x1000;
/// The PVH start_info, then its module list, then its memory map: one page.
pub(super) const START_INFO: u64 = 0x2000;
/// The PVH module list.
pub(super) const MODULE_LIST: u64 = START_INFO + 0x80;
/// The PVH memory map.
pub(super) const MEMORY_MAP: u64 = START_INFO + 0x100;
/// The zero page (`struct boot_params`) of the Linux boot protocol.
pub(super) const ZERO_PAGE: u64 = 0x3000;
/// Six pages: PML4, page-directory pointers, four page directories.
pub(super) const PAGE_TABLES: u64 = 0x4000;
/// The command line.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// What the command line has room for, its NUL included.
pub(super) const COMMAND_LINE_ROOM: usize = 0x1_0000;

/// Writes one of these.
pub(super) fn write<T: ByteValued>(
    memory: &GuestMemoryMmap<()>,
    what: &'static str,
    address: u64,
    value: T,
) -> Result<(), Error> {
    write_bytes(memory, what, address, value.as_slice())
}

/// Writes one of these, as bytes.
pub(super) fn write_bytes(
    memory: &GuestMemoryMmap<()>,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| Error::Write {
            what,
            address,
            source,
        })
}
