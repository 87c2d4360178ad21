//! Faults that are wanted of Baton's processes; see `migration/src/fault.rs`.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

use crate::machine::Machine;
use crate::process;
use crate::wait::{PATIENCE, wait_for};

/// What makes Baton less patient with a peer that does not answer.
const LESS_PATIENCE: &str = "patience";

impl Machine {
    /// Wants `what` to happen at `place`, once, in whichever process of this guest comes there first.
    ///
    /// # Errors
    /// When that cannot be said.
    pub fn want_fault(&self, place: &str, what: &str) -> Result<()> {
        self.say_fault(place, what)
    }

    /// How long processes wait for a peer from here on; as usual if nothing is said.
    ///
    /// # Errors
    /// When that cannot be said.
    pub fn be_patient(&self, time: Option<Duration>) -> Result<()> {
        match time {
            Some(time) => self.say_fault(LESS_PATIENCE, &time.as_millis().to_string()),
            None => fs::remove_file(self.world.faults().join(LESS_PATIENCE)).context("Cannot wait"),
        }
    }

    fn say_fault(&self, name: &str, text: &str) -> Result<()> {
        let faults = self.world.faults();
        // Whole or not at all.
        let unfinished = faults.join(".new");
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, faults.join(name)))
            .with_context(|| format!("Cannot want a fault at {name}"))
    }

    /// Whether the fault at `place` has happened.
    pub fn faulted(&self, place: &str) -> bool {
        !self.world.faults().join(place).exists()
    }

    /// Waits until the process has stopped (SIGSTOP) at `place`.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_stopped(&self, place: &str) -> Result<()> {
        wait_for(&format!("the process to stop at {place}"), PATIENCE, || {
            Ok((self.faulted(place) && process::stopped(self.pid())).then_some(()))
        })
    }

    /// Waits until the process has died, and stands for the one that takes its place from here on.
    ///
    /// # Errors
    /// When it does not die, or none or more than one takes its place.
    pub fn rescued(&mut self) -> Result<()> {
        let died = self.pid();
        self.ended()?;
        let heirs = self.others();
        ensure!(heirs.len() == 1, "{heirs:?} come after {died}");
        self.process.succeeded_by(heirs[0]);
        Ok(())
    }

    /// Processes of this guest that no [`Machine`] of the test may stand for: all but this one.
    pub fn others(&self) -> Vec<u32> {
        let mut all = process::living_in(self.world.scratch.path());
        all.retain(|pid| *pid != self.pid());
        all
    }

    /// Waits until this is the only process of its guest, and has no child left.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn wait_alone(&self) -> Result<()> {
        let mut left = (Vec::new(), Vec::new());
        let alone = wait_for("other processes of the guest to end", PATIENCE, || {
            left = (self.others(), process::children(self.pid())?);
            Ok((left.0.is_empty() && left.1.is_empty()).then_some(()))
        });
        alone.with_context(|| format!("In its folder, and children of {}: {left:?}", self.pid()))
    }
}
