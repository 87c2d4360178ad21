//! What this program inherits, if it was executed with a guest.
// Taking a variable out of the environment is unsafe beside other threads.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use baton_migration::HostError;
use baton_migration::claim::{ClaimWatch, Moment};
use baton_migration::fds::FdTable;
use baton_plugin_api::Object;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use serde_bytes::ByteBuf;

use super::handoff::{self, Handoff, Monitors, OldProgram};
use super::program::{FAILED, STATE};
use super::{fds, holder};
use crate::chardev::Changes;
use crate::cli::{DeviceOption, chardev};
use crate::monitor::Kept;
use crate::nodes::Nodes;

/// Longest state, in bytes.
const LONGEST: u64 = 256 << 20;

/// Why this program was executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// To show that it could take the guest, which runs elsewhere.
    Rehearsal,
    /// To take the guest.
    Successor,
    /// It is the old program again, since its successor failed.
    Rollback {
        /// Why.
        reason: String,
    },
}

/// The inheritance. The descriptors themselves stay as they came until [`Inherited::release`], so
/// that the old program can inherit them again.
pub struct Inherited {
    /// The way back.
    pub old: OldProgram,
    /// The descriptor of the handoff.
    pub fd: RawFd,
    /// Why this program runs.
    pub purpose: Purpose,
    /// What was handed over, if it can be understood.
    pub handoff: Result<Handoff, String>,
}

/// Takes what the environment says. Call it first of all, before there is another thread.
pub fn inherited() -> Result<Option<Inherited>, HostError> {
    let Some(value) = std::env::var_os(STATE) else {
        return Ok(None);
    };
    let failed = std::env::var_os(FAILED);
    // SAFETY: there is no other thread yet.
    unsafe {
        std::env::remove_var(STATE);
        std::env::remove_var(FAILED);
    }
    // Whatever the old program's thread had blocked when it executed this one.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let refused = |reason: &str| format!("{STATE}: the descriptor it names {reason}");
    let fd: RawFd = value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| refused("is no number; unset the variable"))?;
    let copy = fds::duplicate(fd).map_err(|e| refused(&format!("is not open: {e}")))?;
    let (old, handoff) = handoff::read(copy).map_err(|e| refused(&e))?;
    let purpose = match failed {
        Some(reason) => Purpose::Rollback {
            reason: reason.to_string_lossy().into_owned(),
        },
        None if handoff.as_ref().is_ok_and(|h| h.answer.is_some()) => Purpose::Rehearsal,
        None => Purpose::Successor,
    };
    Ok(Some(Inherited {
        old,
        fd,
        purpose,
        handoff,
    }))
}

impl Inherited {
    /// What was handed over.
    pub fn handoff(&self) -> Result<&Handoff, HostError> {
        self.handoff.as_ref().map_err(|e| e.clone().into())
    }

    /// Duplicates of the descriptors, for the machine.
    pub fn table(&self) -> Result<FdTable, HostError> {
        let table = FdTable::new();
        for (key, number) in &self.handoff()?.fds {
            let fd = fds::duplicate(*number)
                .map_err(|e| format!("Descriptor {key} was handed over as {number}: {e}"))?;
            table.insert(key.clone(), fd)?;
        }
        Ok(table)
    }

    /// The plugins that the old program has loaded.
    pub fn plugins(&self) -> Result<Vec<(PathBuf, File)>, HostError> {
        let open = |(path, number): &(ByteBuf, RawFd)| {
            let file = File::from(self.duplicate("a plugin", *number)?);
            Ok((PathBuf::from(OsString::from_vec(path.to_vec())), file))
        };
        self.old.plugins.iter().map(open).collect()
    }

    /// The old program's block nodes that its arguments do not say.
    pub fn nodes(&self) -> Result<Nodes, HostError> {
        Ok(Nodes::said_before(self.old.nodes.clone())?)
    }

    /// The old program's objects that its arguments do not say.
    pub fn objects(&self) -> Vec<Object> {
        self.old.objects.clone()
    }

    /// What of the old program's character devices its arguments do not say.
    pub fn chardevs(&self) -> Result<Changes, HostError> {
        let come = self.old.chardevs.iter().map(|text| chardev::parse(text));
        Ok(Changes {
            come: come.collect::<Result<_, _>>()?,
            gone: self.old.chardevs_gone.clone(),
        })
    }

