//! `baton update`: one command replaces the process of a running guest, or leaves everything as it is.

use anyhow::{Context, Result, ensure};
use baton_testkit::process;
use baton_testkit::qmp::Qmp;
use baton_testkit::report::ENTRY_TSC;
use baton_testkit::scratch::Scratch;
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Serial, guest, needs_baton};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{is_whole, setup};

fn boot() -> Result<Machine> {
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    Ok(machine)
}

/// Baton by another path, without any plugins beside it.
fn other_baton(scratch: &Scratch) -> Result<PathBuf> {
    let own = baton_testkit::Vmm::Baton.programs()?.binary;
    let copy = scratch.join("baton");
    install(&own, &copy)?;
    Ok(copy)
}

/// Makes a program of a file. Another process writes it: what this one starts meanwhile would have it open
/// for writing, and it could not be executed.
fn install(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("install").args([from, to]).status()?;
    ensure!(done.success(), "Cannot install {}", to.display());
    Ok(())
}

/// A program of a few lines of shell.
fn script(scratch: &Scratch, name: &str, text: &str) -> Result<String> {
    let (draft, path) = (scratch.join(&format!("{name}.sh")), scratch.join(name));
    fs::write(&draft, format!("#!/bin/sh\n{text}\n"))?;
    install(&draft, &path)?;
    Ok(path.display().to_string())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn origin(machine: &mut Machine) -> Result<Value> {
    machine.execute("query-process", &json!({}))
}

/// The command line, but for the sockets that the guest came by.
fn machine_line(machine: &mut Machine) -> Result<Vec<String>> {
    let process = origin(machine)?;
    let all = process["arguments"]
        .as_array()
        .context("There is no line")?;
    let words = all.iter().filter_map(Value::as_str);
    let words = words.filter(|word| !word.contains(".baton-update-"));
    let words: Vec<_> = words.map(str::to_owned).collect();
    ensure!(all.len() == words.len() + 2, "Not two channels: {all:?}");
    Ok(words)
}

/// What is in the guest's folder beside logs.
fn leavings(machine: &Machine) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(machine.file(""))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".log") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[test]
fn one_command_replaces_the_process() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let scratch = Scratch::for_programs()?;
    let new = text(&other_baton(&scratch)?);
    let before = machine.pid();
    let result = machine.update(&["--binary", &new])?;
    ensure!(result["before"]["pid"] == before && result["now"]["program"] == new.as_str());
    ensure!(
        result["blackout"]["total-us"].as_u64() > Some(0),
        "{result}"
    );
    ensure!(machine.pid() != before, "{result}");
    is_whole(&mut machine)?;
    // Its input and output are those of the first process.
    machine.say("hello")?;
    machine.wait_line("echo: hello")?;
    machine.say("poweroff")?;
    machine.ended_well()
}

#[test]
fn twenty_in_a_row_leave_nothing_behind() -> Result<()> {
    needs_baton!();
    // What was meant for the first start alone is not said again.
    let mut machine = setup()?.paused().start()?;
    machine.cont()?;
    machine.wait_up()?;
    machine.wait_progress()?;
    let entered = machine.report().get(ENTRY_TSC);
    machine.update(&[])?;
    let (line, files) = (machine_line(&mut machine)?, leavings(&machine)?);
    for round in 0..20 {
        machine
            .update(&[])
            .with_context(|| format!("round {round}"))?;
        ensure!(machine.status()? == "running", "round {round}");
    }
    ensure!(machine_line(&mut machine)? == line);
    ensure!(leavings(&machine)? == files, "{:?}", leavings(&machine)?);
    ensure!(
        machine.report().get(ENTRY_TSC) == entered,
        "It has booted again"
    );
    is_whole(&mut machine)
}

#[test]
fn a_paused_guest_stays_paused() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.stop()?;
    machine.update(&[])?;
    ensure!(machine.status()? == "paused");
    machine.cont()?;
    is_whole(&mut machine)
}

#[test]
fn a_program_that_was_replaced_on_disk_is_updated_to_what_is_there_now() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let scratch = Scratch::for_programs()?;
    let path = other_baton(&scratch)?;
    machine.update(&["--binary", &text(&path)])?;
    ensure!(origin(&mut machine)?["replaced"] == false);
    fs::remove_file(&path)?;
    other_baton(&scratch)?;
    let found = origin(&mut machine)?;
    ensure!(
        found["replaced"] == true && found["program"] == text(&path).as_str(),
        "{found}"
    );
    machine.update(&["--binary", &text(&path)])?;
    ensure!(origin(&mut machine)?["replaced"] == false);
    is_whole(&mut machine)
}

