//! What every device implements, whatever its bus.

use std::time::SystemTime;

use crate::config::{Child, Config};
use crate::descriptor::DeviceType;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::migration::{Blocker, Fd, MigrationEvent, Mode, SUBSECTION};
use crate::protocol::{Reply, Request};

/// A device. Its life: `create`, `realize`, `load` of each section if it is restored, then `start`
/// and `quiesce` of its bus class in turn, with `save` and `reset` only while quiesced.
///
/// The host calls from one thread at a time.
pub trait Device: Send + Sized + 'static {
    /// What the descriptor says of this type.
    fn device_type() -> DeviceType;

    /// Checks the config. Opens nothing yet.
    fn create(config: Config, host: Host) -> Result<Self>;

    /// Opens, maps and allocates. The same device may still be running in another process, on
    /// duplicates of the same descriptors: nothing shared is touched here.
    fn realize(&mut self) -> Result<()> {
        Ok(())
    }

    /// Back to the state of power-on.
    fn reset(&mut self) -> Result<()>;

    /// Whether a subsection, named `parent/name`, has something to say now. One that does not say
    /// anything is not saved.
    fn needed(&mut self, subsection: &str) -> bool {
        let _ = subsection;
        true
    }

    /// The state of a section, or of a subsection that is needed, in its newest version.
    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        Err(no_such_section(section))
    }

    /// Takes the state of a section or subsection, in a version that the descriptor declares; the
    /// glue has checked that. On an error the device is as before. A section is loaded as if none of
    /// its subsections were there; those that are come right after it.
    fn load(&mut self, section: &str, version: u32, data: &[u8]) -> Result<()> {
        let _ = (version, data);
        Err(no_such_section(section))
    }

    /// What blocks `mode` now, beside the descriptor's static blockers.
    fn blockers(&mut self, mode: Mode) -> Vec<Blocker> {
        let _ = mode;
        Vec::new()
    }

    /// The descriptors to hand over in `mode`.
    fn fds(&mut self, mode: Mode) -> Vec<Fd> {
        let _ = mode;
        Vec::new()
    }

    /// A migration went on.
    fn notify(&mut self, event: MigrationEvent) {
        let _ = event;
    }

    /// Something comes to sit on the device's own bus, also while the guest runs; the device is
    /// quiesced. On an error it does not come. The default is for a bus with a fixed set of children.
    fn attach(&mut self, child: Child) -> Result<()> {
        Err(fixed_children(&child.config.id))
    }

    /// A child leaves for good; the device is quiesced.
    fn detach(&mut self, id: &str) -> Result<()> {
        Err(fixed_children(id))
    }

    /// The guest is suspended: when the device, which is quiesced, wants it woken; a time that has
    /// passed is now.
    fn wake_time(&mut self) -> Option<SystemTime> {
        None
    }
}

/// The error of a section the device does not have.
pub fn no_such_section(section: &str) -> Error {
    Error::state(format!("It has no section '{section}'"))
}

fn fixed_children(id: &str) -> Error {
    let text = format!("'{id}' can neither come nor go while the device is there");
    Error::new(ErrorKind::Unsupported, text)
}

/// Nanoseconds since 1970, as far as they can be said: until the year 2554.
fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Answers the messages that mean the same on every bus; gives the others back.
pub(crate) fn common_call<D: Device>(
    device: &mut D,
    request: Request,
) -> std::result::Result<Result<Reply>, Request> {
    Ok(match request {
        Request::Reset => device.reset().map(|()| Reply::Done),
        Request::Load {
            section,
            version,
            data,
        } => device.load(&section, version, &data).map(|()| Reply::Done),
        Request::Save { section } if section.contains(SUBSECTION) && !device.needed(&section) => {
            Ok(Reply::NotNeeded)
        }
        Request::Save { section } => device.save(&section).map(|data| Reply::Saved { data }),
        Request::Blockers { mode } => Ok(Reply::Blockers(device.blockers(mode))),
        Request::Fds { mode } => Ok(Reply::Fds(device.fds(mode))),
        Request::Notify { event } => {
            device.notify(event);
            Ok(Reply::Done)
        }
        Request::WakeTime => {
            let at = device.wake_time().map(since_1970);
            Ok(Reply::WakeTime { at })
        }
        Request::Attach { child } => device.attach(*child).map(|()| Reply::Done),
        Request::Detach { id } => device.detach(&id).map(|()| Reply::Done),
        other => return Err(other),
    })
}
