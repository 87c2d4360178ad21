//! What the host does for a device.

use std::os::fd::{AsRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

use crate::abi::HostRef;
use crate::error::{Error, Result};
use crate::fd::{adopt, eventfd_from};
use crate::protocol::{HostReply, HostRequest, MsiMessage};

/// The host, as a device sees it. Cheap to clone; every method may be called from any thread.
#[derive(Clone)]
pub struct Host(HostRef);

/// The descriptors of a character device.
#[derive(Debug, Default)]
pub struct Chardev {
    /// Where the guest's input comes from.
    pub input: Option<OwnedFd>,
    /// Where the guest's output goes to.
    pub output: Option<OwnedFd>,
}

impl Host {
    pub(crate) fn new(host: HostRef) -> Self {
        Self(host)
    }

    /// A descriptor that the same device handed over in another process: at most once each, and
    /// none when the device is not restoring.
    pub fn preserved_fd(&self, name: &str, instance: u32) -> Result<Option<OwnedFd>> {
        let request = HostRequest::PreservedFd {
            name: name.to_owned(),
            instance,
        };
        match self.0.call(&request)? {
            HostReply::Fd(fd) => Ok(Some(adopt(fd))),
            HostReply::NoFd => Ok(None),
            other => Err(out_of_place(&other)),
        }
    }

    /// The file at `path` if it is one that an operator has opened for this process (a path
    /// `/dev/fdset/N`); nothing if the device is to open the path itself. Ask before opening a file
    /// that a property names.
    pub fn passed_file(&self, path: &str, write: bool, direct: bool) -> Result<Option<OwnedFd>> {
        let request = HostRequest::PassedFile {
            path: path.to_owned(),
            write,
            direct,
        };
        match self.0.call(&request)? {
            HostReply::Fd(fd) => Ok(Some(adopt(fd))),
            HostReply::NoFd => Ok(None),
            other => Err(out_of_place(&other)),
        }
    }

    /// The guest has set the device's clock, which is `ahead` of the host's by now, in seconds. QEMU's
    /// event RTC_CHANGE, which is sent once a second at most: the device says each change.
    pub fn clock_set(&self, ahead: i64) -> Result<()> {
        match self.0.call(&HostRequest::ClockSet { ahead })? {
            HostReply::Done => Ok(()),
            other => Err(out_of_place(&other)),
        }
    }

    /// The guest has begun (`open`) or ceased to use the device's child `id`: QEMU's event
    /// VSERPORT_CHANGE, and `frontend-open` of the child's character device in `query-chardev`. Told
    /// whenever it changes; what was open where the state came from is told at `start`.
    pub fn guest_opened(&self, child: &str, open: bool) -> Result<()> {
        self.done(&HostRequest::GuestOpened {
            child: child.to_owned(),
            open,
        })
    }

    /// An eventfd that raises an edge-triggered interrupt for each write: a line of a platform
    /// device, an MSI-X vector of a PCI function. From `realize` on: it is wired once the host knows
    /// what the device turned out to be.
    pub fn irqfd(&self, line: u32) -> Result<EventFd> {
        match self.0.call(&HostRequest::Irqfd { line })? {
            HostReply::Fd(fd) => Ok(eventfd_from(adopt(fd))),
            other => Err(out_of_place(&other)),
        }
    }

    /// Sets a level-triggered line of a platform device.
    pub fn set_irq(&self, line: u32, level: bool) {
        self.0.set_irq(line, level);
    }

    /// The descriptors of the character device `id`.
    pub fn chardev(&self, id: &str) -> Result<Chardev> {
        match self.0.call(&HostRequest::Chardev { id: id.to_owned() })? {
            HostReply::Chardev { input, output } => Ok(Chardev {
                input: input.map(adopt),
                output: output.map(adopt),
            }),
            other => Err(out_of_place(&other)),
        }
    }

    /// A guest write of `width` bytes (0: any) at `offset` of a region signals `event`.
    pub fn ioeventfd(&self, region: u32, offset: u64, width: u32, event: &EventFd) -> Result<()> {
        let fd = event.as_raw_fd();
        self.done(&HostRequest::IoEventFd {
            region,
            offset,
            width,
            fd,
        })
    }

    /// Tells the driver of a virtio device that the config space has changed.
    pub fn config_changed(&self) -> Result<()> {
        self.done(&HostRequest::ConfigChanged)
    }

    /// Tells where a BAR of a PCI function decodes now.
    pub fn pci_bar(&self, bar: u32, address: Option<u64>) -> Result<()> {
        self.done(&HostRequest::PciBar { bar, address })
    }

    /// Lets the guest reach `size` bytes at `offset` of a PCI function's memory BAR as what `fd` has at
    /// `fd_offset`, without the device. To be called once the device is realized. A host that cannot
    /// gives an error of kind [`Unsupported`](crate::ErrorKind::Unsupported), and all accesses come to
    /// the device as before.
    pub fn pci_map(
        &self,
        bar: u32,
        offset: u64,
        size: u64,
        fd: &dyn AsRawFd,
        fd_offset: u64,
    ) -> Result<()> {
        self.done(&HostRequest::PciMap {
            bar,
            offset,
            size,
            fd: fd.as_raw_fd(),
            fd_offset,
        })
    }

    /// Tells KVM that the function is a device of the host, of this group of VFIO. From `realize` on.
    pub fn vfio_file(&self, group: &impl AsRawFd) -> Result<()> {
        let fd = group.as_raw_fd();
        self.done(&HostRequest::VfioFile { fd })
    }

    /// Tells what an MSI-X vector of a PCI function sends now.
    pub fn msix_vector(&self, vector: u32, message: Option<MsiMessage>) -> Result<()> {
        self.done(&HostRequest::MsixVector { vector, message })
    }

    /// The device is broken. The guest and the other devices go on.
    pub fn failed(&self, reason: &str) {
        if let Err(error) = self.done(&HostRequest::Failed {
            reason: reason.to_owned(),
        }) {
            self.log(1, "baton_plugin_api", &error.to_string());
        }
    }

    /// A line for the host's log; `level` goes from 1 (error) to 5 (trace). The macros of
    /// `tracing` come here too.
    pub fn log(&self, level: u32, target: &str, message: &str) {
        self.0.log(level, target, message);
    }

    /// The highest level the host wants.
    pub fn log_level(&self) -> u32 {
        self.0.log_level()
    }

    fn done(&self, request: &HostRequest) -> Result<()> {
        match self.0.call(request)? {
            HostReply::Done => Ok(()),
            other => Err(out_of_place(&other)),
        }
    }
}

fn out_of_place(reply: &HostReply) -> Error {
    Error::state(format!(
        "The host gave an answer that does not fit its question: {reply:?}"
    ))
}
