//! The monitors' sockets in a cpr-transfer.
//!
//! A target whose command line names a place where the source listens takes that very socket over, so
//! that who connects there reaches the guest's process at any time, and nobody is ever refused. The
//! source is told by an eventfd that comes with each socket, which is counted up once the guest runs in
//! the target.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use baton_migration::HostError;
use baton_migration::fds::{FdKey, FdTable};
use baton_migration::handover::OutgoingFd;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::write;

use crate::control::serve_monitors;
use crate::monitor::{Kept, MonitorAddress, MonitorOption};
use crate::vm::Vm;

/// Whose the descriptors are.
const OWNER: &str = "monitor";
/// Instances of a descriptor: the listening socket, and what says that it was taken.
const SOCKET: u32 = 0;
const TAKEN: u32 = 1;

/// The source's side: where it listens, and what says that the target does.
#[derive(Default)]
pub struct OfferedMonitors(Vec<(MonitorAddress, EventFd)>);

impl OfferedMonitors {
    /// Adds the descriptors that the target needs to `out`.
    pub fn offer(vm: &Vm, out: &mut Vec<OutgoingFd>) -> Result<Self, HostError> {
        let sockets = vm.with_monitor(|monitor| monitor.sockets());
        let mut offered = Self::default();
        for (address, socket) in sockets.transpose()?.unwrap_or_default() {
            let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
            let taken = EventFd::from_value_and_flags(0, flags)?;
            let copy = std::os::fd::AsFd::as_fd(&taken).try_clone_to_owned()?;
            let name = address.to_string();
            for (instance, fd) in [(SOCKET, socket), (TAKEN, copy)] {
                let key = FdKey::new(OWNER, &name, instance);
                out.push(OutgoingFd { key, fd });
            }
            offered.0.push((address, taken));
        }
        Ok(offered)
    }

    /// Lets nobody in while it is not known whose the guest will be.
    pub fn shut(&self, vm: &Vm, shut: bool) {
        if !self.0.is_empty() {
            vm.with_monitor(|monitor| monitor.shut(shut));
        }
    }

    /// The guest is the target's: what it has taken is its own.
    pub fn settle(&mut self, vm: &Vm) {
        let taken =
            |(address, taken): (MonitorAddress, EventFd)| taken.read().ok().map(|_| address);
        let taken: Vec<_> = self.0.drain(..).filter_map(taken).collect();
        vm.with_monitor(|monitor| {
            monitor.give_up(&taken);
            monitor.shut(false);
        });
    }
}

/// The target's side.
pub struct InheritedMonitors {
    addresses: Vec<MonitorAddress>,
    kept: Kept,
    taken: Vec<OwnedFd>,
}

impl InheritedMonitors {
    /// Takes the sockets of `options` out of what the source has handed over, and closes the others.
    pub fn take(fds: &FdTable, options: &[MonitorOption]) -> Result<Self, HostError> {
        let (mut sockets, mut taken, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        for option in options {
            let name = option.address.to_string();
            if fds.has(OWNER, &name, SOCKET) && fds.has(OWNER, &name, TAKEN) {
                sockets.push((option.clone(), fds.take(OWNER, &name, SOCKET)?));
                taken.push(fds.take(OWNER, &name, TAKEN)?);
                ours.push(option.address.clone());
            }
        }
        for other in fds.unclaimed().iter().filter(|key| key.owner == OWNER) {
            drop(fds.take(OWNER, &other.name, other.instance)?);
        }
        Ok(Self {
            addresses: ours,
            kept: Kept::from_sockets(sockets)?,
            taken,
        })
    }

    /// Whether `address` is one of them.
    pub fn has(&self, address: &MonitorAddress) -> bool {
        self.addresses.iter().any(|own| own.is_same_place(address))
    }

    /// Tells the source that its clients come here from now on.
    pub fn claim(&self) {
        for fd in &self.taken {
            // The source may be gone; then nobody else listens.
            let _ = write(fd, &1_u64.to_ne_bytes());
        }
    }

    /// Serves them beside those that are served already. The guest runs, with a monitor or without.
    pub fn serve(self, vm: &Arc<Vm>) {
        let mut kept = vm
            .take_monitor()
            .map(crate::monitor::Monitor::detach)
            .unwrap_or_default();
        kept.merge(self.kept);
        if let Err(e) = serve_monitors(vm, kept) {
            tracing::error!("{}", baton_migration::error_chain(&e));
        }
    }
}
