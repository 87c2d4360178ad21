//! A service manager: what it is told, and the sockets it opens.

use anyhow::{Context, Result, bail, ensure};
use baton_testkit::guest;
use baton_testkit::process;
use baton_testkit::qmp::Qmp;
use baton_testkit::scratch::Scratch;
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Vmm, needs_baton};
use serde_json::json;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use crate::{is_whole, setup};

/// A manager that notes what it is told.
pub(crate) struct Manager {
    pub(crate) socket: UnixDatagram,
    pub(crate) scratch: Scratch,
}

impl Manager {
    pub(crate) fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let socket = UnixDatagram::bind(scratch.join("notify"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, scratch })
    }

    fn boot(&self) -> Result<Machine> {
        let path = self.scratch.join("notify");
        let setup = setup()?.environment("NOTIFY_SOCKET", &path.display().to_string());
        let mut machine = setup.boot()?;
        machine.wait_progress()?;
        Ok(machine)
    }

    /// The next message but for those of a watchdog, as its assignments.
    fn hears(&self) -> Result<Vec<String>> {
        let mut message = [0; 4096];
        loop {
            let length = self.socket.recv(&mut message).context("It hears nothing")?;
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if text != "WATCHDOG=1" {
                return Ok(text.lines().map(str::to_owned).collect());
            }
        }
    }

    /// Hears that, as the next thing, and nothing about `MAINPID` unless it is among it.
    fn expects(&self, assignments: &[&str]) -> Result<()> {
        let heard = self.hears()?;
        let said = |wanted: &&str| heard.iter().any(|line| line.starts_with(wanted));
        ensure!(
            assignments.iter().all(said),
            "{heard:?} is not {assignments:?}"
        );
        let main = |list: &[&str]| list.iter().any(|line| line.starts_with("MAINPID"));
        let heard: Vec<_> = heard.iter().map(String::as_str).collect();
        ensure!(
            main(&heard) == main(assignments),
            "{heard:?} is not {assignments:?}"
        );
        Ok(())
    }

    fn hears_nothing(&self) -> Result<()> {
        self.socket.set_nonblocking(true)?;
        if let Ok(heard) = self.hears() {
            bail!("It hears {heard:?}");
        }
        self.socket.set_nonblocking(false)?;
        Ok(())
    }
}

#[test]
fn a_reload_announces_the_new_main_process_and_ends_the_old_one() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let mut machine = manager.boot()?;
    manager.expects(&["READY=1", "STATUS=The guest runs"])?;
    for _ in 0..2 {
        machine.update(&[])?;
        manager.expects(&["RELOADING=1", "MONOTONIC_USEC=", "STATUS="])?;
        let main = format!("MAINPID={}", machine.pid());
        // The old process says it, and the new one, in whichever order.
        for _ in 0..2 {
            manager.expects(&[&main, "READY=1", "STATUS="])?;
        }
        // The old one has ended, and not the service.
        manager.hears_nothing()?;
    }
    is_whole(&mut machine)?;
    machine.quit()?;
    manager.expects(&["STOPPING=1"])?;
    manager.hears_nothing()
}

#[test]
fn a_reload_that_fails_leaves_the_service_as_it_was() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let mut machine = manager.boot()?;
    manager.expects(&["READY=1"])?;
    machine.want_fault("target-Load", "error")?;
    machine.refused_update(&[], "the guest goes on in process")?;
    manager.expects(&["RELOADING=1"])?;
    manager.expects(&["READY=1", "STATUS=The guest goes on"])?;
    manager.hears_nothing()?;
    is_whole(&mut machine)
}

#[test]
fn an_old_process_that_dies_in_a_reload_is_followed_by_the_new_one() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let mut machine = manager.boot()?;
    manager.expects(&["READY=1"])?;
    machine.want_fault("source-Commit", "kill")?;
    machine.update(&[])?;
    manager.expects(&["RELOADING=1"])?;
    let main = format!("MAINPID={}", machine.pid());
    manager.expects(&[&main, "READY=1"])?;
    is_whole(&mut machine)
}

#[test]
fn a_program_that_is_executed_is_the_same_main_process() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let mut machine = manager.boot()?;
    manager.expects(&["READY=1"])?;
    machine.update(&["--mode", "cpr-exec"])?;
    manager.expects(&["RELOADING=1"])?;
    manager.expects(&["READY=1", "STATUS=The guest runs"])?;
    manager.hears_nothing()?;
    is_whole(&mut machine)
}

#[test]
fn a_watchdog_is_told_again_and_again_after_a_reload_too() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let path = manager.scratch.join("notify").display().to_string();
    let setup = setup()?.environment("NOTIFY_SOCKET", &path);
    let mut machine = setup.environment("WATCHDOG_USEC", "20000").boot()?;
    for _ in 0..2 {
        for _ in 0..3 {
            wait_for("the watchdog's next message", PATIENCE, || {
                let mut message = [0; 4096];
                let length = manager.socket.recv(&mut message)?;
                Ok((&message[..length] == b"WATCHDOG=1").then_some(()))
            })?;
        }
        machine.update(&[])?;
        while manager.hears_nothing().is_err() {}
    }
    Ok(())
}

