//! The places a guest can be kept in.

mod durable;
mod in_place;
mod pipe;
mod replace;

use std::path::Path;

use super::place::{Kind, Place, check_flags, kind};
use super::{Keeper, Writing};
use crate::{HostError, Mode};

use durable::Writer;
use in_place::InPlace;
use pipe::Pipe;
use replace::Replace;

/// What keeps a guest of `mode` in `place`. Nothing is opened yet but what was open before.
pub fn keeper(place: Place, mode: Mode, how: Writing) -> Result<Box<dyn Keeper + Send>, HostError> {
    let how = How { mode, ram: how };
    Ok(match place {
        Place::Exec(command) => Box::new(Pipe::command(command, how)),
        Place::File { path, offset } => match special(&path) {
            true => Box::new(InPlace::at(path, offset, how)),
            false if offset > 0 => Box::new(InPlace::at(path, offset, how)),
            false => Box::new(Replace::new(path, how)),
        },
        Place::Fd { name, fd } => {
            let wrong = |e: HostError| -> HostError { format!("Descriptor {name}: {e}").into() };
            check_flags(&fd, true).map_err(wrong)?;
            match kind(&fd).map_err(wrong)? {
                Kind::Pipe => Box::new(Pipe::fd(&name, fd, how)),
                Kind::Regular | Kind::Block => Box::new(InPlace::open(&name, fd, how)?),
            }
        }
    })
}

/// What is kept, and how it is written.
#[derive(Clone, Copy)]
struct How {
    mode: Mode,
    ram: Writing,
}

/// Whether something else than a plain file has or gives that name, so that another cannot take its
/// place.
fn special(path: &Path) -> bool {
    let by_number = ["/dev/fd/", "/dev/fdset/", "/proc/"];
    let shown = path.to_string_lossy();
    by_number.iter().any(|folder| shown.starts_with(folder))
        || path.metadata().is_ok_and(|found| !found.is_file())
}
