//! One process of the VMM in the life of a guest.

use super::super::inside;
use anyhow::{Context, Result, bail};
use baton_testkit::process::{self, Running};
use baton_testkit::qmp::Qmp;
use baton_testkit::sockets;
use baton_testkit::terminal::Tty;
use baton_testkit::wait::wait_for;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

const START: Duration = Duration::from_secs(60);

/// Where a process has its guest from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin<'a> {
    /// It boots it.
    Boot,
    /// Another process hands it over by cpr-transfer.
    Transfer,
    /// The same, with the main channel that the document of QEMU's has: an address of TCP, or `defer`.
    Document(&'a str),
    /// What `-incoming` says: where it was kept, or `defer`.
    Incoming(&'a str),
}

/// Killed when dropped: nothing outlives the job.
pub(crate) struct Generation {
    number: u32,
    process: Running,
    qmp: Option<Qmp>,
}

impl Generation {
    /// Starts the VMM with `line`.
    pub(crate) fn start(number: u32, line: &[String], origin: Origin<'_>) -> Result<Self> {
        let mut command = command(number, line, origin)?;
        Self::run(number, command.stdin(Stdio::null()), origin)
    }

    /// Starts it with a monitor for a person at a terminal.
    pub(crate) fn at_terminal(
        number: u32,
        line: &[String],
        origin: Origin<'_>,
    ) -> Result<(Self, Tty)> {
        let mut command = command(number, line, origin)?;
        command.args(["-monitor", "stdio"]);
        let tty = Tty::of(&mut command)?;
        Ok((Self::run(number, &mut command, origin)?, tty))
    }

    fn run(number: u32, command: &mut Command, origin: Origin<'_>) -> Result<Self> {
        let child = process::spawn(command)?;
        let mut generation = Self {
            number,
            process: Running::new(child),
            qmp: None,
        };
        if matches!(origin, Origin::Transfer | Origin::Document(_)) {
            // The cpr channel's socket comes first: until a guest arrives there is no monitor.
            generation.wait_for_socket(&socket("cpr", number))?;
        }
        Ok(generation)
    }

    /// Where a source sends its guest to reach this process by the document's main channel.
    pub(crate) fn document_channels(&self, port: &str) -> Value {
        let main = json!({
            "channel-type": "main",
            "addr": { "transport": "socket", "type": "inet", "host": "0", "port": port }
        });
        json!([main, channel("cpr", self.number)])
    }

    /// Where a source sends its guest to reach this process.
    pub(crate) fn channels(&self) -> Value {
        json!([channel("main", self.number), channel("cpr", self.number)])
    }

    /// The command by which this process becomes `program`, with the same guest and monitor.
    pub(crate) fn successor(&self, program: &str, line: &[String]) -> Vec<String> {
        let mut command = vec![program.to_owned()];
        command.extend_from_slice(line);
        command.extend(monitor(self.number));
        command
    }

    /// The program this process runs.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.process.pid()))
            .with_context(|| format!("Cannot see what {} runs", self.name()))
    }

    /// The path of the monitor's socket.
    pub(crate) fn monitor(&self) -> String {
        socket("qmp", self.number)
    }

    /// Stands for the process that has taken the guest and the monitor, if that is another.
    pub(crate) fn go_on_as(&mut self, pid: u32) -> Result<()> {
        self.qmp = None;
        if pid != self.process.pid() {
            let status = self.ended(START)?;
            if !status.success() {
                bail!("{} ended with {status}", self.name());
            }
            self.process.succeeded_by(pid);
        }
        Ok(())
    }

    /// Runs a monitor command, connecting first when that has not been done.
    pub(crate) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let mut qmp = match self.qmp.take() {
            Some(qmp) => qmp,
            None => {
                let path = socket("qmp", self.number);
                self.wait_for_socket(&path)?;
                Qmp::connect(path.as_ref())?
            }
        };
        let answer = qmp.execute(name, arguments);
        self.qmp = Some(qmp);
        answer.with_context(|| self.name())
    }

    /// Waits for an event of the monitor that the last command went to; gives its data.
    pub(crate) fn wait_event(&mut self, name: &str) -> Result<Value> {
        let qmp = self.qmp.as_mut().context("No monitor was asked yet")?;
        let data = qmp.wait_event(name);
        data.with_context(|| self.name())
    }

    pub(crate) fn status(&mut self) -> Result<String> {
        let answer = self.command("query-status", &json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for the process to end by itself.
    pub(crate) fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("VMM {} to end", self.number);
        wait_for(&what, limit, || self.process.ended())
    }

    /// An error when the process has ended.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("{} ended too early ({status})", self.name()),
            None => Ok(()),
        }
    }

    /// The process, for an error: its number and the last thing it said.
    pub(crate) fn name(&self) -> String {
        let log = fs::read_to_string(log_file(self.number)).unwrap_or_default();
        match log.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(last) => format!("VMM {} (its last words: {last})", self.number),
            None => format!("VMM {}", self.number),
        }
    }

    fn wait_for_socket(&mut self, path: &str) -> Result<()> {
        let what = format!("VMM {} to listen on {path}", self.number);
        wait_for(&what, START, || {
            self.alive()?;
            Ok(sockets::listens(path.as_ref())?.then_some(()))
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // It has usually ended by now, and there is nobody left to tell.
        if let Ok(None) = self.process.ended() {
            self.process.signal(Signal::SIGKILL).ok();
            self.ended(START).ok();
        }
    }
}

/// The process that has this number, without its standard input.
fn command(number: u32, line: &[String], origin: Origin<'_>) -> Result<Command> {
    let log = log_file(number);
    let log = File::create(&log).with_context(|| format!("Cannot create {log}"))?;
    let errors = log.try_clone().context("Cannot share the VMM's log")?;
    let mut command = Command::new(inside::VMM);
    command.args(line).args(monitor(number));
    let main = match origin {
        Origin::Boot => None,
        Origin::Transfer => Some(format!("unix:{}", socket("main", number))),
        Origin::Document(main) | Origin::Incoming(main) => Some(main.to_owned()),
    };
    if let Some(main) = main {
        command.args(["-incoming", &main]);
    }
    if matches!(origin, Origin::Transfer | Origin::Document(_)) {
        command.args(["-incoming", &channel("cpr", number).to_string()]);
    }
    command.stdout(log).stderr(errors);
    Ok(command)
}

fn log_file(number: u32) -> String {
    format!("{}/vmm-{number}.log", inside::OUT)
}

fn socket(kind: &str, number: u32) -> String {
    format!("/tmp/{kind}-{number}.sock")
}

fn monitor(number: u32) -> [String; 2] {
    let socket = socket("qmp", number);
    [
        "-qmp".to_owned(),
        format!("unix:{socket},server=on,wait=off"),
    ]
}

fn channel(kind: &str, number: u32) -> Value {
    json!({
        "channel-type": kind,
        "addr": { "transport": "socket", "type": "unix", "path": socket(kind, number) }
    })
}
