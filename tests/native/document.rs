//! The examples of QEMU's document on CheckPoint and Restart, word for word as printed there: what is
//! typed at a terminal, and what it shows. What differs: paths, the port, the size of RAM, and the
//! version in the monitor's greeting. A second monitor says when a person would see that something has
//! happened.

use anyhow::{Context, Result, ensure};
use baton_testkit::console::Console;
use baton_testkit::native::skipped;
use baton_testkit::qmp::Qmp;
use baton_testkit::scratch::Scratch;
use baton_testkit::terminal::Terminal;
use baton_testkit::vmm::Programs;
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Vmm, guest, needs_kvm, process, sockets, this_test};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The environment's word for a device of this machine, as `vfio-pci,host=` takes it.
const VFIO: &str = "BATON_TEST_VFIO";
/// A person at a shell tells the guest's agent this.
const SUSPEND: &str = r#"echo '{"execute":"guest-suspend-ram"}' | ncat --send-only -U qga.sock"#;
const GUEST_SUSPEND_RAM: &str = "{\"execute\":\"guest-suspend-ram\"}\n";
/// The agent's port, as in example 2, and the controller that the dots there stand for.
const AGENT: [&str; 6] = [
    "-device",
    "virtio-serial-pci",
    "-chardev",
    "socket,id=qga0,path=qga.sock,server=on,wait=off",
    "-device",
    "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0",
];

/// Ends it when the test does.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The document's command lines in a folder. One at a time: the system's list of sockets has their
/// names as the document has them, without the folder.
struct Example {
    _alone: MutexGuard<'static, ()>,
    scratch: Scratch,
    programs: Programs,
    vmm: Vmm,
    /// A device of the host that the guest has.
    vfio: Option<String>,
}

impl Example {
    fn new() -> Result<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let vmm = Vmm::under_test()?;
        Ok(Self {
            _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
            scratch: Scratch::new()?,
            programs: vmm.programs()?,
            vmm,
            vfio: None,
        })
    }

    /// What the document prints for both sides, and `...`.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.programs.binary);
        command.current_dir(self.scratch.path()).args([
            "-object",
            "memory-backend-file,id=ram0,size=128M,mem-path=ram0,share=on",
            "-m",
            "128M",
            "-machine",
            "memory-backend=ram0",
            "-machine",
            "aux-ram-share=on",
        ]);
        command.args(["-nodefaults", "-display", "none", "-serial", "null"]);
        command.args(["-append", "slp=0"]);
        if let Some(host) = &self.vfio {
            command.args(["-device", &format!("vfio-pci,host={host}")]);
        }
        command.arg("-kernel").arg(guest::image()?);
        match (self.vmm, &self.programs.plugins) {
            (Vmm::Baton, Some(plugins)) => command.arg("-plugin").arg(plugins),
            (Vmm::Baton, None) => &mut command,
            (Vmm::Qemu, _) => command.args(["-machine", "q35", "-accel", "kvm"]),
        };
        // An error ends the connection to its monitor, which the test notices.
        command.stderr(Stdio::null());
        Ok(command)
    }

    /// `# qemu-kvm -qmp stdio ...`
    fn outgoing(&self) -> Result<(Started, Qmp)> {
        let mut command = self.command()?;
        command
            .args(["-qmp", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = Started(process::spawn(&mut command)?);
        let output = child.0.stdout.take().context("No standard output")?;
        let input = child.0.stdin.take().context("No standard input")?;
        let mut qmp = Qmp::over(output, input)?;
        qmp.negotiate()?;
        Ok((child, qmp))
    }

    /// `# qemu-kvm -monitor stdio ...`
    fn at_terminal(&self, arguments: &[&str]) -> Result<Terminal> {
        let mut command = self.command()?;
        command.args(["-monitor", "stdio"]).args(arguments);
        command.args(["-qmp", "unix:qmp.sock,server=on,wait=off"]);
        Terminal::start(command)
    }

    /// `# qemu-kvm -monitor stdio -incoming MAIN -incoming '{"channel-type": "cpr", ...'`
    fn incoming(&self, main: &str) -> Result<Terminal> {
        let cpr = r#"{"channel-type": "cpr",
                "addr": { "transport": "socket",
                "type": "unix", "path": "cpr.sock"}}"#;
        let terminal = self.at_terminal(&["-incoming", main, "-incoming", cpr])?;
        self.wait_listening("cpr.sock")?;
        Ok(terminal)
    }

    fn wait_listening(&self, socket: &str) -> Result<()> {
        wait_for(socket, PATIENCE, || {
            Ok(sockets::listens(socket.as_ref())?.then_some(()))
        })
    }

    fn monitor(&self) -> Result<Qmp> {
        wait_for("the second monitor", PATIENCE, || {
            Ok(Qmp::connect(&self.scratch.join("qmp.sock")).ok())
        })
    }

    /// The second monitor sees the guest in this state.
    fn wait_status(&self, wanted: &str) -> Result<()> {
        wait_status(&mut self.monitor()?, wanted)
    }

    /// Lines that begin with `#` say the state that the guest is in before the next is typed.
    fn replay(&self, terminal: &mut Terminal, printed: &str) -> Result<()> {
        terminal.replay(printed, |event| {
            if event == SUSPEND {
                Console::connect(&self.scratch.join("qga.sock"))?.say(GUEST_SUSPEND_RAM)
            } else {
                self.wait_status(event)
            }
        })
    }
}

