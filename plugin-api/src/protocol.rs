//! The messages between host and device.
//!
//! All but reads and writes of registers cross as MessagePack maps with field names. A field added
//! in a later minor version has a default; a message that the other side does not know is answered
//! with [`ErrorKind::Unsupported`](crate::ErrorKind), and each message says what that means.
//!
//! The host calls a device from one thread at a time. Which thread it is may change from call to
//! call.

use serde::{Deserialize, Serialize};

use crate::bus::{PciInfo, PlatformInfo, QueueProgress, QueueSetup, VirtioInfo};
use crate::config::Child;
use crate::memory::MemoryRegion;
use crate::migration::{Blocker, Fd, MigrationEvent, Mode};

/// Host to device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Open, map and allocate; touch nothing shared. Answered with [`Reply::Info`].
    Realize,
    /// The guest resets the device or the whole machine. Never between `Start` and `Quiesce`.
    Reset,
    /// Load one section into a realized device that was never started.
    Load {
        /// One of the descriptor's sections, or `parent/name` of a subsection.
        section: String,
        /// The version that wrote it.
        version: u32,
        /// What [`Reply::Saved`] held then.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// The guest runs from now on.
    Start(StartArguments),
    /// The guest is about to stop, and `Quiesce` follows: threads may be told to end now, so that it
    /// need not wait for them. Registers are still read and written. Not sent to virtio devices,
    /// which are quiesced before the guest stops. Unsupported: the device has no use for it.
    Settle,
    /// The guest has stopped, or of a virtio device: its queues are no longer served, while the guest
    /// may still run and use config space. When this returns the device's threads are gone, nothing of it is in
    /// flight, and it touches neither guest memory nor anything shared. [`Reply::Quiesced`].
    Quiesce,
    /// The state of one section; only between `Quiesce` and `Start`. [`Reply::Saved`], or
    /// [`Reply::NotNeeded`].
    Save {
        /// One of the descriptor's sections, or `parent/name` of a subsection.
        section: String,
    },
    /// What blocks this mode now. [`Reply::Blockers`]. Unsupported: none.
    Blockers {
        /// The mode asked for.
        mode: Mode,
    },
    /// The descriptors to hand over in this mode. [`Reply::Fds`]. Unsupported: none.
    Fds {
        /// The mode asked for.
        mode: Mode,
    },
    /// A migration went on. Unsupported: the device does not care.
    Notify {
        /// Where it is.
        event: MigrationEvent,
    },
    /// The guest is suspended (ACPI S3): when the quiesced device wants it woken by itself, as a clock
    /// whose alarm is set. [`Reply::WakeTime`]. Asked again whenever a process begins to keep the
    /// guest suspended. Unsupported: never.
    WakeTime,
    /// Something comes to sit on the device's own bus; never between `Start` and `Quiesce`, while the
    /// guest may run. Unsupported: its children are those of its config.
    Attach {
        /// What comes.
        child: Box<Child>,
    },
    /// A child leaves; as [`Request::Attach`].
    Detach {
        /// Its id.
        id: String,
    },
}

/// What a device gets to run with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StartArguments {
    /// Guest memory; valid until the device is quiesced.
    pub memory: Vec<MemoryRegion>,
    /// Of a virtio device: the feature bits the driver accepted.
    #[serde(default)]
    pub features: u64,
    /// Of a virtio device: the queues the driver enabled.
    #[serde(default)]
    pub queues: Vec<QueueSetup>,
}

/// Device to host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// To [`Request::Realize`].
    Info(DeviceInfo),
    /// To [`Request::Quiesce`]: of a virtio device, how far each queue has come.
    Quiesced {
        /// One for each queue of [`StartArguments::queues`].
        queues: Vec<QueueProgress>,
    },
    /// To [`Request::Save`].
    Saved {
        /// At most [`SECTION_MAX`] bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// To [`Request::Save`] of a subsection that has nothing to say.
    NotNeeded,
    /// To [`Request::Blockers`].
    Blockers(Vec<Blocker>),
    /// To [`Request::Fds`].
    Fds(Vec<Fd>),
    /// To [`Request::WakeTime`].
    WakeTime {
        /// On the host's clock of the day, in nanoseconds since 1970; one that has passed is now.
        at: Option<u64>,
    },
}

/// What a device turned out to be, once it is realized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DeviceInfo {
    /// Of [`BusClass::Platform`](crate::BusClass).
    Platform(PlatformInfo),
    /// Of [`BusClass::Virtio`](crate::BusClass).
    Virtio(VirtioInfo),
    /// Of [`BusClass::Pci`](crate::BusClass).
    Pci(PciInfo),
}

