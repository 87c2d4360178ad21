//! The QMP command `start-successor`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use baton_migration::{HostError, fault};

use super::{origin, report};
use crate::vm::Vm;

/// What shall be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments, `-incoming` among them.
    pub arguments: Vec<String>,
    /// The socket it reports to.
    pub report: PathBuf,
    /// The file its standard error goes to; it is this process's if there is none.
    pub log: Option<PathBuf>,
}

/// Starts a process beside this one that is to take its guest, and gives its id. It has this process's
/// environment, folder and standard streams, and a session of its own.
pub fn start(vm: &Arc<Vm>, wanted: &Start) -> Result<u32, HostError> {
    {
        let state = vm.state();
        if state.migrating {
            return Err("There's a migration process in progress".into());
        }
        if state.machine.is_none() {
            return Err("There is no guest in this process that a successor could take".into());
        }
    }
    let program = wanted.program.display();
    if !wanted.program.is_absolute() {
        return Err(
            format!("Parameter 'program' must be an absolute path, not '{program}'").into(),
        );
    }
    let mut command = Command::new(&wanted.program);
    command
        .args(&wanted.arguments)
        .current_dir(origin::directory()?)
        .env(report::VARIABLE, &wanted.report)
        // It is of this process.
        .env_remove("WATCHDOG_PID");
    if let Some(log) = &wanted.log {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .map_err(|e| format!("The log '{}' cannot be opened: {e}", log.display()))?;
        command.stderr(Stdio::from(file));
    }
    fault::point("source-start-successor")?;
    let mut child = command
        .spawn()
        .map_err(|e| format!("'{program}' cannot be started: {e}"))?;
    let pid = child.id();
    *vm.successor() = Some(pid);
    let parent = Arc::clone(vm);
    // A child that nobody waits for would stay. If no thread can be had, it is a name in a list.
    let waits = std::thread::Builder::new().name("successor".into());
    let spawned = waits.spawn(move || {
        let ended = child.wait();
        // Unless another was started since.
        parent.successor().take_if(|now| *now == pid);
        tracing::debug!("the successor {pid} has ended: {ended:?}");
    });
    if let Err(e) = spawned {
        tracing::warn!("nobody waits for the end of process {pid}: {e}");
    }
    Ok(pid)
}
