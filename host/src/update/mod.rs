//! `baton update`: replaces the process of a running guest by another program.
//!
//! The update is a client of the running process's monitor, with no part in what happens to the guest:
//! it may die at any instruction, and the guest runs in the old process or in the new one.

mod check;
mod exec;
mod line;
mod migration;
mod output;
mod process;
mod program;
mod qmp;
mod session;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use baton_migration::{HostError, Mode, error_chain};
use serde_json::{Value, json};

use output::Progress;
use session::Session;

/// What `baton update` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateOptions {
    /// Where the guest's process has its monitor.
    pub qmp: qmp::Address,
    /// The program that shall take the guest; this one if none is named.
    pub binary: Option<PathBuf>,
    /// The folder of its plugins.
    pub plugins: Option<PathBuf>,
    /// How.
    pub mode: Mode,
    /// How long the new process may take to be ready, and then the guest to go over.
    pub timeout: Duration,
    /// Where the new process writes its log.
    pub log: Option<PathBuf>,
    /// Only look.
    pub dry_run: bool,
    /// The result is JSON.
    pub json: bool,
}

/// Does what was asked for, and prints how it went. An error is that of an update that did not happen.
pub fn run(options: &UpdateOptions) -> Result<ExitCode, HostError> {
    if options.dry_run {
        return check::run(options);
    }
    let mut progress = Progress::new(options.json);
    let outcome = update(options, &mut progress);
    match &outcome {
        Ok(result) if options.json => output::print(&serde_json::to_string_pretty(result)?),
        Ok(result) => output::print(&output::summary(result)),
        Err(e) if options.json => {
            let (mode, error) = (options.mode, error_chain(&**e));
            let result = json!({ "status": "failed", "mode": mode, "error": error });
            output::print(&serde_json::to_string_pretty(&result)?);
        }
        Err(_) => {}
    }
    outcome.map(|_| ExitCode::SUCCESS)
}

fn update(options: &UpdateOptions, progress: &mut Progress) -> Result<Value, HostError> {
    let mut session = Session::open(options)?;
    let devices = session.devices()?;
    let program = program::find(options, &session.origin, &devices)?;
    program.version(options.timeout)?;
    progress.say(&format!(
        "the guest runs in process {}, Baton {}",
        session.origin.pid, session.origin.version
    ));
    session.refuse_blockers(options.mode)?;
    match options.mode {
        Mode::CprExec => exec::run(options, session, &program, progress),
        _ => transfer::run(options, session, &program, progress),
    }
}
