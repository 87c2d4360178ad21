//! The process and what is around it: in the background, its PID file, its user, its log.

use anyhow::{Context, Result, ensure};
use baton_testkit::fixtures::baton;
use baton_testkit::native::expect_text;
use baton_testkit::process::{self, living_in};
use baton_testkit::qmp::Qmp;
use baton_testkit::refusal::refusal;
use baton_testkit::report::BOOTS;
use baton_testkit::scratch::Scratch;
use baton_testkit::setup::Serial;
use baton_testkit::transfer::{execute_successor, outcome, set_mode};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Vmm, guest, needs_kvm};
use nix::unistd::getsid;
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{is_whole, setup};

/// Daemons in a folder of their own, which end with it.
struct Daemons(Scratch);

impl Daemons {
    fn new() -> Result<Self> {
        Ok(Self(Scratch::new()?))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Runs a command that goes on in the background, and waits until it has ended well. Both of its
    /// streams are pipes, which must be let go of.
    fn start(&self, command: &mut Command) -> Result<()> {
        let create = |name| File::create(self.file(name)).context("Cannot make a file");
        command
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(create("out")?)
            .stderr(create("err")?);
        let mut child = process::spawn(command)?;
        let status = wait_for("the command to end", PATIENCE, || Ok(child.try_wait()?))?;
        ensure!(status.success(), "It has said: {}", self.text("err"));
        ensure!(self.text("out") + &self.text("err") == "");
        Ok(())
    }

    /// The process whose number is in a file.
    fn pid(&self, name: &str) -> Result<u32> {
        let text = self.text(name);
        text.trim()
            .parse()
            .with_context(|| format!("'{text}' is no number"))
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        process::clear_out(self.0.path());
    }
}

/// A Baton with the test guest, in the background.
fn daemon() -> Result<Command> {
    let mut command = baton()?;
    command.args(["-nodefaults", "-serial", "null", "-daemonize", "-kernel"]);
    command.arg(guest::image()?);
    // Relative names mean the same afterwards.
    command.args(["-pidfile", "pid", "-qmp", "unix:qmp,server=on,wait=off"]);
    Ok(command)
}

fn wait_gone(path: &Path) -> Result<()> {
    wait_for("a file to go", PATIENCE, || {
        Ok((!path.exists()).then_some(()))
    })
}

#[test]
fn a_daemon_is_up_when_its_command_has_ended() -> Result<()> {
    needs_kvm!();
    let daemons = Daemons::new()?;
    daemons.start(daemon()?.args(["-d", "all", "-D", "log-%d"]))?;
    let pid = daemons.pid("pid")?;
    ensure!(living_in(daemons.0.path()) == [pid]);
    let mut qmp = Qmp::connect(&daemons.file("qmp"))?;
    let status = qmp.execute("query-status", &json!({}))?;
    ensure!(status["status"] == "running", "{status}");
    for stream in 0..3 {
        let open = fs::read_link(format!("/proc/{pid}/fd/{stream}"))?;
        ensure!(
            open == Path::new("/dev/null"),
            "{stream} is {}",
            open.display()
        );
    }
    ensure!(getsid(Some(nix::unistd::Pid::from_raw(pid as i32)))? != getsid(None)?);
    ensure!(
        daemons
            .text(&format!("log-{pid}"))
            .contains("DEBUG baton::plugin")
    );

    // The file is locked.
    let mut second = baton()?;
    second.args(["-nodefaults", "-serial", "null", "-pidfile"]);
    second
        .arg(daemons.file("pid"))
        .arg("-kernel")
        .arg(guest::image()?);
    let line = refusal(&mut second)?.line()?;
    expect_text(
        &line,
        &[
            "cannot create PID file: Cannot lock pid file",
            "name another file",
        ],
    )?;
    ensure!(daemons.pid("pid")? == pid);

    qmp.execute("quit", &json!({}))?;
    wait_gone(&daemons.file("pid"))?;
    wait_for("the daemon to end", PATIENCE, || {
        Ok((living_in(daemons.0.path()).is_empty()).then_some(()))
    })
}

#[test]
fn an_error_of_a_daemon_reaches_its_command() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let mut command = daemon()?;
    command.current_dir(scratch.path());
    command.args(["-drive", "file=disk,if=virtio,format=raw"]);
    let line = refusal(&mut command)?.line()?;
    expect_text(&line, &["disk", "does not exist"])?;
    ensure!(!scratch.join("pid").exists());
    // A monitor is part of what has to be there.
    let mut command = daemon()?;
    command.current_dir(scratch.path());
    command.args(["-qmp", "unix:no/such/folder,server=on,wait=off"]);
    expect_text(&refusal(&mut command)?.line()?, &["no/such/folder"])
}