#[test]
fn by_cpr_exec_the_process_stays_and_becomes_the_program() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.serial(Serial::File).boot()?;
    machine.wait_progress()?;
    let scratch = Scratch::for_programs()?;
    let new = text(&other_baton(&scratch)?);
    let pid = machine.pid();
    for _ in 0..3 {
        let result = machine.update(&["--mode", "cpr-exec", "--binary", &new])?;
        ensure!(
            result["now"]["program"] == new.as_str() && machine.pid() == pid,
            "{result}"
        );
        is_whole(&mut machine)?;
    }
    let reason = "the guest goes on in process";
    let bad = script(
        &scratch,
        "bad",
        "[ $1 = -version ] && echo Baton 9.9 || exit 3",
    )?;
    machine.refused_update(&["--mode", "cpr-exec", "--binary", &bad], reason)?;
    is_whole(&mut machine)
}

#[test]
fn a_build_that_cannot_take_the_guest_leaves_it_where_it_is() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let scratch = Scratch::for_programs()?;
    let baton = text(&other_baton(&scratch)?);
    let plugins = scratch.join("plugins");
    fs::create_dir(&plugins)?;
    let alone = ["--binary", &baton, "--plugin-dir", &text(&plugins)];
    machine.refused_update(&alone, "is offered by no plugin")?;
    fs::write(plugins.join("bad.so"), "not built well")?;
    machine.refused_update(&alone, "bad.so")?;

    let not_baton = script(&scratch, "other", "exit 0")?;
    machine.refused_update(&["--binary", &not_baton], "is no Baton")?;
    let silent = "[ $1 = -version ] && echo Baton 9.9 || exit 0";
    let silent = script(&scratch, "silent", silent)?;
    machine.refused_update(&["--binary", &silent], "ended without a word")?;
    let hangs = "[ $1 = -version ] && echo Baton 9.9 || exec sleep 600";
    let hangs = script(&scratch, "hangs", hangs)?;
    machine.refused_update(&["--binary", &hangs, "--timeout", "2"], "not ready in time")?;
    let more = format!("exec {baton} \"$@\" -frobnicate");
    let more = script(&scratch, "more", &more)?;
    machine.refused_update(&["--binary", &more], "is no Baton")?;
    let more = format!("[ $1 = -version ] && exec {baton} $1; exec {baton} \"$@\" -frobnicate");
    let more = script(&scratch, "more", &more)?;
    machine.refused_update(&["--binary", &more], "-frobnicate: invalid option")?;
    let less = format!("[ $1 = -version ] && exec {baton} $1; exec {baton} \"$@\" -m 64");
    let less = script(&scratch, "less", &less)?;
    machine.refused_update(&["--binary", &less], "the guest goes on in process")?;
    machine.refused_update(
        &["--binary", "/nonexistent"],
        "--binary /nonexistent: No such",
    )?;
    for place in [
        "target-Prepare",
        "target-Load",
        "target-Start",
        "source-StopAndSave",
    ] {
        for what in ["error", "panic"] {
            machine.want_fault(place, what)?;
            machine.refused_update(&[], "the guest goes on in process")?;
        }
    }
    is_whole(&mut machine)?;
    machine.update(&[])?;
    is_whole(&mut machine)
}

#[test]
fn a_process_that_dies_in_an_update_leaves_the_guest_to_the_other() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for place in [
        "successor-connected",
        "target-Prepare",
        "target-Load",
        "target-Start",
    ] {
        machine.want_fault(place, "kill")?;
        machine.refused_update(&[], "the guest goes on in process")?;
    }
    is_whole(&mut machine)?;
    for place in ["source-Commit", "source-AwaitStarted", "source-Finish"] {
        machine.want_fault(place, "kill")?;
        let result = machine.update(&[])?;
        ensure!(result["warning"].is_string(), "{place}: {result}");
        is_whole(&mut machine).with_context(|| place.to_owned())?;
    }
    Ok(())
}

/// An update's steps, and whether the guest has moved when it dies there. When it dies just after the
/// source was told to migrate, the successor may learn of that before the source has come, or after.
const STEPS: [(&str, Option<bool>); 9] = [
    ("update-folder", Some(false)),
    ("update-started", Some(false)),
    ("update-waiting", Some(false)),
    ("update-migrate", Some(false)),
    ("update-migrating", None),
    ("update-completed", Some(true)),
    ("update-quit", Some(true)),
    ("update-quitting", Some(true)),
    ("update-done", Some(true)),
];

