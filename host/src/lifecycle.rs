//! What the surroundings of the process are told at the turns of its life: `-pidfile`, `-run-with
//! user=` and `-daemonize`.

use std::path::PathBuf;

use baton_migration::HostError;

use crate::cli::{Options, RunAs};
use crate::daemon::Daemon;
use crate::pidfile;

/// What is left to tell.
pub struct Lifecycle {
    pidfile: Option<PathBuf>,
    user: Option<RunAs>,
    daemon: Option<Daemon>,
    /// Whether the guest comes from elsewhere.
    incoming: bool,
    /// Standard error is where the log goes.
    keep_errors: bool,
}

impl Lifecycle {
    /// Nothing has been told yet.
    pub fn new(options: &Options, daemon: Option<Daemon>) -> Self {
        Self {
            pidfile: options.pidfile.clone(),
            user: options.run_as.clone(),
            daemon,
            incoming: options.incoming.is_some(),
            // As in QEMU.
            keep_errors: !options.log.items.is_empty() && options.log.file.is_none(),
        }
    }

    /// All is open and the guest does not run yet, or is waited for. A guest that comes from elsewhere
    /// may need more to be opened, and may leave its PID file to this process only later.
    pub fn set_up(&mut self) -> Result<(), HostError> {
        if let Some(path) = &self.pidfile
            && !pidfile::create(path).map_err(|e| format!("-pidfile {}: {e}", path.display()))?
            && !self.incoming
        {
            // QEMU's text, and what to do.
            return Err(format!(
                "-pidfile {}: cannot create PID file: Cannot lock pid file: the process that wrote \
                 it is still there; stop it, or name another file",
                path.display()
            )
            .into());
        }
        match &self.user {
            Some(user) if !self.incoming => Ok(user.assume()?),
            _ => Ok(()),
        }
    }

    /// Lets the process that was started end.
    pub fn up(&mut self) -> Result<(), HostError> {
        match self.daemon.take() {
            Some(daemon) => daemon.up(self.keep_errors),
            None => Ok(()),
        }
    }

    /// The guest has come, and runs: no error is a reason to end here.
    pub fn guest_is_here(&mut self) {
        if let Some(path) = &self.pidfile
            && let Err(e) = pidfile::take_over(path)
        {
            tracing::error!("-pidfile {}: {e}", path.display());
        }
        if let Some(user) = &self.user
            && let Err(e) = user.assume()
        {
            tracing::error!("the rights of root are kept: {e}");
        }
    }
}
