//! The clients of others, and many at once.

use anyhow::{Context, Result, ensure};
use baton_testkit::clients::{python, script};
use baton_testkit::native::skipped;
use baton_testkit::qmp::Qmp;
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton, needs_python, this_test};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{is_whole, setup};

#[test]
fn qemus_library_runs_every_query_hears_events_and_passes_a_file() -> Result<()> {
    needs_baton!();
    let programs = needs_python!();
    let mut machine = setup()?.cpus(2).boot()?;
    machine.wait_listening("qmp")?;
    let socket = machine.socket("qmp");
    let file = machine.file("passed");
    std::fs::write(&file, "a file")?;
    let arguments = [&*socket.to_string_lossy(), &*file.to_string_lossy()];
    let said = script(&programs, "everything.py", &arguments)?;
    let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(seen["greeting"]["qemu"]["major"] == 10, "{seen}");
    ensure!(seen["events"] == json!(["STOP", "RESUME"]), "{seen}");
    let file = &seen["file"];
    let set = &file["sets"][0];
    ensure!(set["fdset-id"] == file["added"]["fdset-id"], "{file}");
    ensure!(set["fds"][0]["opaque"] == "from python", "{file}");
    ensure!(file["left"] == json!([]), "{file}");
    let refusals = json!([
        [
            "CommandNotFound",
            "The command no-such-command has not been found"
        ],
        ["GenericError", "Parameter 'now' is unexpected"],
        ["DeviceNotFound", "Device '/nowhere' not found"],
        ["GenericError", "No file descriptor supplied via SCM_RIGHTS"],
    ]);
    ensure!(seen["refusals"] == refusals, "{}", seen["refusals"]);
    queries_are_true(&mut machine, &seen["queries"])?;
    is_whole(&mut machine)
}

/// What the queries say of the guest that runs.
fn queries_are_true(machine: &mut Machine, queries: &Value) -> Result<()> {
    let all = queries.as_object().context("no object")?;
    ensure!(all.len() > 25, "{:?}", all.keys());
    let cpus = queries["query-cpus-fast"].as_array().context("no CPUs")?;
    ensure!(cpus.len() == 2, "{cpus:?}");
    for cpu in cpus {
        let thread = format!("/proc/{}/task/{}", machine.pid(), cpu["thread-id"]);
        ensure!(Path::new(&thread).exists(), "There is no {thread}");
    }
    let block = &queries["query-block"][0];
    let image = machine.disk().context("There is no disk")?;
    let size = std::fs::metadata(&image)?.len();
    ensure!(
        block["inserted"]["image"]["virtual-size"] == size,
        "{block}"
    );
    ensure!(block["qdev"].is_string(), "{block}");
    let memory = &queries["query-memory-size-summary"]["base-memory"];
    ensure!(*memory == 128 << 20, "{memory}");
    ensure!(queries["query-memdev"][0]["share"] == true);
    ensure!(queries["query-machines"][0]["name"] == "baton-1.0");
    ensure!(queries["query-target"]["arch"] == "x86_64");
    let plugins = queries["query-plugins"].as_array().context("no plugins")?;
    let id = |plugin: &Value| plugin["build-id"].as_str().is_some_and(|id| id.len() > 8);
    ensure!(plugins.iter().all(id), "{plugins:?}");
    let path = block["qdev"].as_str().context("no path")?;
    let drive = json!({ "path": path, "property": "drive" });
    ensure!(machine.execute("qom-get", &drive)? == block["device"]);
    Ok(())
}

/// One client that is a program: what it says and hears are its standard streams.
fn program(command: &mut Command) -> Result<(std::process::Child, BufReader<impl Read + use<>>)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = baton_testkit::process::spawn(command)?;
    let output = child.stdout.take().context("no output")?;
    Ok((child, BufReader::new(output)))
}

