//! Direct boot: puts a kernel into RAM, tells it of the machine, and says how the first vCPU
//! enters it. No firmware runs.
//!
//! Two kinds of kernel, told apart by their content:
//!
//! | file | protocol | entry |
//! |---|---|---|
//! | bzImage | Linux, 64-bit (Documentation/arch/x86/boot.rst) | long mode, zero page in RSI |
//! | ELF with a PVH note | Xen PVH (docs/misc/pvh.pandoc, `hvm_start_info` version 1) | flat 32-bit protected mode, start_info in EBX |

mod bzimage;
mod command_line;
mod elf;
mod error;
mod initrd;
mod low_memory;
mod memory_map;
mod registers;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryMmap};

pub use error::Error;
pub use registers::{BspRegisters, CR0_ET, RFLAGS, bsp_registers};

use memory_map::MemoryMap;

/// What to boot. The files stay open: the guest's every reset loads them anew.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel, readable and seekable.
    pub image: File,
    /// What to call it in errors.
    pub name: String,
    /// The initial RAM disk, and what to call it in errors.
    pub initrd: Option<(File, String)>,
    /// The command line, without a NUL.
    pub cmdline: String,
}

/// How the first vCPU enters the kernel; addresses are guest physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Xen PVH.
    Pvh {
        /// The first instruction.
        rip: u64,
        /// The `hvm_start_info`.
        start_info: u64,
    },
    /// The 64-bit Linux boot protocol.
    Linux64 {
        /// The first instruction.
        rip: u64,
        /// The `boot_params`.
        zero_page: u64,
    },
}

impl Kernel {
    /// Puts the kernel, its initrd, its command line and what the protocol prescribes into RAM.
    ///
    /// `ram` lists all of RAM in ascending order of address, in bytes; `rsdp` is where the ACPI
    /// tables begin, which somebody else writes. The files are read from their beginning, whatever
    /// their offset, which moves. RAM that the kernel does not need keeps its content, as on a PC
    /// that resets.
    ///
    /// # Errors
    ///
    /// The file is no kernel or one for something else, it, the initrd or the command line does
    /// not fit, or reading failed. RAM is then in no particular state.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap<()>,
        ram: &[(GuestAddress, usize)],
        rsdp: u64,
    ) -> Result<Entry, Error> {
        let map = MemoryMap::new(ram)?;
        let mut magic = [0; 4];
        if self.read_at(&mut magic, 0)? && magic == *elf::MAGIC {
            return elf::load(self, memory, &map, rsdp);
        }
        if self.read_at(&mut magic, bzimage::MAGIC_OFFSET)? && magic == *bzimage::MAGIC {
            return bzimage::load(self, memory, &map, rsdp);
        }
        Err(Error::NotAKernel {
            name: self.name.clone(),
        })
    }

    /// Reads from the image; false if it ends too early.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<bool, Error> {
        match self.image.read_exact_at(buffer, offset) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(Error::Read {
                name: self.name.clone(),
                source,
            }),
        }
    }

    /// The image's length in bytes.
    fn image_size(&self) -> Result<u64, Error> {
        use std::io::{Seek, SeekFrom};
        (&self.image)
            .seek(SeekFrom::End(0))
            .map_err(|source| Error::Read {
                name: self.name.clone(),
                source,
            })
    }

    /// Loads the initrd, if there is one.
    fn load_initrd(
        &self,
        memory: &GuestMemoryMmap<()>,
        room: initrd::Room,
    ) -> Result<Option<initrd::Placed>, Error> {
        self.initrd
            .as_ref()
            .map(|(file, name)| initrd::load(memory, file, name, room))
            .transpose()
    }

    fn malformed(&self, what: impl Into<String>) -> Error {
        Error::Malformed {
            name: self.name.clone(),
            what: what.into(),
        }
    }

    fn too_large(&self, needed: u64, map: &MemoryMap) -> Error {
        Error::KernelTooLarge {
            name: self.name.clone(),
            needed: error::mib_up(needed),
            available: error::mib_down(map.low_end),
        }
    }
}