/// Device to host, at any time from any thread of the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostRequest {
    /// A descriptor handed over by the same device in another process, at most once each.
    /// [`HostReply::Fd`], or `NoFd` when the device is not restoring or nothing was handed over.
    PreservedFd {
        /// One of the descriptor's names.
        name: String,
        /// Tells several of one name apart.
        instance: u32,
    },
    /// A file that somebody else has opened, if `path` stands for one: a path `/dev/fdset/N`.
    /// [`HostReply::Fd`], or `NoFd` when the device is to open the path itself.
    PassedFile {
        /// Where the device would open it.
        path: String,
        /// Whether it is for writing too.
        write: bool,
        /// Whether with `O_DIRECT`.
        direct: bool,
    },
    /// An eventfd that raises an interrupt, as an edge, for each write. Of a platform device the
    /// line is an index into [`PlatformInfo::irqs`]; of a PCI function it is an MSI-X vector.
    Irqfd {
        /// The line or vector.
        line: u32,
    },
    /// The descriptors of a character device. [`HostReply::Chardev`].
    Chardev {
        /// The value of a property of kind `Chardev`.
        id: String,
    },
    /// A guest write of `width` bytes at `offset` of a region signals `fd` and comes no further.
    IoEventFd {
        /// An index into the device's regions or BARs.
        region: u32,
        /// Within the region.
        offset: u64,
        /// 1, 2, 4 or 8, or 0 for any width.
        width: u32,
        /// An eventfd; the host duplicates it.
        fd: i32,
    },
    /// A virtio device's config space has changed: tell the driver.
    ConfigChanged,
    /// A PCI function: the guest moved, enabled or disabled a BAR.
    PciBar {
        /// 0 to 5.
        bar: u32,
        /// Where it is now, or nothing when it does not decode.
        address: Option<u64>,
    },
    /// A PCI function: a part of a memory BAR is memory of `fd`, which the guest reaches without the
    /// device while the BAR decodes; accesses to the rest come to the device as ever. Only once the
    /// device is realized. The same part again takes the place of what was there. Unsupported: every
    /// access comes to the device.
    PciMap {
        /// 0 to 5.
        bar: u32,
        /// Where the part begins in the BAR, a multiple of 4 KiB.
        offset: u64,
        /// Its size, a multiple of 4 KiB.
        size: u64,
        /// What can be mapped shared, to be read and written; the host duplicates it.
        fd: i32,
        /// Where the part begins in `fd`, a multiple of 4 KiB.
        fd_offset: u64,
    },
    /// A PCI function that is a device of the host: KVM is told of the group of VFIO (or of the device
    /// itself) until the function is gone. [`HostReply::Done`]. Unsupported: KVM does not know, which
    /// matters if the device's DMA does not keep to the caches.
    VfioFile {
        /// The group's descriptor, which the host duplicates.
        fd: i32,
    },
    /// A PCI function: the guest programmed or masked an MSI-X vector.
    MsixVector {
        /// The vector.
        vector: u32,
        /// The message, or nothing while it is masked.
        message: Option<MsiMessage>,
    },
    /// The guest has set the device's clock, which others may have to know of. [`HostReply::Done`].
    ClockSet {
        /// Seconds that the clock is ahead of the host's by now.
        ahead: i64,
    },
    /// The guest has begun or ceased to use a child of the device, such as a port that a program in the
    /// guest has opened. Told from `Start` on; a child is not in use before. [`HostReply::Done`].
    GuestOpened {
        /// The child's id.
        child: String,
        /// Whether it is in use now.
        open: bool,
    },
    /// The device is broken; the reason is for people. The guest goes on, and no migration takes the
    /// device along. A reset that succeeds mends a virtio device.
    Failed {
        /// One sentence.
        reason: String,
    },
}

/// An MSI message, PCI 3.0 section 6.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiMessage {
    /// Where it is written to.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Host to device, in answer to a [`HostRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostReply {
    /// Nothing to say.
    Done,
    /// A new descriptor, the device's own from now on.
    Fd(i32),
    /// There is none.
    NoFd,
    /// Two new descriptors, the device's own from now on; they may be non-blocking.
    Chardev {
        /// To read the guest's input from, if the character device has input.
        input: Option<i32>,
        /// To write the guest's output to, if the character device has output.
        output: Option<i32>,
    },
}

/// The largest section a device may save, in bytes.
pub const SECTION_MAX: usize = 64 << 20;

impl Request {
    /// The answer to a message the glue has no meaning for.
    pub(crate) fn unsupported(&self) -> crate::Error {
        crate::Error::new(
            crate::ErrorKind::Unsupported,
            format!("The plugin does not know the request {self:?}"),
        )
    }
}