fn migrate(port: u16) -> Value {
    let text = r#"{"execute": "migrate", "arguments": { "channels": [
        {"channel-type": "main",
         "addr": { "transport": "socket", "type": "inet",
                   "host": "0", "port": "44444" }},
        {"channel-type": "cpr",
         "addr": { "transport": "socket", "type": "unix",
                   "path": "cpr.sock" }}]}}"#;
    let text = text.replace("44444", &port.to_string());
    serde_json::from_str(&text).unwrap_or_default()
}

fn status(qmp: &mut Qmp) -> Result<String> {
    let answer = qmp.execute("query-status", &json!({}))?;
    Ok(answer["status"].as_str().unwrap_or_default().to_owned())
}

fn wait_status(qmp: &mut Qmp, wanted: &str) -> Result<()> {
    wait_for(wanted, PATIENCE, || {
        Ok((status(qmp)? == wanted).then_some(()))
    })
}

fn send(qmp: &mut Qmp, command: &Value) -> Result<()> {
    qmp.send_line(&format!("{command}\n"), "a command of the document")?;
    let answer = qmp.answer("a command of the document")?;
    ensure!(answer.is_ok(), "{command}: {answer:?}");
    Ok(())
}

#[test]
fn cpr_reboot_example_1() -> Result<()> {
    needs_kvm!();
    let example = Example::new()?;
    let mut old = example.at_terminal(&[])?;
    let printed = "
        # running
        (qemu) info status
        VM status: running
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate -d file:vm.state
        # postmigrate
        (qemu) info status
        VM status: paused (postmigrate)
        (qemu) quit";
    example.replay(&mut old, printed)?;
    ensure!(old.wait_end()?.success());

    let mut new = example.at_terminal(&["-incoming", "defer"])?;
    let printed = "
        (qemu) info status
        VM status: paused (inmigrate)
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate_incoming file:vm.state
        # running
        (qemu) info status
        VM status: running";
    example.replay(&mut new, printed)
}

/// Where the environment names no device of this machine that a guest may have: in the lab it does.
#[test]
fn cpr_reboot_example_2_vfio() -> Result<()> {
    needs_kvm!();
    match std::env::var(VFIO) {
        Ok(device) => example_2(Some(device)),
        Err(_) => {
            let reason =
                format!("{VFIO} names no device of this machine that is bound to vfio-pci");
            skipped(this_test!(), &reason);
            Ok(())
        }
    }
}

