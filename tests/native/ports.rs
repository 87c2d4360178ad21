//! Ports for programs in the guest: what goes through them, and where they are after a handover.

use anyhow::{Context, Result, ensure};
use baton_testkit::console::Console;
use baton_testkit::copied::copy;
use baton_testkit::machine::Main;
use baton_testkit::native::expect_text;
use baton_testkit::stream::Stream;
use baton_testkit::transfer::{execute_successor, succeed, transfer};
use baton_testkit::{Machine, Setup, needs_baton};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::hotplug::{add, device};
use crate::replace::{replace, second};
use crate::suspend::wake;
use crate::{is_whole, setup};

const PING: &str = "{\"execute\":\"guest-ping\"}\n";
const PONG: &str = "{\"return\": {}}";

/// A guest with an agent at `qga.sock` and a port at `echo.sock` that sends everything back.
fn with_ports() -> Result<Setup> {
    Ok(setup()?.extra([
        "-device",
        "virtio-serial-pci,id=vs0,max_ports=6",
        "-chardev",
        "socket,id=qga0,path=qga.sock,server=on,wait=off",
        "-device",
        "virtserialport,id=agent,bus=vs0.0,chardev=qga0,name=org.qemu.guest_agent.0",
        "-chardev",
        "socket,id=echo0,path=echo.sock,server=on,wait=off",
        "-device",
        "virtserialport,id=echo,chardev=echo0,name=echo0",
    ]))
}

fn boot() -> Result<Machine> {
    let mut machine = with_ports()?.boot()?;
    machine.wait_line("port 1 org.qemu.guest_agent.0")?;
    machine.wait_line("port 2 echo0")?;
    Ok(machine)
}

/// The guest's agent answers a client that comes anew.
fn answers(machine: &Machine, socket: &str) -> Result<()> {
    let mut agent = Console::connect(&machine.file(socket))?;
    agent.say(PING)?;
    let line = agent.line()?;
    ensure!(line == PONG, "{line}");
    Ok(())
}

fn echo(machine: &Machine) -> Result<Stream> {
    Stream::start(UnixStream::connect(machine.file("echo.sock"))?)
}

/// Whether somebody in the guest has the port at this character device open.
fn frontend_open(machine: &mut Machine, chardev: &str) -> Result<bool> {
    let open = self::chardev(machine, chardev)?["frontend-open"].as_bool();
    open.context("It does not say")
}

fn chardev(machine: &mut Machine, id: &str) -> Result<Value> {
    let all = machine.execute("query-chardev", &json!({}))?;
    let mut all = all.as_array().cloned().unwrap_or_default().into_iter();
    let row = all.find(|row| row["label"] == id);
    row.with_context(|| format!("There is no '{id}'"))
}

#[test]
fn a_program_in_the_guest_is_reached_through_its_port() -> Result<()> {
    needs_baton!();
    let mut machine = with_ports()?.paused().start()?;
    ensure!(
        !frontend_open(&mut machine, "qga0")?,
        "before it has started"
    );
    machine.cont()?;
    let opened = machine.qmp()?.wait_event("VSERPORT_CHANGE")?;
    ensure!(opened == json!({ "id": "agent", "open": true }), "{opened}");
    machine.wait_line("port 2 echo0")?;
    ensure!(frontend_open(&mut machine, "qga0")?);
    answers(&machine, "qga.sock")?;
    let stream = echo(&machine)?;
    is_whole(&mut machine)?;
    answers(&machine, "qga.sock")?;
    stream.stop(100_000).map(drop)
}

#[test]
fn a_stream_through_a_port_loses_nothing_over_cpr_transfer_and_cpr_exec() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let stream = echo(&machine)?;
    for _ in 0..4 {
        machine.wait_progress()?;
        machine = succeed(machine)?.0;
        ensure!(frontend_open(&mut machine, "echo0")?);
        machine.wait_progress()?;
        execute_successor(&mut machine)?;
        machine.disconnect();
        ensure!(frontend_open(&mut machine, "qga0")?);
        answers(&machine, "qga.sock")?;
    }
    is_whole(&mut machine)?;
    stream.stop(100_000).map(drop)
}