#[test]
fn qemus_shell_drives_a_whole_live_update() -> Result<()> {
    needs_baton!();
    let programs = needs_python!();
    let mut source = setup()?.boot()?;
    source.wait_listening("qmp")?;
    let mut target = source.successor()?;
    let mut shell = Command::new("timeout");
    shell
        .arg("120")
        .arg(programs.join("qmp-shell"))
        .arg(source.socket("qmp"));
    let (mut child, mut output) = program(&mut shell)?;
    let mut input = child.stdin.take().context("no input")?;
    let channels = target.channels().to_string();
    for line in [
        "migrate-set-capabilities capabilities=[{\"capability\":\"events\",\"state\":true}]",
        "migrate-set-parameters mode=cpr-transfer",
        &format!("migrate channels={channels}"),
    ] {
        writeln!(input, "{line}")?;
    }
    target.wait_status("running")?;
    source.wait_status("postmigrate")?;
    // What is still to be let go of comes between the two.
    wait_for("the end of the migration", PATIENCE, || {
        let info = source.execute("query-migrate", &json!({}))?;
        Ok((info["status"] == "completed").then_some(()))
    })?;
    writeln!(input, "query-migrate")?;
    drop(input);
    let mut said = String::new();
    output.read_to_string(&mut said)?;
    child.wait()?;
    ensure!(said.contains("\"status\": \"completed\""), "{said}");
    ensure!(!said.contains("\"error\""), "{said}");
    is_whole(&mut target)
}

#[test]
fn socat_carries_a_conversation() -> Result<()> {
    needs_baton!();
    if Command::new("socat").arg("-V").output().is_err() {
        skipped(this_test!(), "socat is not installed");
        return Ok(());
    }
    let mut machine = setup()?.boot()?;
    machine.wait_listening("qmp")?;
    let mut socat = Command::new("socat");
    let address = format!("UNIX-CONNECT:{}", machine.socket("qmp").display());
    let (mut child, mut output) = program(socat.args(["-t", "30", "-", &address]))?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(b"{'execute':'qmp_capabilities'}\n{'execute':'query-status','id':'x'}\n")?;
    let mut line = String::new();
    while !line.contains("\"id\":\"x\"") {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "socat has ended");
    }
    ensure!(line.contains("\"running\":true"), "{line}");
    drop(input);
    child.wait()?;
    is_whole(&mut machine)
}

#[test]
fn a_client_that_never_ends_its_lines_is_understood() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_listening("qmp")?;
    let mut stream = UnixStream::connect(machine.socket("qmp"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut next = || {
        lines
            .next()
            .context("It has hung up")?
            .context("It says nothing")
    };
    ensure!(next()?.contains("QMP"));
    for byte in b"{'execute':'qmp_capabilities'}{'execute':'query-name'}" {
        stream.write_all(&[*byte])?;
    }
    for _ in 0..2 {
        ensure!(next()?.contains("return"));
    }
    is_whole(&mut machine)
}

#[test]
fn many_clients_are_served_at_once_and_one_that_never_reads_stalls_nobody() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_listening("qmp")?;
    let socket = machine.socket("qmp");
    // It asks for ever, and takes no answer.
    let mut deaf = UnixStream::connect(&socket)?;
    deaf.set_nonblocking(true)?;
    let _ = deaf.write_all(b"{'execute':'qmp_capabilities'}");
    while deaf
        .write_all(&b"{'execute':'query-qmp-schema'}".repeat(64))
        .is_ok()
    {}
    let clients: Result<Vec<Qmp>> = (0..64).map(|_| Qmp::connect(&socket)).collect();
    let mut clients = clients?;
    let talks = std::thread::scope(|scope| {
        let talk = |client: &mut Qmp| -> Result<()> {
            for _ in 0..20 {
                let status = client.execute("query-status", &json!({}))?;
                ensure!(status["running"].is_boolean(), "{status}");
            }
            Ok(())
        };
        let talks: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(move || talk(client)))
            .collect();
        talks
            .into_iter()
            .try_for_each(|talk| talk.join().map_err(|_| anyhow::anyhow!("It panicked"))?)
    });
    talks?;
    // All hear of what one does.
    machine.stop()?;
    machine.cont()?;
    for client in &mut clients {
        client.wait_event("STOP")?;
        client.wait_event("RESUME")?;
    }
    wait_for("the guest to go on", PATIENCE, || {
        Ok((machine.status()? == "running").then_some(()))
    })?;
    is_whole(&mut machine)
}

/// So that the reason is known early where nothing can be installed.
#[test]
fn the_clients_of_others_are_there_or_it_is_said_why_not() -> Result<()> {
    if let Err(reason) = python()? {
        skipped(this_test!(), &reason);
    }
    Ok(())
}