/// Without `-device vfio-pci`.
#[test]
fn cpr_reboot_example_2_suspended() -> Result<()> {
    needs_kvm!();
    example_2(None)
}

fn example_2(vfio: Option<String>) -> Result<()> {
    let mut example = Example::new()?;
    example.vfio = vfio;
    let mut old = example.at_terminal(&AGENT)?;
    let printed = "
        # running
        (qemu) info status
        VM status: running
        # echo '{\"execute\":\"guest-suspend-ram\"}' | ncat --send-only -U qga.sock
        # suspended
        (qemu) info status
        VM status: paused (suspended)
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate -d file:vm.state
        # postmigrate
        (qemu) info status
        VM status: paused (postmigrate)
        (qemu) quit";
    example.replay(&mut old, printed)?;
    ensure!(old.wait_end()?.success());

    let mut new = example.at_terminal(&[&AGENT[..], &["-incoming", "defer"]].concat())?;
    let printed = "
        (qemu) info status
        VM status: paused (inmigrate)
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate_incoming file:vm.state
        # suspended
        (qemu) info status
        VM status: paused (suspended)
        (qemu) system_wakeup
        # running
        (qemu) info status
        VM status: running";
    example.replay(&mut new, printed)?;
    let mut agent = Console::connect(&example.scratch.join("qga.sock"))?;
    agent.say("{\"execute\":\"guest-ping\"}\n")?;
    ensure!(agent.line()? == "{\"return\": {}}");
    Ok(())
}

#[test]
fn cpr_transfer_example_1_incoming_channel() -> Result<()> {
    needs_kvm!();
    let port = sockets::free_port()?;
    let example = Example::new()?;
    let (_old, mut outgoing) = example.outgoing()?;
    let mut incoming = example.incoming(&format!("tcp:0:{port}"))?;

    let answer = outgoing.execute("query-status", &json!({}))?;
    ensure!(
        answer["status"] == "running" && answer["running"] == true,
        "{answer}"
    );
    let mode = json!({"execute":"migrate-set-parameters","arguments":{"mode":"cpr-transfer"}});
    send(&mut outgoing, &mode)?;
    // "New QEMU does not print the monitor prompt until old QEMU has issued the migrate command."
    ensure!(incoming.shown().is_empty(), "{}", incoming.shown());
    send(&mut outgoing, &migrate(port))?;

    let printed = "
        # running
        (qemu) info status
        VM status: running";
    example.replay(&mut incoming, printed)?;
    wait_status(&mut outgoing, "postmigrate")?;
    let answer = outgoing.execute("query-status", &json!({}))?;
    ensure!(answer["running"] == false, "{answer}");
    Ok(())
}

#[test]
fn cpr_transfer_example_2_incoming_defer() -> Result<()> {
    needs_kvm!();
    let port = sockets::free_port()?;
    let example = Example::new()?;
    let (_old, mut outgoing) = example.outgoing()?;
    let mut incoming = example.incoming("defer")?;

    let port_device = json!({"execute": "device_add", "arguments": {"driver": "pcie-root-port"}});
    send(&mut outgoing, &port_device)?;

    let mode = json!({"execute":"migrate-set-parameters","arguments":{"mode":"cpr-transfer"}});
    send(&mut outgoing, &mode)?;
    ensure!(incoming.shown().is_empty(), "{}", incoming.shown());
    send(&mut outgoing, &migrate(port))?;

    let printed = format!(
        "
        (qemu) info status
        VM status: paused (inmigrate)
        (qemu) device_add pcie-root-port
        (qemu) migrate_incoming tcp:0:{port}
        # running
        (qemu) info status
        VM status: running"
    );
    example.replay(&mut incoming, &printed)?;
    wait_status(&mut outgoing, "postmigrate")
}