#[test]
fn ports_are_kept_with_a_guest_that_its_agent_has_suspended() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.qmp()?.forget_events();
    let mut agent = Console::connect(&machine.file("qga.sock"))?;
    agent.say("{\"execute\":\"guest-suspend-ram\"}\n")?;
    machine.qmp()?.wait_event("SUSPEND")?;
    drop(agent);
    machine = machine.through("file:vm.state", "file:vm.state")?;
    ensure!(machine.status()? == "suspended");
    wake(&mut machine, "system_wakeup")?;
    machine.wait_line("port 1 org.qemu.guest_agent.0")?;
    answers(&machine, "qga.sock")
}

#[test]
fn ports_of_a_guest_that_is_copied_are_at_its_new_process() -> Result<()> {
    needs_baton!();
    let mut source = setup()?
        .extra([
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "pty,id=qga0",
            "-device",
            "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0",
        ])
        .boot()?;
    source.wait_line("port 1 org.qemu.guest_agent.0")?;
    answers_at_terminal(&mut source)?;
    let mut target = source.apart(Main::Unix)?;
    copy(&mut source, &mut target)?;
    source.quit()?;
    ensure!(frontend_open(&mut target, "qga0")?);
    answers_at_terminal(&mut target)?;
    is_whole(&mut target)
}

/// The guest's agent answers at the process's own pseudo-terminal.
fn answers_at_terminal(machine: &mut Machine) -> Result<()> {
    let name = chardev(machine, "qga0")?["filename"].clone();
    let path = name.as_str().and_then(|name| name.strip_prefix("pty:"));
    let mut agent = Console::open(Path::new(path.context("It is no pty")?))?;
    agent.say(PING)?;
    let line = agent.line()?;
    ensure!(line == PONG, "{line}");
    Ok(())
}

/// Another port, which sends everything back.
fn add_another(machine: &mut Machine) -> Result<()> {
    let backend = json!({ "type": "socket", "data": {
        "addr": { "type": "unix", "data": { "path": "more.sock" } }, "server": true, "wait": false
    } });
    machine.execute("chardev-add", &json!({ "id": "more", "backend": backend }))?;
    let port = json!({
        "driver": "virtserialport", "id": "another", "bus": "vs0.0", "chardev": "more", "name": "echo1"
    });
    add(machine, &port)
}

#[test]
fn a_port_comes_and_goes_beside_a_guest_that_runs() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let stream = echo(&machine)?;
    for _ in 0..3 {
        add_another(&mut machine)?;
        machine.wait_line("port 3 echo1")?;
        let row = device(&mut machine, "another")?.context("It is not listed")?;
        let place = (&row["bus"], &row["address"], &row["hotplugged"]);
        let expected = (&json!("virtio-serial-bus"), &json!("vs0.0"), &json!(true));
        ensure!(place == expected, "{row}");
        let own = Stream::start(UnixStream::connect(machine.file("more.sock"))?)?;
        machine.wait_progress()?;
        own.stop(20_000)?;
        let busy = machine.refusal("chardev-remove", &json!({ "id": "more" }))?;
        ensure!(busy == "Chardev 'more' is busy", "{busy}");
        machine.qmp()?.forget_events();
        machine.execute("device_del", &json!({ "id": "another" }))?;
        let gone = machine.qmp()?.wait_event("DEVICE_DELETED")?;
        let expected = json!({ "device": "another", "path": "/machine/peripheral/another" });
        ensure!(gone == expected, "{gone}");
        machine.wait_line("port 3 gone")?;
        ensure!(device(&mut machine, "another")?.is_none());
        machine.execute("chardev-remove", &json!({ "id": "more" }))?;
    }
    is_whole(&mut machine)?;
    stream.stop(100_000).map(drop)
}