#[test]
fn a_daemon_waits_for_a_guest_and_takes_the_pid_file_along() -> Result<()> {
    needs_kvm!();
    let daemons = Daemons::new()?;
    let file = daemons.file("pid");
    let name = file.display().to_string();
    let mut source = setup()?
        .serial(Serial::File)
        .extra(["-pidfile", &name])
        .boot()?;
    ensure!(daemons.pid("pid")? == source.pid());
    let command = source.command();
    // The last two are the monitor's.
    let (_, common) = command[..command.len() - 2]
        .split_first()
        .context("No command")?;
    let mut target = baton()?;
    target
        .args(common)
        .args(["-daemonize", "-qmp", "unix:qmp,server=on,wait=off"])
        .args(["-incoming", "unix:main"])
        .args([
            "-incoming",
            "cpr,addr.transport=socket,addr.type=unix,addr.path=cpr",
        ]);
    daemons.start(&mut target)?;
    ensure!(daemons.pid("pid")? == source.pid());
    source.wait_progress()?;
    set_mode(&mut source)?;
    let channel = |kind: &str| {
        let path = daemons.file(kind);
        json!({ "channel-type": kind, "addr": { "transport": "socket", "type": "unix", "path": path } })
    };
    let channels = json!([channel("main"), channel("cpr")]);
    source.execute("migrate", &json!({ "channels": channels }))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    source.wait_progress()?;
    let living = living_in(daemons.0.path());
    wait_for("the file to name the daemon", PATIENCE, || {
        Ok((living.len() == 1 && daemons.pid("pid").ok() == living.first().copied()).then_some(()))
    })?;
    source.quit()?;
    ensure!(daemons.pid("pid")? == living[0], "the source removed it");
    Qmp::connect(&daemons.file("qmp"))?.execute("quit", &json!({}))?;
    wait_gone(&file)
}

#[test]
fn the_pid_file_stays_when_the_program_becomes_the_next() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let file = scratch.join("pid");
    let mut machine = setup()?
        .extra(["-pidfile", &file.display().to_string()])
        .boot()?;
    for _ in 0..2 {
        let number = format!("{}\n", machine.pid());
        ensure!(fs::read_to_string(&file)? == number);
        execute_successor(&mut machine)?;
        ensure!(fs::read_to_string(&file)? == number);
        is_whole(&mut machine)?;
    }
    machine.quit()?;
    ensure!(!file.exists());
    Ok(())
}

#[test]
fn a_guest_runs_without_the_rights_of_root() -> Result<()> {
    needs_kvm!();
    if !nix::unistd::getuid().is_root() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let log = scratch.join("log");
    let mut machine = setup()?
        .cpus(2)
        .extra([
            "-run-with",
            "user=65534:65534",
            "-D",
            &log.display().to_string(),
        ])
        .boot()?;
    machine.wait_progress()?;
    let tasks = fs::read_dir(format!("/proc/{}/task", machine.pid()))?;
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task?.path().join("status"))?;
        for rights in ["Uid", "Gid"] {
            let all = format!("{rights}:\t65534\t65534\t65534\t65534");
            ensure!(status.contains(&all), "{status}");
        }
        ensure!(status.contains("CapEff:\t0000000000000000"), "{status}");
        threads += 1;
    }
    ensure!(threads > 4, "{threads}");
    is_whole(&mut machine)?;
    machine.quit()
}

