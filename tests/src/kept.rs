//! Keeping a guest with cpr-reboot, and loading it again.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::machine::{Machine, Main};
use crate::transfer::outcome;

/// Keeps the guest of `source` where `uri` says; it is in runstate postmigrate then.
///
/// # Errors
/// When it does not come to that.
pub fn keep(source: &mut Machine, uri: &str) -> Result<Value> {
    let info = try_to_keep(source, uri)?;
    if info["status"] != "completed" {
        bail!("The guest is not kept: {info}");
    }
    source.wait_status("postmigrate")?;
    Ok(info)
}

/// The same, whatever comes of it; gives the source's account.
///
/// # Errors
/// When the migration does not begin or not end.
pub fn try_to_keep(source: &mut Machine, uri: &str) -> Result<Value> {
    set_mode(source)?;
    source.qmp()?.forget_events();
    source.execute("migrate", &json!({ "uri": uri }))?;
    outcome(source)
}

/// Says what kind of migration it is.
///
/// # Errors
/// When it is refused.
pub fn set_mode(machine: &mut Machine) -> Result<()> {
    let mode = json!({ "mode": "cpr-reboot" });
    machine.execute("migrate-set-parameters", &mode).map(drop)
}

impl Machine {
    /// Starts a process with `-incoming INCOMING`: `defer`, or where a guest is kept.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn loading(&self, incoming: &str) -> Result<Self> {
        self.successor_unready(Main::Kept(incoming.to_owned()))
    }

    /// Keeps the guest, ends the process, and loads it into the next one, where it runs
    /// if it ran and sleeps if it slept.
    ///
    /// # Errors
    /// When any of that fails.
    pub fn through(mut self, uri: &str, incoming: &str) -> Result<Self> {
        let stays = self.status_elsewhere()?;
        keep(&mut self, uri)?;
        self.quit()?;
        let mut next = self.loading(incoming)?;
        next.wait_status(&stays)?;
        Ok(next)
    }
}
