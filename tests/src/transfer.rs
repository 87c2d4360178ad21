//! Handing a guest over from one process to the next by cpr-transfer.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::wait::{PATIENCE, wait_for};

/// A handover that has taken place.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The source's answer to `query-migrate`.
    pub info: Value,
}

impl Handover {
    /// The blackout as the VMM measured it, in milliseconds: Baton's own count to the microsecond,
    /// or else `downtime`, which is whole milliseconds and, with QEMU, the source's part only.
    pub fn blackout_ms(&self) -> Option<f64> {
        let exact = self.info["blackout"]["total-us"]
            .as_f64()
            .map(|us| us / 1000.0);
        exact.or_else(|| self.info["downtime"].as_f64())
    }

    /// Baton's breakdown of the blackout, in microseconds: phase and length.
    pub fn phases(&self) -> Vec<(String, u64)> {
        let phases = self.info["blackout"].as_object().into_iter().flatten();
        phases
            .filter_map(|(name, us)| Some((name.clone(), us.as_u64()?)))
            .collect()
    }
}

/// Hands the guest over and waits until the target has it and the source has let go of it.
///
/// # Errors
/// When it does not succeed; where the guest is then, the machines tell.
pub fn transfer(source: &mut Machine, target: &mut Machine) -> Result<Handover> {
    let stays = source.status_elsewhere()?;
    begin(source, target)?;
    let info = outcome(source)?;
    if info["status"] != "completed" {
        bail!("The handover ended with {info}");
    }
    target.wait_status(&stays)?;
    let left = source.status()?;
    ensure!(
        left == "postmigrate",
        "The source is '{left}' after the handover, not 'postmigrate'"
    );
    Ok(Handover { info })
}

/// Hands the guest over to a new process, and ends the old one; gives the new one.
///
/// # Errors
/// When any of that fails.
pub fn succeed(mut source: Machine) -> Result<(Machine, Handover)> {
    let mut target = source.successor()?;
    let handover = transfer(&mut source, &mut target)?;
    source.quit()?;
    Ok((target, handover))
}

/// Says what kind of migration it is, and starts it.
///
/// # Errors
/// When either is refused.
pub fn begin(source: &mut Machine, target: &Machine) -> Result<()> {
    set_mode(source)?;
    source.qmp()?.forget_events();
    source
        .execute("migrate", &json!({ "channels": target.channels() }))
        .map(drop)
}

/// Says what kind of migration it is.
///
/// # Errors
/// When it is refused.
pub fn set_mode(source: &mut Machine) -> Result<()> {
    source
        .execute("migrate-set-parameters", &json!({ "mode": "cpr-transfer" }))
        .map(drop)
}

/// Switches a migration capability on or off.
///
/// # Errors
/// When it is refused.
pub fn set_capability(machine: &mut Machine, capability: &str, on: bool) -> Result<()> {
    let list = json!([{ "capability": capability, "state": on }]);
    machine
        .execute("migrate-set-capabilities", &json!({ "capabilities": list }))
        .map(drop)
}

/// Waits for a migration's end without asking meanwhile, which would take time from it; gives the
/// source's account.
///
/// # Errors
/// When it does not end.
pub fn outcome(source: &mut Machine) -> Result<Value> {
    let ended = |data: &Value| {
        matches!(
            data["status"].as_str(),
            Some("completed" | "failed" | "cancelled")
        )
    };
    source
        .qmp()?
        .wait_event_with("MIGRATION", ended)
        .with_context(|| source.name())?;
    // The event comes a moment before the account is complete.
    wait_for("the source's account of the migration", PATIENCE, || {
        let info = source.execute("query-migrate", &json!({}))?;
        Ok(ended(&info).then_some(info))
    })
}

/// Sets mode cpr-exec with a command, and starts it.
///
/// # Errors
/// When either is refused.
pub fn begin_exec(machine: &mut Machine, command: &[String]) -> Result<()> {
    begin_exec_at(machine, command, None)
}

/// The same with an address for the state.
///
/// # Errors
/// When either is refused.
pub fn begin_exec_at(machine: &mut Machine, command: &[String], uri: Option<&str>) -> Result<()> {
    let parameters = json!({ "mode": "cpr-exec", "cpr-exec-command": command });
    machine.execute("migrate-set-parameters", &parameters)?;
    machine.qmp()?.forget_events();
    let arguments = uri.map_or(json!({}), |uri| json!({ "uri": uri }));
    machine.execute("migrate", &arguments).map(drop)
}

/// Lets the process execute itself, and waits until the guest runs in the new program.
///
/// # Errors
/// When it does not succeed.
pub fn execute_successor(machine: &mut Machine) -> Result<Handover> {
    let command = machine.command();
    execute_at(machine, &command, None)
}

/// The same with a command and an address for the state.
///
/// # Errors
/// When it does not succeed.
pub fn execute_at(
    machine: &mut Machine,
    command: &[String],
    uri: Option<&str>,
) -> Result<Handover> {
    begin_exec_at(machine, command, uri)?;
    let info = outcome(machine)?;
    ensure!(
        info["status"] == "completed",
        "It ended with {info}; {}",
        machine.log()
    );
    Ok(Handover { info })
}
