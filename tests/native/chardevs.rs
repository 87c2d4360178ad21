//! Character devices: who is connected stays connected, whatever becomes of the processes.

use anyhow::{Context, Result, ensure};
use baton_testkit::console::Console;
use baton_testkit::machine::Main;
use baton_testkit::qmp::Qmp;
use baton_testkit::report::{SERIAL_LINES, SERIAL_RX};
use baton_testkit::transfer::{begin, begin_exec_at, execute_successor, outcome, succeed};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Serial, needs_baton};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::setup;

/// A socket for the console, in the guest's folder.
const SOCKET: &str = "console.sock";
const SERVER: &str = "socket,id=con,path=console.sock,server=on";

/// A guest whose console is this character device; it is not connected yet.
fn with_console(chardev: &str) -> Result<Machine> {
    let arguments = ["-chardev", chardev, "-serial", "chardev:con"];
    setup()?.serial(Serial::Elsewhere).extra(arguments).start()
}

/// A guest that has waited for its console, and is up.
fn connected() -> Result<(Machine, Console)> {
    let machine = with_console(SERVER)?;
    let mut console = Console::connect(&machine.file(SOCKET))?;
    console.wait_line("BATON-GUEST-UP")?;
    Ok((machine, console))
}

fn filename(machine: &mut Machine) -> Result<String> {
    let all = machine.execute("query-chardev", &json!({}))?;
    let con = all.as_array().into_iter().flatten();
    let mut con = con.filter(|row| row["label"] == "con");
    let name = con.next().and_then(|row| row["filename"].as_str());
    Ok(name.context("There is no 'con'")?.to_owned())
}

/// The console answers.
fn answers(console: &mut Console, word: &str) -> Result<()> {
    console.say(&format!("{word}\n"))?;
    console.wait_line(&format!("echo: {word}")).map(drop)
}

/// The guest has gone on with its walk and its console meanwhile.
fn goes_on(machine: &mut Machine) -> Result<()> {
    let before = machine.report().get(SERIAL_LINES);
    machine.wait_progress()?;
    wait_for("the guest to hear its console", PATIENCE, || {
        Ok((machine.report().get(SERIAL_LINES) > before + 8).then_some(()))
    })
}

#[test]
fn a_guest_waits_for_its_console_if_it_is_told_to() -> Result<()> {
    needs_baton!();
    let mut machine = with_console(SERVER)?;
    let path = machine.file(SOCKET);
    wait_for("it to listen", PATIENCE, || {
        machine.alive()?;
        Ok(path.exists().then_some(()))
    })?;
    ensure!(!machine.listens("qmp")?, "it did not wait");
    ensure!(machine.report().get(SERIAL_RX) == 0);
    let mut console = Console::connect(&path)?;
    console.wait_line("BATON-GUEST-UP")?;
    answers(&mut console, "hello")?;
    machine.quit()?;
    ensure!(!path.exists(), "its socket is left behind");
    Ok(())
}

#[test]
fn a_client_stays_connected_over_cpr_transfer_and_cpr_exec() -> Result<()> {
    needs_baton!();
    let (mut machine, console) = connected()?;
    let talk = console.talk()?;
    for _ in 0..3 {
        goes_on(&mut machine)?;
        machine = succeed(machine)?.0;
        goes_on(&mut machine)?;
        execute_successor(&mut machine)?;
    }
    goes_on(&mut machine)?;
    let (mut console, lines) = talk.stop()?;
    ensure!(lines > 40, "only {lines} lines");
    let path = machine.file(SOCKET);
    ensure!(path.exists(), "nobody could connect any more");
    console.say("poweroff\n")?;
    machine.ended_well()?;
    ensure!(!path.exists(), "the last process leaves its socket");
    Ok(())
}

#[test]
fn a_pty_stays_open_over_cpr_transfer_and_cpr_exec() -> Result<()> {
    needs_baton!();
    let mut machine = with_console("pty,id=con,path=tty")?;
    let name = filename(&mut machine)?;
    let path = name.strip_prefix("pty:").context("it is no pty")?;
    let link = machine.file("tty");
    ensure!(std::fs::read_link(&link)? == Path::new(path), "{name}");
    let mut console = Console::open(&link)?;
    // Whether the guest was up before is no matter.
    answers(&mut console, "hello")?;
    let talk = console.talk()?;
    for _ in 0..2 {
        goes_on(&mut machine)?;
        machine = succeed(machine)?.0;
        ensure!(filename(&mut machine)? == name);
        goes_on(&mut machine)?;
        execute_successor(&mut machine)?;
        machine.disconnect();
        ensure!(filename(&mut machine)? == name);
    }
    goes_on(&mut machine)?;
    let (_console, lines) = talk.stop()?;
    ensure!(lines > 25, "only {lines} lines");
    machine.quit()?;
    ensure!(!link.is_symlink(), "the last process leaves its link");
    Ok(())
}