#[test]
fn an_update_may_die_at_every_step() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for (step, moves) in STEPS {
        let before = machine.pid();
        machine.disconnect();
        machine.want_fault(step, "kill")?;
        let output = machine.try_update(&[])?;
        ensure!(output.status.code().is_none(), "{step}: {output:?}");
        machine.find_again().with_context(|| step.to_owned())?;
        let moved = machine.pid() != before;
        ensure!(
            moves.is_none_or(|moves| moves == moved),
            "{step}: it has moved: {moved}"
        );
        is_whole(&mut machine).with_context(|| step.to_owned())?;
    }
    // What the dead left goes with the next.
    machine.update(&[])?;
    let left = leavings(&machine)?;
    let folders: Vec<_> = left
        .iter()
        .filter(|name| name.starts_with(".baton"))
        .collect();
    ensure!(folders.is_empty(), "{folders:?}");
    is_whole(&mut machine)
}

#[test]
fn an_update_by_cpr_exec_may_die_too() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.serial(Serial::File).boot()?;
    for step in ["update-execute", "update-executing"] {
        machine.want_fault(step, "kill")?;
        let output = machine.try_update(&["--mode", "cpr-exec"])?;
        ensure!(output.status.code().is_none(), "{step}: {output:?}");
        machine.disconnect();
        machine.wait_status("running")?;
        is_whole(&mut machine).with_context(|| step.to_owned())?;
    }
    Ok(())
}

#[test]
fn every_monitor_leads_to_the_new_process() -> Result<()> {
    needs_baton!();
    let port = baton_testkit::sockets::free_port()?;
    let tcp = format!("tcp:127.0.0.1:{port},server=on,wait=off");
    let more = ["-qmp", &tcp, "-qmp", "unix:second.sock,server=on,wait=off"];
    let mut machine = setup()?.extra(more).boot()?;
    machine.wait_progress()?;
    let second = machine.file("second.sock");
    for _ in 0..2 {
        // A client that stays connected to the old process does not keep it.
        let mut old = Qmp::connect(&second)?;
        machine.update(&[])?;
        ensure!(old.execute("query-status", &json!({})).is_err());
        let status = Qmp::connect(&second)?.execute("query-status", &json!({}))?;
        ensure!(status["status"] == "running", "{status}");
    }
    let output = machine.try_update(&["--dry-run"])?;
    ensure!(output.status.success(), "{output:?}");
    is_whole(&mut machine)?;
    machine.quit()?;
    ensure!(!second.exists() && !machine.file("qmp-0.sock").exists());
    Ok(())
}

#[test]
fn devices_that_have_come_and_gone_are_as_they_are_in_the_new_process() -> Result<()> {
    needs_baton!();
    let named = ["-device", "virtio-rng-pci,id=early"];
    let mut machine = setup()?.extra(named).start()?;
    machine.wait_up()?;
    let devices = |machine: &mut Machine| -> Result<Vec<(String, String)>> {
        let list = machine.execute("query-devices", &json!({}))?;
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let list = list.as_array().context("There is no list")?;
        let mut list: Vec<_> = list
            .iter()
            .map(|row| (text(row, "id"), text(row, "address")))
            .collect();
        list.sort();
        Ok(list)
    };
    let come = json!({ "driver": "virtio-rng-pci", "id": "late", "addr": "1b" });
    machine.execute("device_add", &come)?;
    let before = devices(&mut machine)?;
    ensure!(
        before
            .iter()
            .any(|(id, at)| id == "late" && at.contains("1b")),
        "{before:?}"
    );
    for _ in 0..2 {
        machine.update(&[])?;
        let now = devices(&mut machine)?;
        ensure!(now == before, "{now:?} is not {before:?}");
    }
    let line = machine_line(&mut machine)?;
    let late = line.iter().filter(|word| word.contains("late")).count();
    ensure!(late == 1, "{line:?}");
    is_whole(&mut machine)
}

#[test]
fn a_dry_run_says_what_would_change_and_touches_nothing() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let output = machine.try_update(&["--dry-run", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        found["status"] == "possible" && found["blockers"] == json!([]),
        "{found}"
    );
    let plugins = found["plugins"]
        .as_array()
        .context("There are no plugins")?;
    ensure!(
        !plugins.is_empty() && plugins.iter().all(|p| p["change"] == "same"),
        "{found}"
    );
    ensure!(
        found["state"]
            .as_array()
            .is_some_and(|lines| lines.len() > 3),
        "{found}"
    );

    let scratch = Scratch::for_programs()?;
    let baton = text(&other_baton(&scratch)?);
    let arguments = [
        "--dry-run",
        "--binary",
        &baton,
        "--plugin-dir",
        &text(scratch.path()),
    ];
    let output = machine.try_update(&arguments)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("is offered by no plugin"), "{said}");
    machine.is_where_it_was()?;
    is_whole(&mut machine)
}

