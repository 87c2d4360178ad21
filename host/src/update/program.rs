//! The program that shall take the guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use baton_migration::HostError;
use serde_json::Value;

use super::UpdateOptions;
use super::line::{self, Changed, Device};
use crate::cli;
use crate::plugin;
use crate::state::Description;
use crate::successor::Origin;

/// A program with the command line that makes it have the running machine.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) line: Vec<String>,
}

/// What was added to the machine since its start, and devices name, as options of a command line.
fn added(origin: &Origin) -> Vec<(&'static str, Value)> {
    let option = |name: &'static str| move |value: &Value| (name, value.clone());
    let blockdevs = origin.blockdevs.iter().map(option("blockdev"));
    blockdevs
        .chain(origin.chardevs.iter().map(option("chardev")))
        .chain(origin.objects.iter().map(option("object")))
        .collect()
}

/// The program that was named, or this one, with the command line of the running process.
pub(super) fn find(
    options: &UpdateOptions,
    origin: &Origin,
    devices: &[Device],
) -> Result<Program, HostError> {
    let path = match &options.binary {
        Some(path) => absolute(path, "--binary")?,
        None => std::env::current_exe()
            .map_err(|e| format!("this program's own file cannot be found: {e}"))?,
    };
    let plugins = options.plugins.as_deref();
    let plugins = plugins
        .map(|path| absolute(path, "--plugin-dir"))
        .transpose()?;
    Ok(Program {
        path,
        line: line::successor(
            &origin.arguments,
            &Changed {
                added: &added(origin),
                chardevs_gone: &origin.chardevs_gone,
                devices,
            },
            plugins.as_deref(),
        )?,
    })
}

fn absolute(path: &Path, option: &str) -> Result<PathBuf, HostError> {
    path.canonicalize()
        .map_err(|e| format!("{option} {}: {e}", path.display()).into())
}

impl Program {
    /// Its version, which also shows that it is a Baton.
    pub(super) fn version(&self, timeout: Duration) -> Result<String, HostError> {
        let mut command = Command::new(&self.path);
        command.arg("-version");
        let said = self.run(&mut command, timeout)?;
        let text = String::from_utf8_lossy(&said.stdout);
        match text.trim().strip_prefix("Baton ") {
            Some(version) if said.status.success() => Ok(version
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()),
            _ => Err(format!(
                "{} is no Baton: it does not say its version",
                self.path.display()
            )
            .into()),
        }
    }

    /// What it saves and loads for the machine of its command line, and which plugins it has.
    pub(super) fn describe(
        &self,
        origin: &Origin,
        timeout: Duration,
    ) -> Result<Description, HostError> {
        let file = std::env::temp_dir().join(format!("baton-vmstate-{}", std::process::id()));
        let mut command = Command::new(&self.path);
        command
            .args(&self.line)
            .arg("-dump-vmstate")
            .arg(&file)
            .current_dir(&origin.directory);
        match &origin.plugin_path {
            Some(paths) => command.env(plugin::PATH_VARIABLE, paths),
            None => command.env_remove(plugin::PATH_VARIABLE),
        };
        let described = self.run(&mut command, timeout).and_then(|said| {
            if !said.status.success() {
                return Err(self.last_words(&said).into());
            }
            let text = std::fs::read(&file)
                .map_err(|e| format!("{} describes no machine: {e}", self.path.display()))?;
            serde_json::from_slice(&text).map_err(|e| {
                format!(
                    "{} describes its machine so that it cannot be understood: {e}",
                    self.path.display()
                )
                .into()
            })
        });
        let _ = std::fs::remove_file(&file);
        described
    }

    fn last_words(&self, said: &Output) -> String {
        let text = String::from_utf8_lossy(&said.stderr);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.map(|line| line.strip_prefix("baton: ").unwrap_or(line));
        match last {
            Some(last) => format!("{} cannot have this machine: {last}", self.path.display()),
            None => format!(
                "{} cannot have this machine: it ended with {}",
                self.path.display(),
                said.status
            ),
        }
    }

    fn run(&self, command: &mut Command, timeout: Duration) -> Result<Output, HostError> {
        let name = self.path.display();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{name} cannot be started: {e}"))?;
        let end = Instant::now() + timeout;
        while child.try_wait()?.is_none() {
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                let waited = timeout.as_secs();
                return Err(
                    format!("{name} was asked for its version for {waited} s in vain").into(),
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(child.wait_with_output()?)
    }

    /// The command of cpr-exec.
    pub(super) fn command(&self) -> Result<Vec<String>, HostError> {
        let path = self
            .path
            .to_str()
            .ok_or("The program's path is not UTF-8")?;
        let mut command = vec![path.to_owned()];
        command.extend(self.line.iter().cloned());
        // What is wrong with it is better known before anything happens.
        cli::parse(self.line.iter().map(Into::into))?;
        Ok(command)
    }
}