#[test]
fn a_client_of_a_handover_that_fails_is_still_the_guests() -> Result<()> {
    needs_baton!();
    let (mut source, console) = connected()?;
    let talk = console.talk()?;
    let places = ["Prepare", "Load", "AwaitCommit", "Start"];
    for (place, what) in places.into_iter().zip(["error", "kill", "kill", "error"]) {
        goes_on(&mut source)?;
        let mut target = source.successor()?;
        source.want_fault(&format!("target-{place}"), what)?;
        begin(&mut source, &target)?;
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "failed", "{place}: {info}");
        ensure!(!target.ended()?.success(), "{place}");
    }
    goes_on(&mut source)?;
    // And of one that is cancelled while the target has everything open.
    let target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    source.execute("migrate_cancel", &json!({}))?;
    ensure!(outcome(&mut source)?["status"] == "cancelled");
    goes_on(&mut source)?;
    for place in ["exec-write", "successor-load", "successor-start"] {
        source.want_fault(place, "error")?;
        let command = source.command();
        baton_testkit::transfer::begin_exec(&mut source, &command)?;
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "failed", "{place}: {info}");
        goes_on(&mut source)?;
    }
    let mut target = succeed(source)?.0;
    goes_on(&mut target)?;
    talk.stop()?;
    Ok(())
}

#[test]
fn a_client_goes_to_the_target_when_the_source_dies_after_the_state_was_sent() -> Result<()> {
    needs_baton!();
    let (mut source, console) = connected()?;
    let talk = console.talk()?;
    for place in ["AwaitLoaded", "Commit", "AwaitStarted"] {
        goes_on(&mut source)?;
        let mut target = source.successor()?;
        source.want_fault(&format!("source-{place}"), "kill")?;
        begin(&mut source, &target)?;
        source.ended()?;
        target.wait_status("running")?;
        goes_on(&mut target)?;
        source = target;
    }
    talk.stop()?;
    source.quit()
}

#[test]
fn who_connects_while_the_guest_moves_is_served_where_it_comes_to() -> Result<()> {
    needs_baton!();
    let mut source = with_console(&format!("{SERVER},wait=off"))?;
    source.wait_progress()?;
    let path = source.file(SOCKET);
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    let mut console = Console::connect(&path)?;
    console.say("early\n")?;
    let disconnected = format!("disconnected:unix:{SOCKET},server=on");
    ensure!(filename(&mut source)? == disconnected);
    let uri = target.main_uri();
    target.execute("migrate-incoming", &json!({ "uri": uri }))?;
    target.wait_status("running")?;
    console.wait_line("echo: early")?;
    ensure!(filename(&mut target)? == format!("unix:{SOCKET},server=on"));
    Ok(())
}

#[test]
fn a_client_that_is_stopped_or_gone_stops_nobody() -> Result<()> {
    needs_baton!();
    let (mut machine, mut console) = connected()?;
    answers(&mut console, "first")?;
    drop(console);
    wait_for("the client to be gone", PATIENCE, || {
        Ok(filename(&mut machine)?
            .starts_with("disconnected:")
            .then_some(()))
    })?;
    machine.wait_progress()?;
    let mut machine = succeed(machine)?.0;
    let mut console = Console::connect(&machine.file(SOCKET))?;
    answers(&mut console, "second")?;
    machine.quit()
}

#[test]
fn a_terminal_that_nobody_reads_does_not_stop_the_guest() -> Result<()> {
    needs_baton!();
    let mut machine = with_console("pty,id=con,path=tty")?;
    machine.wait_progress()?;
    let mut console = Console::open(&machine.file("tty"))?;
    answers(&mut console, "hello")?;
    // Each makes the guest say about half a kilobyte: more than a terminal and the device hold.
    let full = "is dropped, nobody reads it";
    let mut asked = 0;
    while !machine.log().contains(full) {
        ensure!(asked < 2000, "where is all that?");
        let before = machine.report().get(SERIAL_LINES);
        console.say("report\n")?;
        asked += 1;
        wait_for("the guest to hear it", PATIENCE, || {
            Ok((machine.report().get(SERIAL_LINES) > before).then_some(()))
        })?;
    }
    machine.wait_progress()?;
    // All of that moves along, and what was kept is heard in order.
    let mut machine = succeed(machine)?.0;
    machine.wait_progress()?;
    let mut whole = 0;
    while whole < 10 {
        whole += usize::from(console.line()?.starts_with("report "));
    }
    machine.quit()
}