#[test]
fn ports_go_on_when_their_plugin_is_replaced_whether_they_have_an_id_or_not() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    // The second of two without an id is what is left, and keeps the number that it got.
    for name in ["none", "echo1"] {
        add(
            &mut machine,
            &json!({ "driver": "virtserialport", "bus": "vs0.0", "name": name }),
        )?;
    }
    machine.wait_line("port 4 echo1")?;
    machine.execute("device_del", &json!({ "id": "vs0.0/0" }))?;
    machine.wait_line("port 3 gone")?;
    let stream = echo(&machine)?;
    for round in 0..3 {
        let copy = second(&mut machine, "virtio-serial-pci", &format!("{round}.so"))?;
        replace(&mut machine, &copy)?;
        machine.wait_progress()?;
        answers(&machine, "qga.sock")?;
    }
    ensure!(device(&mut machine, "vs0.0/1")?.is_some());
    stream.stop(100_000)?;
    is_whole(&mut machine)
}

#[test]
fn ports_that_have_come_are_there_after_an_update() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    add_another(&mut machine)?;
    machine.wait_line("port 3 echo1")?;
    machine.execute("device_del", &json!({ "id": "echo" }))?;
    machine.wait_line("port 2 gone")?;
    // The number stays, though a port of a lower one has gone.
    let stream = Stream::start(UnixStream::connect(machine.file("more.sock"))?)?;
    for mode in ["cpr-transfer", "cpr-exec", "cpr-transfer"] {
        machine.wait_progress()?;
        machine.update(&["--mode", mode])?;
        ensure!(device(&mut machine, "another")?.is_some(), "after {mode}");
        ensure!(device(&mut machine, "echo")?.is_none(), "after {mode}");
    }
    is_whole(&mut machine)?;
    stream.stop(100_000)?;
    machine.execute("device_del", &json!({ "id": "another" }))?;
    machine.wait_line("port 3 gone").map(drop)
}

#[test]
fn a_guest_of_other_ports_is_refused_by_the_ports_name() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let port = json!({ "driver": "virtserialport", "id": "another", "name": "none" });
    add(&mut machine, &port)?;
    let mut target = machine.successor_on(Main::Unix)?;
    let error = transfer(&mut machine, &mut target);
    let text = format!("{:#}", error.err().context("It was taken")?);
    expect_text(
        &text,
        &["Port 'another' (none) of the guest is not in this machine"],
    )?;
    is_whole(&mut machine)
}

#[test]
fn a_port_that_cannot_come_is_refused_in_qemus_words() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let cases: [(Value, &str); 7] = [
        (
            json!({ "driver": "virtserialport", "bus": "vs1.0" }),
            "Bus 'vs1.0' not found; there is vs0.0",
        ),
        (
            json!({ "driver": "virtserialport", "bus": "pcie.0" }),
            "Device 'virtserialport' can't go on PCI bus; it sits on a virtio-serial-bus",
        ),
        (
            json!({ "driver": "virtserialport", "id": "agent" }),
            "Duplicate device ID 'agent'",
        ),
        (
            json!({ "driver": "virtserialport", "chardev": "qga0" }),
            "Property 'virtserialport.chardev' can't take value 'qga0', it's in use",
        ),
        (
            json!({ "driver": "virtserialport", "id": "x", "name": "echo0" }),
            "Device 'vs0': 'x': virtio-serial-bus: A port already exists by name echo0",
        ),
        (
            json!({ "driver": "virtserialport", "id": "x", "nr": 2 }),
            "Device 'vs0': 'x': virtio-serial-bus: A port already exists at id 2",
        ),
        (
            json!({ "driver": "virtserialport", "addr": "3" }),
            "Property 'virtserialport.addr' not found: it is no PCI device",
        ),
    ];
    for (arguments, reason) in cases {
        let refused = machine.refusal("device_add", &arguments)?;
        ensure!(refused == reason, "{refused}");
    }
    answers(&machine, "qga.sock")?;
    let unknown = machine.refusal("device_del", &json!({ "id": "none" }))?;
    ensure!(unknown == "Device 'none' not found", "{unknown}");
    is_whole(&mut machine)
}
