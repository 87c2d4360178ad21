//! Where things are inside L1. The side that makes the image and the agent that runs in it both
//! read this, so they cannot disagree.

/// What process 1 runs once L1 is up.
pub(crate) const RUN: &str = "/lab/run";
/// This very program.
pub(crate) const AGENT: &str = "/lab/xtask";
/// The VMM under test.
pub(crate) const VMM: &str = "/lab/vmm";
/// Its plugins, when it has any.
pub(crate) const PLUGINS: &str = "/lab/plugins";
/// The guest: kernel, initramfs, disk.
pub(crate) const KERNEL: &str = "/lab/vmlinuz";
pub(crate) const INITRAMFS: &str = "/lab/guest.cpio";
pub(crate) const DISK: &str = "/lab/guest.img";
/// Programs of this machine's file system tools; busybox has some of the same name.
pub(crate) const SYSTEM: &str = "/sbin";
/// What is in here at the end comes back to L0.
pub(crate) const OUT: &str = "/out";

/// The serial number of the NVMe disk that can be passed through, which tells it from all others. It has
/// its own word at its start; numbered blocks of 4 KiB follow, round and round.
pub(crate) const NVME_SERIAL: &str = "baton-lab";
pub(crate) const NVME_MAGIC: &str = "baton lab: passed through";
pub(crate) const NVME_BLOCKS: u64 = 1024;

/// Size of the guest's file system, at the start of its disk.
pub(crate) const FILE_SYSTEM: u64 = 32 << 20;
/// One block behind the file system, in which the agent leaves the guest a word. The guest reads it
/// past its cache, so a VMM that serves old data is found out, too.
pub(crate) const MAILBOX: u64 = 4096;
/// The word that ends the guest's workload. A word has up to 8 letters.
pub(crate) const STOP: &str = "STOP";
/// The guest suspends itself; a number follows, since each word counts once.
pub(crate) const SUSPEND: &str = "MEM";
/// The same, and its clock's alarm wakes it 10 s later.
pub(crate) const NAP: &str = "NAP";
/// Where in the block the word about a second disk is.
pub(crate) const SECOND_WORD: u64 = 8;
/// The guest uses a second disk when there is one.
pub(crate) const WORK: &str = "WORK";
/// It verifies the second disk and leaves it alone.
pub(crate) const REST: &str = "REST";