/// Baton with a listening socket as systemd gives one.
fn activated(folder: &Path, listener: UnixListener) -> Result<std::process::Child> {
    let programs = Vmm::Baton.programs()?;
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(&programs.binary);
    command.args(["-m", "32M", "-nodefaults", "-append", "", "-kernel"]);
    command.arg(guest::image()?);
    command.args(["-serial", "null", "-qmp", "fd:qmp,server=on,wait=off"]);
    if let Some(plugins) = &programs.plugins {
        command.arg("-plugin").arg(plugins);
    }
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "qmp");
    command.stdin(OwnedFd::from(listener)).current_dir(folder);
    process::spawn(&mut command)
}

#[test]
fn a_socket_of_the_managers_goes_on_through_reloads_and_stays_its_own() -> Result<()> {
    needs_baton!();
    let scratch = Scratch::new()?;
    let path = scratch.join("qmp.sock");
    let mut child = activated(scratch.path(), UnixListener::bind(&path)?)?;
    let mut pids = vec![u64::from(child.id())];
    for mode in ["cpr-transfer", "cpr-exec", "cpr-transfer"] {
        let mut command = Command::new(Vmm::Baton.programs()?.binary);
        command.args(["update", "--mode", mode, "--qmp"]).arg(&path);
        let output = command.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{mode}: {errors}");
        let process = Qmp::connect(&path)?.execute("query-process", &json!({}))?;
        let pid = process["pid"].as_u64().context("It has no number")?;
        ensure!(
            (pid == *pids.last().unwrap_or(&0)) == (mode == "cpr-exec"),
            "{pids:?} {pid}"
        );
        pids.push(pid);
    }
    ensure!(child.wait()?.success(), "The first process has ended badly");
    Qmp::connect(&path)?.execute("quit", &json!({}))?;
    wait_for("the last process to end", PATIENCE, || {
        Ok(process::living_in(scratch.path()).is_empty().then_some(()))
    })
    .or_else(|e| {
        process::clear_out(scratch.path());
        // Children that have ended are this process's to wait for.
        let left = process::living_in(scratch.path());
        if left.is_empty() { Ok(()) } else { Err(e) }
    })?;
    ensure!(path.exists(), "It has removed what is the manager's");
    Ok(())
}

/// The units that are shipped, as their assignments.
fn unit(name: &str) -> Result<Vec<(String, String)>> {
    let path = guest::workspace().join("examples/systemd").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    lines
        .map(|line| {
            let (name, value) = line
                .split_once('=')
                .with_context(|| format!("{name}: {line}"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn value<'a>(unit: &'a [(String, String)], name: &str) -> Result<&'a str> {
    let found = unit.iter().find(|(own, _)| own == name);
    let (_, value) = found.with_context(|| format!("There is no {name}="))?;
    Ok(value)
}

#[test]
fn the_units_that_are_shipped_say_what_baton_understands() -> Result<()> {
    let (service, socket) = (unit("baton@.service")?, unit("baton@.socket")?);
    ensure!(value(&service, "Type")? == "notify" && value(&service, "NotifyAccess")? == "all");
    let name = value(&socket, "FileDescriptorName")?;
    let place = value(&socket, "ListenStream")?;
    let start = value(&service, "ExecStart")?;
    ensure!(start.contains(&format!("-qmp fd:{name},")), "{start}");
    let reload = value(&service, "ExecReload")?;
    ensure!(
        reload.contains(&format!("update --qmp {place} ")),
        "{reload}"
    );

    let scratch = Scratch::new()?;
    let conf = guest::workspace().join("examples/systemd/example.conf");
    let conf = std::fs::read_to_string(conf)?;
    let arguments = conf
        .lines()
        .find_map(|line| line.strip_prefix("ARGUMENTS=\""))
        .and_then(|line| line.strip_suffix('"'))
        .context("example.conf says no ARGUMENTS")?;
    ensure!(value(&service, "FileDescriptorStoreMax")? == "1");
    let line = start.replace("$ARGUMENTS", arguments).replace("%i", "web");
    let line = line.replace("$INCOMING", "");
    let programs = Vmm::Baton.programs()?;
    let mut command = Command::new(&programs.binary);
    command.args(line.split_whitespace().skip(1));
    if let Some(plugins) = &programs.plugins {
        command.arg("-plugin").arg(plugins);
    }
    let output = command
        .arg("-dump-vmstate")
        .arg(scratch.join("state"))
        .output()?;
    ensure!(output.status.success(), "{output:?}");

    // Whatever can be verified without the programs' being installed is.
    let verify = Command::new("systemd-analyze").arg("--version").output();
    if verify.is_ok_and(|output| output.status.success()) {
        let folder = scratch.join("units");
        std::fs::create_dir(&folder)?;
        for (unit, name) in [
            ("baton@.service", "baton@web.service"),
            ("baton@.socket", "baton@web.socket"),
        ] {
            let from = guest::workspace().join("examples/systemd").join(unit);
            let text = std::fs::read_to_string(from)?;
            let binary = programs.binary.display().to_string();
            std::fs::write(folder.join(name), text.replace("/usr/bin/baton", &binary))?;
        }
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(folder.join("baton@web.service"))
            .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.display()))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && !said.contains("baton@web"),
            "{said}"
        );
    }
    Ok(())
}
