//! One process of the VMM in the life of a guest.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;

use crate::process::{self, Running, ending, last_words};
use crate::qmp::Qmp;
use crate::ram::GuestRam;
use crate::report::{Control, MAX_GAP_TSC, Report};
use crate::setup::{Serial, Setup};
use crate::vmm::Vmm;
use crate::wait::{PATIENCE, wait_for};
use crate::world::{FAULTS, World};
use crate::{progress, sockets};

/// How a successor waits for its guest's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Main {
    /// On a UNIX socket.
    Unix,
    /// On a TCP port.
    Tcp(u16),
    /// Until `migrate-incoming` says where; then on a UNIX socket.
    Deferred,
    /// Nowhere: it is kept where this value of `-incoming` says, or `defer`.
    Kept(String),
}

/// A process of the VMM. It is killed when this is dropped, and nothing of it remains.
pub struct Machine {
    number: u32,
    pub(crate) process: Running,
    stdin: Option<ChildStdin>,
    qmp: Option<Qmp>,
    main: Main,
    ram: Arc<GuestRam>,
    pub(crate) world: Arc<World>,
}

impl Machine {
    pub(crate) fn first(setup: Setup) -> Result<Self> {
        Self::spawn(&Arc::new(World::new(setup)?), None, None)
    }

    /// Starts a process with the command line of the first one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fresh(&self) -> Result<Self> {
        Self::spawn(&self.world, None, None)
    }

    /// Starts a process that waits for this one's guest, and waits until it listens.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn successor(&self) -> Result<Self> {
        self.successor_on(Main::Unix)
    }

    /// The same with another main channel.
    ///
    /// # Errors
    /// When it does not come to listening.
    pub fn successor_on(&self, main: Main) -> Result<Self> {
        let mut successor = self.successor_unready(main)?;
        successor.wait_listening("cpr")?;
        Ok(successor)
    }

    /// The same without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn successor_unready(&self, main: Main) -> Result<Self> {
        Self::spawn(&self.world, Some(main), None)
    }

    /// Starts a process with RAM of its own that a guest can be copied to, and waits until it is
    /// there.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn apart(&self, main: Main) -> Result<Self> {
        let name = format!("ram-{}", self.world.next_generation());
        let listens = main == Main::Unix;
        let mut apart = Self::spawn(&self.world, Some(main), Some(&name))?;
        if listens {
            apart.wait_listening("main")?;
        }
        apart.qmp()?;
        Ok(apart)
    }

    fn spawn(world: &Arc<World>, incoming: Option<Main>, apart: Option<&str>) -> Result<Self> {
        let number = world.next_generation();
        let (ram, arguments) = world.memory(apart)?;
        let setup = &world.setup;
        let mut command = Command::new(&setup.programs.binary);
        command
            .args(arguments)
            .args(monitor(world, number))
            .current_dir(world.scratch.path());
        if let Some(main) = &incoming {
            command.args(["-incoming", &world.main_uri(main, number)]);
            if apart.is_none() && !matches!(main, Main::Kept(_)) {
                command.args(["-incoming", &world.channel("cpr", number).to_string()]);
            }
        }
        command.env(FAULTS, world.faults());
        command.envs(setup.environment.iter().map(|(name, value)| (name, value)));
        let log = world.log(number);
        let log = File::create(&log).with_context(|| format!("Cannot make {}", log.display()))?;
        command.stderr(log);
        match setup.serial {
            Serial::Stdio => command.stdin(Stdio::piped()).stdout(world.open_serial()?),
            Serial::File | Serial::Elsewhere => command.stdin(Stdio::null()).stdout(Stdio::null()),
        };
        let mut child = process::spawn(&mut command)?;
        Ok(Self {
            number,
            stdin: child.stdin.take(),
            process: Running::new(child),
            qmp: None,
            main: incoming.unwrap_or(Main::Unix),
            ram,
            world: Arc::clone(world),
        })
    }

    /// The program and its arguments, as this process was started but for what it had to wait for.
    pub fn command(&self) -> Vec<String> {
        let binary = self.world.setup.programs.binary.display().to_string();
        let mut line = vec![binary];
        line.extend(self.world.arguments.iter().cloned());
        line.extend(monitor(&self.world, self.number));
        line
    }

    /// Where its monitor listens.
    pub fn monitor_path(&self) -> PathBuf {
        self.world.socket("qmp", self.number)
    }

    /// Gives the monitor's connection up; the next use makes a new one.
    pub fn disconnect(&mut self) {
        self.qmp = None;
    }

    /// Waits until the guest has come up, or come up again.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_up(&mut self) -> Result<()> {
        self.wait_line("BATON-GUEST-UP").map(drop)
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// What the guest says of itself.
    pub fn report(&self) -> &Report {
        self.ram.report()
    }

    /// The guest's disk image.
    pub fn disk(&self) -> Option<PathBuf> {
        self.world.disk()
    }

    /// A file in the folder that all processes of a guest share.
    pub fn file(&self, name: &str) -> PathBuf {
        self.world.scratch.join(name)
    }

    /// Which VMM it is.
    pub fn vmm(&self) -> Vmm {
        self.world.setup.vmm
    }

    /// The process's number in the system.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All the guest has said on its serial port.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn serial(&self) -> Result<String> {
        self.world.serial.text()
    }

    /// Waits for the guest's next line that begins with `start`, and gives all of it.
    ///
    /// # Errors
    /// When it does not come, or the VMM ends.
    pub fn wait_line(&mut self, start: &str) -> Result<String> {
        let world = Arc::clone(&self.world);
        wait_for(&format!("the guest to say '{start}'"), PATIENCE, || {
            let line = world.serial.take_line(start)?;
            if line.is_none() {
                self.alive()?;
            }
            Ok(line)
        })
        .with_context(|| self.name())
    }

    /// Says a line to the guest.
    ///
    /// # Errors
    /// When nobody listens, or the serial line goes to a file.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("The guest's serial line is a file")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("Cannot say '{line}' to the guest"))
    }

    /// Gives the guest an order by way of its RAM, and waits until it has taken it.
    ///
    /// # Errors
    /// When it does not.
    pub fn tell(&mut self, control: Control) -> Result<()> {
        let ram = Arc::clone(self.ram());
        let done = || crate::report::CONTROL_COUNT;
        let before = ram.report().get(done());
        wait_for("the guest to be free for an order", PATIENCE, || {
            Ok(ram.report().tell(control).then_some(()))
        })?;
        wait_for("the guest to take an order", PATIENCE, || {
            self.alive()?;
            Ok((ram.report().get(done()) > before).then_some(()))
        })
    }

    /// The longest time between two ticks that the guest has noticed, in milliseconds.
    pub fn guest_gap_ms(&self) -> f64 {
        let ticks_per_ms = self.report().get(crate::report::TSC_HZ) as f64 / 1000.0;
        self.report().get(MAX_GAP_TSC) as f64 / ticks_per_ms
    }

    /// The path of the process's socket of that kind: `cpr`, `main` or `qmp`.
    pub fn socket(&self, kind: &str) -> PathBuf {
        self.world.socket(kind, self.number)
    }

    /// The monitor, connected at the first use.
    ///
    /// # Errors
    /// When it does not listen, or does not greet.
    pub fn qmp(&mut self) -> Result<&mut Qmp> {
        let qmp = match self.qmp.take() {
            Some(qmp) => qmp,
            None => {
                self.wait_listening("qmp")?;
                Qmp::connect(&self.world.socket("qmp", self.number)).with_context(|| self.name())?
            }
        };
        Ok(self.qmp.insert(qmp))
    }

    /// Runs a monitor command.
    ///
    /// # Errors
    /// When it is refused.
    pub fn execute(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let result = self.qmp()?.execute(name, arguments);
        result.with_context(|| self.name())
    }

    /// Runs a monitor command that must be refused, and gives the reason.
    ///
    /// # Errors
    /// When it is not refused.
    pub fn refusal(&mut self, name: &str, arguments: &Value) -> Result<String> {
        let result = self.qmp()?.refusal(name, arguments);
        result.with_context(|| self.name())
    }

    /// The runstate.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", &json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The runstate that the guest will have in the process that takes it over.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn status_elsewhere(&mut self) -> Result<String> {
        let status = self.status()?;
        let lives = ["running", "suspended"].contains(&status.as_str());
        Ok(if lives { status } else { "paused".into() })
    }

    /// Waits for a runstate.
    ///
    /// # Errors
    /// When it does not come: names the one it stays in.
    pub fn wait_status(&mut self, wanted: &str) -> Result<()> {
        let mut status = String::new();
        wait_for(&format!("runstate '{wanted}'"), PATIENCE, || {
            status = self.status()?;
            Ok((status == wanted).then_some(()))
        })
        .with_context(|| format!("{} is '{status}'", self.name()))
    }

    /// Stops the guest.
    ///
    /// # Errors
    /// When that is refused.
    pub fn stop(&mut self) -> Result<()> {
        self.execute("stop", &json!({})).map(drop)
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// When that is refused.
    pub fn cont(&mut self) -> Result<()> {
        self.execute("cont", &json!({})).map(drop)
    }

    /// Waits until the guest has gone on with everything it does.
    ///
    /// # Errors
    /// Names what stands still.
    pub fn wait_progress(&mut self) -> Result<()> {
        let before = progress::Progress::now(self.report());
        let result = progress::wait_progress(self.report(), &before, PATIENCE);
        result.with_context(|| self.name())
    }

    /// Where a source sends its guest to reach this process, as `migrate` wants it.
    pub fn channels(&self) -> Value {
        let main = match self.main {
            Main::Tcp(port) => json!({
                "channel-type": "main",
                "addr": {
                    "transport": "socket", "type": "inet",
                    "host": "127.0.0.1", "port": port.to_string()
                }
            }),
            _ => self.world.channel("main", self.number),
        };
        json!([main, self.world.channel("cpr", self.number)])
    }

    /// The URI of the main channel, for `migrate-incoming`.
    pub fn main_uri(&self) -> String {
        match self.main {
            Main::Deferred => self.world.main_uri(&Main::Unix, self.number),
            ref other => self.world.main_uri(other, self.number),
        }
    }

    /// Whether anybody listens on the process's socket of that kind now.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn listens(&self, kind: &str) -> Result<bool> {
        sockets::listens(&self.world.socket(kind, self.number))
    }

    /// Waits until the process listens on the socket of that kind: `cpr`, `main` or `qmp`.
    ///
    /// # Errors
    /// When it does not, or ends.
    pub fn wait_listening(&mut self, kind: &str) -> Result<()> {
        let path = self.world.socket(kind, self.number);
        wait_for(
            &format!("{} to be listened on", path.display()),
            PATIENCE,
            || {
                self.alive()?;
                Ok(sockets::listens(&path)?.then_some(()))
            },
        )
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills the process and waits for its end.
    ///
    /// # Errors
    /// When that fails.
    pub fn kill(&mut self) -> Result<()> {
        if self.process.ended()?.is_none() {
            self.signal(Signal::SIGKILL)?;
            self.ended()?;
        }
        Ok(())
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let what = format!("process {} to end", self.number);
        wait_for(&what, PATIENCE, || self.process.ended())
    }

    /// Waits for the process to end well.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn ended_well(&mut self) -> Result<()> {
        let status = self.ended()?;
        ensure!(
            status.success(),
            "{} ended with {}",
            self.name(),
            ending(status)
        );
        Ok(())
    }

    /// Ends the process by its monitor.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", &json!({}))?;
        self.ended_well()
    }

    /// An error when the process has ended.
    ///
    /// # Errors
    /// Exactly then.
    pub fn alive(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("{} ended too early: {}", self.name(), ending(status)),
            None => Ok(()),
        }
    }

    /// What the VMM has written to its standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.world.log(self.number)).unwrap_or_default()
    }

    /// The process, for an error: its number and the last thing it said.
    pub fn name(&self) -> String {
        let last = last_words(&self.world.log(self.number));
        format!(
            "Process {} of {} (its last words: {last})",
            self.number,
            self.vmm()
        )
    }
}

/// The monitor's arguments.
fn monitor(world: &World, number: u32) -> [String; 2] {
    let qmp = world.socket("qmp", number);
    let address = format!("unix:{},server=on,wait=off", qmp.display());
    ["-qmp".to_owned(), address]
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has usually ended by now, and there is nobody left to tell.
        self.kill().ok();
    }
}
