//! The examples of QEMU's document on CheckPoint and Restart, as printed there. What differs: paths,
//! the port and the size of RAM, and the target's monitor is a QMP one, since the document's is for
//! people.

use anyhow::{Context, Result, ensure};
use baton_testkit::qmp::Qmp;
use baton_testkit::scratch::Scratch;
use baton_testkit::vmm::Programs;
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Vmm, guest, needs_kvm, process, sockets};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "null",
            "-append",
            "slp=0",
        ]);
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

    /// `# qemu-kvm ... -incoming MAIN -incoming '{"channel-type": "cpr", ...'`
    fn incoming(&self, main: &str) -> Result<Started> {
        let mut command = self.command()?;
        command.args([
            "-qmp",
            "unix:qmp.sock,server=on,wait=off",
            "-incoming",
            main,
        ]);
        command.args([
            "-incoming",
            r#"{"channel-type": "cpr",
                "addr": { "transport": "socket",
                "type": "unix", "path": "cpr.sock"}}"#,
        ]);
        let child = Started(process::spawn(
            command.stdin(Stdio::null()).stdout(Stdio::null()),
        )?);
        self.wait_listening("cpr.sock")?;
        Ok(child)
    }

    fn wait_listening(&self, socket: &str) -> Result<()> {
        wait_for(socket, PATIENCE, || {
            Ok(sockets::listens(socket.as_ref())?.then_some(()))
        })
    }

    fn monitor(&self) -> Result<Qmp> {
        wait_for("the target's monitor", PATIENCE, || {
            Ok(Qmp::connect(&self.scratch.join("qmp.sock")).ok())
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
fn example_1_incoming_channel() -> Result<()> {
    needs_kvm!();
    let port = sockets::free_port()?;
    let example = Example::new()?;
    let (_old, mut outgoing) = example.outgoing()?;
    let _new = example.incoming(&format!("tcp:0:{port}"))?;

    let answer = outgoing.execute("query-status", &json!({}))?;
    ensure!(
        answer["status"] == "running" && answer["running"] == true,
        "{answer}"
    );
    let mode = json!({"execute":"migrate-set-parameters","arguments":{"mode":"cpr-transfer"}});
    send(&mut outgoing, &mode)?;
    send(&mut outgoing, &migrate(port))?;

    wait_status(&mut example.monitor()?, "running")?;
    wait_status(&mut outgoing, "postmigrate")?;
    let answer = outgoing.execute("query-status", &json!({}))?;
    ensure!(answer["running"] == false, "{answer}");
    Ok(())
}

#[test]
fn example_2_incoming_defer() -> Result<()> {
    needs_kvm!();
    let port = sockets::free_port()?;
    let example = Example::new()?;
    let (_old, mut outgoing) = example.outgoing()?;
    let _new = example.incoming("defer")?;

    let mode = json!({"execute":"migrate-set-parameters","arguments":{"mode":"cpr-transfer"}});
    send(&mut outgoing, &mode)?;
    send(&mut outgoing, &migrate(port))?;

    let mut incoming = example.monitor()?;
    ensure!(status(&mut incoming)? == "inmigrate");
    let uri = json!({ "uri": format!("tcp:0:{port}") });
    incoming.execute("migrate-incoming", &uri)?;
    wait_status(&mut incoming, "running")?;
    wait_status(&mut outgoing, "postmigrate")
}
