//! Everything that can be known of a guest from outside, checked at once.

use anyhow::{Result, ensure};

use crate::disk;
use crate::machine::Machine;
use crate::progress::{Progress, faults};

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Pages of RAM, every byte of them.
    pub pages: u64,
    /// Blocks of the disk.
    pub disk: disk::Checked,
}

/// Stops the guest if it runs, checks every page and block and everything the guest counts that must
/// not happen, and lets it go on.
///
/// # Errors
/// The first thing that is wrong.
pub fn examine(machine: &mut Machine) -> Result<Examined> {
    let runs = machine.status()? == "running";
    if runs {
        machine.stop()?;
    }
    let examined = examine_stopped(machine)?;
    if runs {
        machine.cont()?;
    }
    Ok(examined)
}

fn examine_stopped(machine: &Machine) -> Result<Examined> {
    let found = faults(machine.report());
    ensure!(
        found.is_empty(),
        "The guest complains: {}",
        found.join(", ")
    );
    let before = Progress::now(machine.report());
    let examined = Examined {
        pages: machine.ram().check_walk()?,
        disk: match machine.disk() {
            Some(image) => disk::check(machine.report(), &image)?,
            None => disk::Checked::default(),
        },
    };
    ensure!(
        Progress::now(machine.report()) == before,
        "The guest is stopped here, and somebody else runs it"
    );
    Ok(examined)
}