#[test]
fn what_blocks_the_mode_is_said_with_its_remedy() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.private_memory().start()?;
    machine.wait_up()?;
    for arguments in [&[][..], &["--mode", "cpr-exec"]] {
        machine.refused_update(arguments, "share=on is required")?;
    }
    let output = machine.try_update(&["--dry-run"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(1) && said.contains("BLOCKED"),
        "{said}"
    );
    Ok(())
}

#[test]
fn settings_of_an_operator_are_not_in_the_way_and_stay_if_it_fails() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.execute("migrate-set-parameters", &json!({ "mode": "cpr-reboot" }))?;
    let pause = json!([{ "capability": "pause-before-switchover", "state": true }]);
    machine.execute(
        "migrate-set-capabilities",
        &json!({ "capabilities": pause }),
    )?;
    machine.want_fault("target-Load", "error")?;
    machine.refused_update(&[], "the guest goes on in process")?;
    let parameters = machine.execute("query-migrate-parameters", &json!({}))?;
    ensure!(parameters["mode"] == "cpr-reboot", "{parameters}");
    let list = machine.execute("query-migrate-capabilities", &json!({}))?;
    let on = |row: &Value| row["capability"] == "pause-before-switchover" && row["state"] == true;
    ensure!(
        list.as_array().is_some_and(|all| all.iter().any(on)),
        "{list}"
    );
    machine.update(&[])?;
    is_whole(&mut machine)
}

#[test]
fn a_log_file_gets_what_the_new_process_has_to_say() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.environment("BATON_LOG", "debug").boot()?;
    let log = machine.file("new.log");
    machine.update(&["--log", &text(&log)])?;
    wait_for("the new process's log", PATIENCE, || {
        Ok((!fs::read_to_string(&log)?.is_empty()).then_some(()))
    })?;
    is_whole(&mut machine)
}

#[test]
fn a_guest_on_a_terminal_is_updated_in_its_process_or_not_at_all() -> Result<()> {
    needs_baton!();
    let scratch = Scratch::new()?;
    let programs = baton_testkit::Vmm::Baton.programs()?;
    let terminal = nix::pty::openpty(None, None).context("There is no terminal")?;
    let mut command = Command::new(&programs.binary);
    command.args([
        "-S",
        "-m",
        "32M",
        "-nodefaults",
        "-serial",
        "stdio",
        "-append",
        "",
    ]);
    command.arg("-kernel").arg(guest::image()?);
    command.args(["-qmp", "unix:qmp.sock,server=on,wait=off"]);
    if let Some(plugins) = &programs.plugins {
        command.arg("-plugin").arg(plugins);
    }
    command.current_dir(scratch.path());
    command
        .stdin(terminal.slave.try_clone()?)
        .stdout(terminal.slave);
    let mut child = process::spawn(&mut command)?;
    let path = scratch.join("qmp.sock");
    let connect = || Ok(Qmp::connect(&path).ok());
    wait_for("the monitor", PATIENCE, connect)?;

    let update = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(&programs.binary);
        command
            .arg("update")
            .arg("--qmp")
            .arg(&path)
            .args(arguments);
        let output = command.output().context("Cannot start baton update")?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), errors))
    };
    let (status, said) = update(&[])?;
    ensure!(
        status == Some(1) && said.contains("use --mode cpr-exec"),
        "{said}"
    );
    ensure!(update(&["--dry-run"])?.0 == Some(1));
    let (status, said) = update(&["--mode", "cpr-exec"])?;
    ensure!(status == Some(0), "{said}");
    let mut qmp = Qmp::connect(&path)?;
    let process = qmp.execute("query-process", &json!({}))?;
    ensure!(process["pid"] == child.id() && process["standard-streams"] == "terminal");
    qmp.execute("quit", &json!({}))?;
    ensure!(child.wait()?.success());
    Ok(())
}

#[test]
fn a_place_without_a_guest_is_named() -> Result<()> {
    needs_baton!();
    let scratch = Scratch::new()?;
    let mut command = Command::new(baton_testkit::Vmm::Baton.programs()?.binary);
    let nobody = text(&scratch.join("nobody.sock"));
    let output = command.args(["update", "--qmp", &nobody]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && errors.lines().count() == 1,
        "{errors}"
    );
    ensure!(
        errors.contains("nobody.sock cannot be connected to"),
        "{errors}"
    );
    Ok(())
}
