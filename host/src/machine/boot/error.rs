//! Why a kernel cannot be booted.

use std::io;

use thiserror::Error;
use vm_memory::GuestMemoryError;

/// Why a kernel cannot be booted; sizes are in MiB, what is needed rounded up and what there is
/// rounded down.
#[derive(Debug, Error)]
pub enum Error {
    /// Neither format was recognised.
    #[error("'{name}' is neither a bzImage nor an ELF kernel with a PVH entry point")]
    NotAKernel {
        /// The file.
        name: String,
    },
    /// An ELF file that is no PVH kernel.
    #[error(
        "'{name}' is an ELF file without a PVH entry point; use a kernel built with CONFIG_PVH=y, \
         or its bzImage"
    )]
    NoPvhEntry {
        /// The file.
        name: String,
    },
    /// The format was recognised, but its headers make no sense or ask for something missing here.
    #[error("Cannot boot '{name}': {what}")]
    Malformed {
        /// The file.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel does not fit RAM.
    #[error(
        "Kernel '{name}' needs {needed} MiB of RAM below 3 GiB, and the guest has {available} MiB; \
         give it more with -m"
    )]
    KernelTooLarge {
        /// The file.
        name: String,
        /// The RAM that would do.
        needed: u64,
        /// The RAM there is.
        available: u64,
    },
    /// The kernel and the initrd together do not fit RAM.
    #[error(
        "Initrd '{name}' and the kernel need {needed} MiB of RAM below 3 GiB, and the guest has \
         {available} MiB; give it more with -m"
    )]
    InitrdTooLarge {
        /// The file.
        name: String,
        /// The RAM that would do.
        needed: u64,
        /// The RAM there is.
        available: u64,
    },
    /// RAM would do, but the kernel cannot read an initrd so far up.
    #[error(
        "Initrd '{name}' would end at {needed} MiB, and the kernel reads none beyond {limit} MiB; \
         use a smaller one"
    )]
    InitrdBeyondLimit {
        /// The file.
        name: String,
        /// Where it would end.
        needed: u64,
        /// `initrd_addr_max` of the kernel.
        limit: u64,
    },
    /// The file has no bytes.
    #[error("Initrd '{name}' is empty; leave out -initrd or name another file")]
    InitrdEmpty {
        /// The file.
        name: String,
    },
    /// The command line does not fit.
    #[error("Kernel command line is {length} bytes long, and '{name}' takes at most {limit}")]
    CommandLineTooLong {
        /// The kernel's file.
        name: String,
        /// Its length.
        length: usize,
        /// The longest that would do.
        limit: usize,
    },
    /// The command line ends at its first NUL byte for the kernel.
    #[error("Kernel command line has a NUL byte at offset {offset}; remove it")]
    CommandLineNul {
        /// Where.
        offset: usize,
    },
    /// A file could not be read.
    #[error("Cannot read '{name}'")]
    Read {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading a file into RAM failed.
    #[error("Cannot read '{name}' into guest RAM")]
    ReadIntoRam {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// The loader crate failed in spite of the checks before it: the file changed meanwhile.
    #[error("Cannot load '{name}'")]
    Load {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// What the kernel is told could not be written.
    #[error("Cannot write the {what} at guest address {address:#x}")]
    Write {
        /// What.
        what: &'static str,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// RAM does not begin at address 0.
    #[error("Guest RAM does not begin at address 0; a kernel cannot be booted without")]
    NoLowRam,
    /// RAM has more pieces than a kernel can be told of.
    #[error("Guest RAM has {regions} separate regions, and a kernel can be told of {limit}")]
    TooManyRegions {
        /// The regions there are, with those that are not RAM.
        regions: usize,
        /// The most that would do.
        limit: usize,
    },
}

/// MiB, rounded up.
pub(super) fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// MiB, rounded down.
pub(super) fn mib_down(bytes: u64) -> u64 {
    bytes >> 20
}
