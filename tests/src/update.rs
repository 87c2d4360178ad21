//! `baton update` of a test's guest.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::{Command, Output};

use crate::machine::Machine;
use crate::process::{self, ending};
use crate::wait::{PATIENCE, wait_for};
use crate::world::FAULTS;

impl Machine {
    /// `baton update` for this guest, with these arguments beside the monitor.
    pub fn update_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.world.setup.programs.binary);
        command
            .arg("update")
            .arg("--qmp")
            .arg(self.monitor_path())
            .args(arguments)
            .env(FAULTS, self.world.faults());
        command
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn try_update(&self, arguments: &[&str]) -> Result<Output> {
        self.update_command(arguments)
            .output()
            .context("Cannot start baton update")
    }

    /// Runs it, and stands for the guest's new process from then on; gives its result.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn update(&mut self, arguments: &[&str]) -> Result<Value> {
        let output = self.try_update(&[arguments, &["--json"]].concat())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "The update ended with {}: {errors}; {}",
            ending(output.status),
            self.log()
        );
        let result: Value = serde_json::from_str(&text).context("Its result is not JSON")?;
        let pid = result["now"]["pid"]
            .as_u64()
            .context("It names no process")?;
        self.go_on_as(pid as u32)?;
        Ok(result)
    }

    /// Runs one that must fail, with one line that has `reason` in it. The guest stays where it is.
    ///
    /// # Errors
    /// When it does not fail, or says something else.
    pub fn refused_update(&mut self, arguments: &[&str], reason: &str) -> Result<()> {
        let output = self.try_update(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1),
            "{}: {errors}",
            output.status
        );
        ensure!(output.stdout.is_empty(), "It has a result: {output:?}");
        ensure!(
            errors.lines().count() == 1 && errors.contains(reason),
            "Not the one line with '{reason}': {errors}; {}",
            self.log()
        );
        self.is_where_it_was()
    }

    /// The guest runs in the same process, and there is no other.
    ///
    /// # Errors
    /// When that is not so.
    pub fn is_where_it_was(&mut self) -> Result<()> {
        self.alive()?;
        let status = self.status()?;
        ensure!(status == "running" || status == "paused", "It is {status}");
        self.wait_alone()
    }

    /// Stands for the guest's process, whichever that is now, once there is only one.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn find_again(&mut self) -> Result<()> {
        let folder = self.world.scratch.path().to_owned();
        let pid = wait_for("one process to be left", PATIENCE, || {
            // Those that have ended are this process's to wait for.
            let dead = self.process.ended()?.is_some();
            let mut left = process::living_in(&folder);
            left.retain(|pid| !dead || *pid != self.pid());
            Ok(match left[..] {
                [pid] => Some(pid),
                _ => None,
            })
        })?;
        self.go_on_as(pid)?;
        self.wait_status("running")
    }

    fn go_on_as(&mut self, pid: u32) -> Result<()> {
        self.disconnect();
        if pid != self.pid() {
            self.ended()?;
            self.process.succeeded_by(pid);
        }
        Ok(())
    }
}