#[test]
fn a_guest_that_switches_itself_off_stays_if_it_shall() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.extra(["-no-shutdown"]).boot()?;
    machine.qmp()?;
    machine.say("poweroff")?;
    let data = machine.qmp()?.wait_event("SHUTDOWN")?;
    ensure!(
        data["guest"] == true && data["reason"] == "guest-shutdown",
        "{data}"
    );
    machine.wait_status("shutdown")?;
    let refusal = machine.qmp()?.refusal("cont", &json!({}))?;
    ensure!(
        refusal == "Resetting the Virtual Machine is required",
        "{refusal}"
    );
    machine.execute("system_reset", &json!({}))?;
    machine.cont()?;
    machine.wait_up()?;
    ensure!(machine.report().get(BOOTS) == 2);
    is_whole(&mut machine)?;
    machine.quit()
}

#[test]
fn a_reset_that_is_a_shutdown_may_be_a_pause() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?
        .extra(["-action", "reboot=shutdown,shutdown=pause"])
        .boot()?;
    machine.qmp()?;
    machine.say("reset")?;
    let data = machine.qmp()?.wait_event("SHUTDOWN")?;
    ensure!(data["reason"] == "guest-reset", "{data}");
    machine.wait_status("shutdown")?;
    machine.quit()
}

/// A guest whose disk is described by block nodes.
fn with_nodes(scratch: &Scratch) -> Result<Machine> {
    let image = scratch.join("image");
    File::create(&image)?.set_len(4 << 20)?;
    let file = format!(
        r#"{{"driver": "file", "node-name": "f", "filename": "{}", "auto-read-only": true}}"#,
        image.display()
    );
    setup()?
        .disk_mib(None)
        .extra([
            "-blockdev",
            &file,
            "-blockdev",
            "driver=raw,node-name=d,file=f",
        ])
        .extra(["-device", r#"{"driver": "virtio-blk-pci", "drive": "d"}"#])
        .boot()
}

#[test]
fn a_disk_may_be_described_by_block_nodes_and_is_handed_over() -> Result<()> {
    needs_kvm!();
    if Vmm::under_test()? != Vmm::Baton {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let mut machine = with_nodes(&scratch)?;
    machine.wait_progress()?;
    execute_successor(&mut machine)?;
    machine.wait_progress()?;
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(
        verdict.ends_with("bad=0") && !verdict.starts_with("VERIFIED 0 "),
        "{verdict}"
    );
    machine.quit()
}

#[test]
fn a_file_of_options_starts_a_guest_and_says_where_it_is_wrong() -> Result<()> {
    needs_kvm!();
    let daemons = Daemons::new()?;
    let config = "[memory]\n  size = \"64M\"\n[device \"r\"]\n  driver = \"virtio-rng-pci\"\n";
    fs::write(daemons.file("vm.conf"), config)?;
    daemons.start(daemon()?.args(["-readconfig", "vm.conf"]))?;
    let mut qmp = Qmp::connect(&daemons.file("qmp"))?;
    let devices = qmp.execute("query-devices", &json!({}))?.to_string();
    ensure!(devices.contains("\"id\":\"r\""), "{devices}");
    qmp.execute("quit", &json!({}))?;
    wait_gone(&daemons.file("pid"))?;

    let config = "[device \"r\"]\n  driver = \"virtio-rng-pci\"\n  filenam = \"/dev/urandom\"\n";
    fs::write(daemons.file("vm.conf"), config)?;
    let mut command = daemon()?;
    command
        .current_dir(daemons.0.path())
        .args(["-readconfig", "vm.conf"]);
    let line = refusal(&mut command)?.line()?;
    ensure!(
        line == "vm.conf:1 [device \"r\"]: Property 'virtio-rng-pci.filenam' not found; did you \
                 mean 'filename'?",
        "{line}"
    );
    Ok(())
}