    /// The devices that the old program has, if its arguments do not say so.
    pub fn devices(&self) -> Result<Option<Vec<DeviceOption>>, HostError> {
        let read = |text: &String| -> Result<DeviceOption, HostError> {
            let device = DeviceOption::from_arguments(serde_json::from_str(text)?)?;
            Ok(DeviceOption {
                hotplugged: false,
                ..device
            })
        };
        let devices = self.old.devices.as_ref();
        devices
            .map(|devices| devices.iter().map(read).collect())
            .transpose()
    }

    /// The state, if it is in memory.
    pub fn state(&self) -> Result<Option<Vec<u8>>, HostError> {
        let Some(number) = self.handoff()?.state else {
            return Ok(None);
        };
        let mut file = File::from(self.duplicate("the state", number)?);
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.take(LONGEST).read_to_end(&mut bytes))
            .map_err(|e| format!("The state cannot be read: {e}"))?;
        Ok(Some(bytes))
    }

    /// The claim's page.
    pub fn claim(&self) -> Result<OwnedFd, HostError> {
        let number = self.handoff()?.claim.ok_or("No claim was handed over")?;
        self.duplicate("the claim", number)
    }

    /// The monitors, on duplicates of their descriptors. If the next program has spoken to their
    /// clients since they were described, nobody knows in the middle of what: they are disconnected,
    /// and may connect again.
    pub fn monitors(&self, claim: &ClaimWatch) -> Result<Kept, HostError> {
        let Some(monitors) = &self.handoff()?.monitors else {
            return Ok(Kept::default());
        };
        let fds = monitors
            .fds
            .iter()
            .map(|number| self.duplicate("a monitor", *number))
            .collect::<Result<_, _>>()?;
        let description = rmp_serde::from_slice(&monitors.description)
            .map_err(|e| format!("The monitors' description cannot be understood: {e}"))?;
        let mut kept = Kept::from_parts(description, fds)?;
        if claim.noted(Moment::Waiting) && !monitors.renewed {
            kept.disconnect();
        }
        Ok(kept)
    }

    /// The old program, if it is executed again, inherits the monitors as they are now.
    pub fn renew_monitors(
        &mut self,
        description: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), HostError> {
        let mut handoff = self.handoff()?.clone();
        let monitors = Monitors {
            description: ByteBuf::from(description),
            fds: fds.iter().map(AsRawFd::as_raw_fd).collect(),
            renewed: true,
        };
        let before = handoff.monitors.replace(monitors);
        let memfd = handoff::write(&self.old, &handoff)?;
        fds.iter().try_for_each(|fd| fds::keep(fd, true))?;
        // All of it or nothing.
        fds::replace(self.fd, &memfd)?;
        // They are inherited by number from here on.
        for fd in fds {
            let _ = fd.into_raw_fd();
        }
        self.handoff = Ok(handoff);
        before
            .into_iter()
            .flat_map(|monitors| monitors.fds)
            .for_each(fds::close);
        Ok(())
    }

    /// Answers a rehearsal.
    pub fn answer(&self, outcome: Result<(), &str>) {
        let Some(number) = self.handoff.as_ref().ok().and_then(|h| h.answer) else {
            return;
        };
        let text = match outcome {
            Ok(()) => super::rehearsal::READY.to_owned(),
            Err(reason) => reason.to_owned(),
        };
        // Whoever has asked takes silence for a failure.
        if let Ok(fd) = self.duplicate("the answer", number) {
            let _ = File::from(fd).write_all(text.as_bytes());
        }
    }

    /// The guest runs here: the old program is not needed any more, nor are the descriptors as they
    /// came.
    pub fn release(self) {
        let Ok(handoff) = self.handoff else { return };
        if let Some(handle) = handoff.holder {
            holder::let_go(handle);
        }
        let monitors = handoff.monitors.into_iter().flat_map(|m| m.fds);
        let numbers = handoff
            .fds
            .into_iter()
            .map(|(_, number)| number)
            .chain([handoff.state, handoff.claim].into_iter().flatten())
            .chain(monitors)
            .chain(self.old.plugins.into_iter().map(|(_, number)| number))
            .chain([self.fd, self.old.exe]);
        numbers.for_each(fds::close);
    }

    fn duplicate(&self, what: &str, number: RawFd) -> Result<OwnedFd, HostError> {
        fds::duplicate(number).map_err(|e| {
            format!("The descriptor of {what} was handed over as {number}: {e}").into()
        })
    }
}
