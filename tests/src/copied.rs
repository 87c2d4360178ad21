//! Mode normal: a guest's memory is copied to another process.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::transfer::outcome;

/// Copies the guest to a process that waits, and waits until that has it.
///
/// # Errors
/// When it does not succeed.
pub fn copy(source: &mut Machine, target: &mut Machine) -> Result<Value> {
    let stays = source.status_elsewhere()?;
    begin(source, target)?;
    let info = outcome(source)?;
    if info["status"] != "completed" {
        bail!("The migration ended with {info}; {}", target.log());
    }
    target.wait_status(&stays)?;
    let left = source.status()?;
    ensure!(left == "postmigrate", "The source is '{left}'");
    Ok(info)
}

/// Starts to copy the guest to a process that waits.
///
/// # Errors
/// When that is refused.
pub fn begin(source: &mut Machine, target: &Machine) -> Result<()> {
    parameters(source, &json!({ "mode": "normal" }))?;
    source.qmp()?.forget_events();
    source
        .execute("migrate", &json!({ "uri": target.main_uri() }))
        .map(drop)
}

/// Sets migration parameters.
///
/// # Errors
/// When one is refused.
pub fn parameters(machine: &mut Machine, parameters: &Value) -> Result<()> {
    machine
        .execute("migrate-set-parameters", parameters)
        .map(drop)
}