#[test]
fn a_console_that_connects_to_a_server_connects_again() -> Result<()> {
    needs_baton!();
    let mut machine = with_console("socket,id=con,path=server.sock,reconnect-ms=20")?;
    machine.wait_progress()?;
    let listener = UnixListener::bind(machine.file("server.sock"))?;
    for round in 0..3 {
        let mut console = Console::on(listener.accept()?.0);
        answers(&mut console, &format!("round {round}"))?;
        if round == 1 {
            machine = succeed(machine)?.0;
            answers(&mut console, "still there")?;
        }
    }
    machine.quit()
}

#[test]
fn keys_choose_who_hears_and_the_choice_moves_along() -> Result<()> {
    needs_baton!();
    let chardev = format!("{SERVER},mux=on");
    let second = [
        "-chardev",
        &chardev,
        "-serial",
        "chardev:con",
        "-serial",
        "chardev:con",
    ];
    let mut machine = setup()?.serial(Serial::Elsewhere).extra(second).start()?;
    let mut console = Console::connect(&machine.file(SOCKET))?;
    console.wait_line("BATON-GUEST-UP")?;
    answers(&mut console, "first")?;
    // The guest does not listen on its second line.
    console.say("\x01cunheard\n\x01")?;
    // What was typed is read before the guest stops, the last key included.
    wait_for("the keys to be read", PATIENCE, || {
        machine.wait_progress()?;
        Ok(Some(()))
    })?;
    let mut machine = succeed(machine)?.0;
    console.say("cheard\n")?;
    let line = console.line()?;
    ensure!(line == "echo: heard", "{line}");
    execute_successor(&mut machine)?;
    answers(&mut console, "again")?;
    console.say("\x01x")?;
    machine.ended_well()
}

#[test]
fn a_stopped_client_gets_everything_once_it_goes_on() -> Result<()> {
    needs_baton!();
    let (mut machine, mut console) = connected()?;
    let expected: Vec<_> = (0..50).map(|n| format!("line {n}")).collect();
    for (n, line) in expected.iter().enumerate() {
        let before = machine.report().get(SERIAL_LINES);
        console.say(&format!("{line}\n"))?;
        wait_for("the guest to hear it", PATIENCE, || {
            Ok((machine.report().get(SERIAL_LINES) > before).then_some(()))
        })?;
        // Nobody has read any of it.
        if n == 20 {
            machine = succeed(machine)?.0;
        }
        if n == 40 {
            execute_successor(&mut machine)?;
        }
    }
    for line in expected {
        let heard = console.line()?;
        ensure!(heard == format!("echo: {line}"), "{heard}");
    }
    machine.signal(Signal::SIGTERM)?;
    machine.ended_well()
}

/// A ring buffer keeps what the guest has said, from one process to the next.
#[test]
fn a_ring_buffer_moves_along() -> Result<()> {
    needs_baton!();
    let mut machine = with_console("ringbuf,id=con")?;
    let ask = json!({ "device": "con", "size": 1000 });
    let mut text = String::new();
    let mut wait_up = |machine: &mut Machine| {
        wait_for("the guest to come up", PATIENCE, || {
            let answer = machine.execute("ringbuf-read", &ask)?;
            text.push_str(answer.as_str().unwrap_or_default());
            Ok(text.contains("BATON-GUEST-UP").then_some(()))
        })
    };
    wait_up(&mut machine)?;
    let write = json!({ "device": "con", "data": "cmVtZW1iZXI=", "format": "base64" });
    machine.execute("ringbuf-write", &write)?;
    let mut machine = succeed(machine)?.0;
    execute_successor(&mut machine)?;
    let answer = machine.execute("ringbuf-read", &ask)?;
    ensure!(answer == "remember", "{answer}");
    machine.quit()
}

