//! Live updates by cpr-exec: the process becomes the next program, and the guest goes on.

use anyhow::{Result, ensure};
use baton_testkit::progress::Progress;
use baton_testkit::report::ENTRY_TSC;
use baton_testkit::transfer::{begin_exec, begin_exec_at, execute_at, execute_successor, outcome};
use baton_testkit::{Machine, needs_kvm};
use serde_json::json;

use crate::{is_whole, setup};

#[test]
fn a_guest_goes_on_in_the_program_that_its_process_executes() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    let entered = machine.report().get(ENTRY_TSC);
    for _ in 0..3 {
        machine.wait_progress()?;
        let before = Progress::now(machine.report());
        let handover = execute_successor(&mut machine)?;
        ensure!(handover.blackout_ms().is_some(), "{handover:?}");
        is_whole(&mut machine)?;
        let stuck = Progress::now(machine.report()).stuck_since(&before);
        ensure!(stuck.is_empty(), "{stuck:?}");
    }
    ensure!(machine.report().get(ENTRY_TSC) == entered, "it booted");
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    machine.say("poweroff")?;
    machine.ended_well()
}

#[test]
fn a_paused_guest_stays_paused() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.stop()?;
    execute_successor(&mut machine)?;
    machine.wait_status("paused")?;
    machine.cont()?;
    is_whole(&mut machine)
}

#[test]
fn the_state_goes_to_a_file_as_well_if_one_is_named() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    let file = machine.file("state");
    let uri = format!("file:{}", file.display());
    let mut command = machine.command();
    command.extend(["-incoming".to_owned(), uri.clone()]);
    machine.wait_progress()?;
    execute_at(&mut machine, &command, Some(&uri))?;
    is_whole(&mut machine)?;
    ensure!(file.metadata()?.len() > 1000, "the state is not there");

    // Another place than the one that migrate named, and a place that would not keep it.
    std::fs::remove_file(&file)?;
    begin_exec_at(&mut machine, &command, Some("file:elsewhere"))?;
    let info = outcome(&mut machine)?;
    let said = info["error-desc"].as_str().unwrap_or_default();
    ensure!(said.contains("say -incoming file:elsewhere"), "{info}");
    ensure!(!machine.file("elsewhere").exists(), "a state is left");
    for uri in ["unix:/nowhere", "tcp:127.0.0.1:4444", "exec:cat"] {
        let said = machine.refusal("migrate", &json!({ "uri": uri }))?;
        ensure!(
            said.contains("nobody would read what is streamed"),
            "{said}"
        );
    }
    // QEMU's scripts may name a cpr channel, which nobody needs.
    let main = json!({ "transport": "file", "filename": file, "offset": 0 });
    let cpr = json!({ "transport": "socket", "type": "unix", "path": "cpr.sock" });
    let channels = [("main", main), ("cpr", cpr)];
    let channels = channels.map(|(kind, addr)| json!({ "channel-type": kind, "addr": addr }));
    machine.qmp()?.forget_events();
    machine.execute("migrate", &json!({ "channels": channels }))?;
    let info = outcome(&mut machine)?;
    ensure!(info["status"] == "completed", "{info}");
    let ignored = "ignoring cpr channel for migration mode cpr-exec";
    ensure!(machine.log().contains(ignored), "{}", machine.log());
    is_whole(&mut machine)
}

/// Tries a command that cannot work; the guest goes on and the reason is told.
fn fails(machine: &mut Machine, command: &[&str]) -> Result<String> {
    let command: Vec<_> = command.iter().map(ToString::to_string).collect();
    begin_exec(machine, &command)?;
    let info = outcome(machine)?;
    ensure!(info["status"] == "failed", "{info}");
    machine.wait_status("running")?;
    is_whole(machine)?;
    Ok(info["error-desc"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_program_that_cannot_take_the_guest_leaves_it_where_it_is() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    let right = machine.command();
    let right: Vec<&str> = right.iter().map(String::as_str).collect();

    let said = fails(&mut machine, &["/bin/true"])?;
    ensure!(said.contains("is it a Baton with cpr-exec?"), "{said}");
    let said = fails(&mut machine, &["/bin/false"])?;
    ensure!(said.contains("exit status 1"), "{said}");
    let said = fails(&mut machine, &[right[0], "-version"])?;
    ensure!(said.contains("run no guest"), "{said}");
    let said = fails(
        &mut machine,
        &[&right, &["-device", "nonesuch"][..]].concat(),
    )?;
    ensure!(said.contains("nonesuch"), "{said}");
    let said = fails(&mut machine, &[&right, &["-m", "64M"][..]].concat())?;
    ensure!(said.contains("64"), "{said}");
    let said = fails(
        &mut machine,
        &[&right, &["-device", "virtio-rng-pci"][..]].concat(),
    )?;
    // Found out while the guest runs, since the old program says which sections it has.
    ensure!(
        said.contains("was tried and cannot take the guest") && said.contains("virtio"),
        "{said}"
    );

    execute_successor(&mut machine)?;
    is_whole(&mut machine)
}
