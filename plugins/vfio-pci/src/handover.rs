//! What a migration means to a device that cannot be stopped, and how it stays at work while its guest
//! moves from process to process on a host.
//!
//! Container, group and device are handed over, and nothing is done to them: what is mapped stays mapped,
//! and interrupts signal the eventfds of the source until the target has its own bound. Guest memory is
//! at another address in the other process, which the kernel is told at the next start
//! (VFIO_UPDATE_VADDR of include/uapi/linux/vfio.h).

use std::os::fd::{AsRawFd, OwnedFd};

use baton_plugin_api::{Blocker, Error, Fd, FdDeclaration, Host, MigrationEvent, Mode, Result};

use crate::hardware::Hardware;

const CONTAINER: &str = "container";
const GROUP: &str = "group";
const DEVICE: &str = "device";
const LIVE: [Mode; 2] = [Mode::CprTransfer, Mode::CprExec];

/// What another instance of the device hands over.
pub(crate) struct HandedOver {
    pub(crate) container: OwnedFd,
    pub(crate) group: OwnedFd,
    pub(crate) device: OwnedFd,
}

impl HandedOver {
    /// What there is for this device: all of it, or nothing.
    pub(crate) fn claim(host: &Host) -> Result<Option<Self>> {
        let claimed = |name| host.preserved_fd(name, 0);
        match (claimed(CONTAINER)?, claimed(GROUP)?, claimed(DEVICE)?) {
            (Some(container), Some(group), Some(device)) => Ok(Some(Self {
                container,
                group,
                device,
            })),
            (None, None, None) => Ok(None),
            _ => Err(Error::state(
                "Only some of the device's descriptors were handed over; hand it over once more",
            )),
        }
    }
}

/// Where a migration is, which may be one that hands the device over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Handover {
    /// There is none.
    #[default]
    Idle,
    /// One has begun.
    Begun,
    /// And has been given the descriptors.
    Given,
}

impl Handover {
    /// Goes on; true if it has ended and the device was given away.
    pub(crate) fn notify(&mut self, event: MigrationEvent) -> bool {
        match event {
            MigrationEvent::Setup => *self = Self::Begun,
            MigrationEvent::Switchover => {}
            MigrationEvent::Cancelled | MigrationEvent::Failed | MigrationEvent::Done => {
                return std::mem::take(self) == Self::Given;
            }
        }
        false
    }

    /// The descriptors are asked for. The host also asks to know what is open, without a migration.
    pub(crate) fn give(&mut self) {
        if *self == Self::Begun {
            *self = Self::Given;
        }
    }
}

pub(crate) fn declarations() -> Vec<FdDeclaration> {
    let declared = |name: &str, help: &str| FdDeclaration {
        name: name.into(),
        help: help.into(),
        modes: LIVE.to_vec(),
    };
    vec![
        declared(
            CONTAINER,
            "The IOMMU's address space, with guest memory mapped",
        ),
        declared(GROUP, "The device's IOMMU group"),
        declared(DEVICE, "The device"),
    ]
}

/// The descriptors of a device.
pub(crate) fn fds(hardware: &Hardware) -> Vec<Fd> {
    let group = hardware.group();
    [
        (CONTAINER, group.container().fd()),
        (GROUP, group.fd()),
        (DEVICE, hardware.fd()),
    ]
    .into_iter()
    .map(|(name, fd)| Fd {
        name: name.into(),
        instance: 0,
        fd: fd.as_raw_fd(),
    })
    .collect()
}

/// What blocks every device; the reasons are QEMU's.
pub(crate) fn blockers() -> Vec<Blocker> {
    vec![
        Blocker {
            id: "vfio-normal".into(),
            reason: "VFIO migration is not supported in kernel".into(),
            remedy: "Take the device away with device_del first, and add one on the target".into(),
            modes: vec![Mode::Normal],
            unless_suspended: false,
        },
        Blocker {
            id: "vfio-at-work".into(),
            reason: "VFIO device only supports cpr-reboot for runstate suspended".into(),
            remedy: "Suspend the guest to RAM first".into(),
            modes: vec![Mode::CprReboot],
            unless_suspended: true,
        },
    ]
}

/// What blocks a device because of what the host's kernel can do.
pub(crate) fn blockers_of(hardware: &Hardware) -> Vec<Blocker> {
    let lacking = hardware.group().container().lacks();
    let blocker = lacking.map(|lacking| Blocker {
        id: "vfio-kernel".into(),
        reason: format!("VFIO container does not support {lacking}"),
        remedy:
            "Run Linux 5.12 or later on the host, or take the device away with device_del first"
                .into(),
        modes: LIVE.to_vec(),
        unless_suspended: false,
    });
    blocker.into_iter().collect()
}