/// What came and went while the process ran is so after an update, and after a program that fails.
#[test]
fn what_has_come_and_gone_stays_so() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.extra(["-chardev", "null,id=old"]).boot()?;
    machine.execute("chardev-remove", &json!({ "id": "old" }))?;
    let ring = json!({ "type": "ringbuf", "data": { "size": 64 } });
    machine.execute("chardev-add", &json!({ "id": "ring", "backend": ring }))?;
    let unix = json!({ "type": "unix", "data": { "path": "extra.sock" } });
    let socket = json!({ "type": "socket", "data": { "addr": unix, "wait": false } });
    machine.execute("chardev-add", &json!({ "id": "extra", "backend": socket }))?;
    let mut client = UnixStream::connect(machine.file("extra.sock"))?;
    wait_for("the client to be noticed", PATIENCE, || {
        let row = chardev(&mut machine, "extra")?.unwrap_or_default();
        let name = row["filename"].as_str().unwrap_or_default();
        Ok((!name.starts_with("disconnected:")).then_some(()))
    })?;
    client.set_nonblocking(true)?;
    let mut is_so = |machine: &mut Machine, step: &str| -> Result<()> {
        ensure!(chardev(machine, "old")?.is_none(), "{step}: it is back");
        let ask = json!({ "device": "ring", "size": 64 });
        let kept = machine.execute("ringbuf-read", &ask)?;
        ensure!(kept == step, "{step}: {kept}");
        let read = client.read(&mut [0]).map_err(|e| e.kind());
        ensure!(read == Err(ErrorKind::WouldBlock), "{step}: {read:?}");
        Ok(())
    };
    let remember = |machine: &mut Machine, step: &str| {
        machine.execute("ringbuf-write", &json!({ "device": "ring", "data": step }))
    };
    remember(&mut machine, "way back")?;
    let mut command = machine.command();
    let said = ["-chardev", "ringbuf,id=ring,size=64"];
    command.extend(said.map(str::to_owned));
    let said = [
        "-chardev",
        "socket,id=extra,path=extra.sock,server=on,wait=off",
    ];
    command.extend(said.map(str::to_owned));
    machine.want_fault("successor-load", "error")?;
    begin_exec_at(&mut machine, &command, None)?;
    let info = outcome(&mut machine)?;
    ensure!(info["status"] == "failed", "{info}");
    machine.wait_status("running")?;
    is_so(&mut machine, "way back")?;
    for mode in ["cpr-transfer", "cpr-exec"] {
        remember(&mut machine, mode)?;
        machine.update(&["--mode", mode])?;
        is_so(&mut machine, mode)?;
    }
    Ok(())
}

/// What `query-chardev` tells of one.
fn chardev(machine: &mut Machine, id: &str) -> Result<Option<Value>> {
    let all = machine.execute("query-chardev", &json!({}))?;
    let mut all = all.as_array().cloned().unwrap_or_default().into_iter();
    Ok(all.find(|row| row["label"] == id))
}

/// Reads until a line that has `text` in it: prompts have no line of their own.
fn hears(console: &mut Console, text: &str) -> Result<()> {
    let mut other = Vec::new();
    loop {
        let line = console.line();
        let line = line.with_context(|| format!("No '{text}' after {other:?}"))?;
        if line.contains(text) {
            return Ok(());
        }
        other.push(line);
    }
}

#[test]
fn a_monitor_for_people_is_a_key_away_from_the_console() -> Result<()> {
    needs_baton!();
    let chardev = format!("{SERVER},mux=on");
    let mut machine = setup()?
        .serial(Serial::Elsewhere)
        .extra([
            "-chardev",
            &chardev,
            "-serial",
            "chardev:con",
            "-mon",
            "con",
        ])
        .start()?;
    let mut console = Console::connect(&machine.file(SOCKET))?;
    console.wait_line("BATON-GUEST-UP")?;
    answers(&mut console, "guest")?;
    console.say("\x01cinfo status\n")?;
    hears(&mut console, "monitor - type 'help'")?;
    hears(&mut console, "VM status: running")?;
    console.say("\x01cguest again\n")?;
    hears(&mut console, "echo: guest again")?;
    console.say("\x01c")?;
    machine.wait_progress()?;
    // The conversation goes on in the next program, and another begins in the next process.
    execute_successor(&mut machine)?;
    console.say("info name\n")?;
    hears(&mut console, "test")?;
    let mut machine = succeed(machine)?.0;
    console.say("info status\n")?;
    hears(&mut console, "monitor - type 'help'")?;
    hears(&mut console, "VM status: running")?;
    console.say("\x01clast\n")?;
    hears(&mut console, "echo: last")?;
    console.say("\x01cquit\n")?;
    machine.ended_well()
}

#[test]
fn monitors_listen_on_character_devices() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?
        .extra(["-chardev", "socket,id=m,path=m.sock,server=on,wait=off"])
        .extra(["-mon", "chardev=m,mode=control"])
        .extra(["-chardev", "pty,id=p,path=tty", "-mon", "p,mode=control"])
        .start()?;
    machine.wait_up()?;
    // The monitor's own socket: as many clients as there are.
    let path = machine.file("m.sock");
    for client in &mut [Qmp::connect(&path)?, Qmp::connect(&path)?] {
        let status = client.execute("query-status", &json!({}))?;
        ensure!(status["status"] == "running", "{status}");
    }
    let mut terminal = Console::open(&machine.file("tty"))?;
    ensure!(terminal.line()?.starts_with("{\"QMP\":"));
    terminal.say("{'execute':'qmp_capabilities'}\r")?;
    ensure!(terminal.line()? == "{\"return\":{}}");
    execute_successor(&mut machine)?;
    terminal.say("{'execute':'query-status','id':'still there'}\r")?;
    hears(&mut terminal, "still there")?;
    // It is each process's own, so that this one keeps it.
    let chardevs = machine.execute("query-chardev", &json!({}))?;
    ensure!(chardevs[0]["label"] == "p", "{chardevs}");
    machine.quit()
}
