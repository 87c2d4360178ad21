//! cpr-reboot: a guest that is kept and loaded again goes on as if nothing had been.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::kept::{keep, set_mode, try_to_keep};
use baton_testkit::native::expect_text;
use baton_testkit::ram::GuestRam;
use baton_testkit::report::{ENTRY_TSC, TICKS};
use baton_testkit::{Machine, Serial, Setup, Vmm, disk, needs_baton};
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::{answers, is_whole, setup};

/// What is kept of the guest's RAM, checked as that of a guest that stands still.
fn kept_ram_is_whole(machine: &Machine, file: &str, mib: u64) -> Result<()> {
    let path = machine.file(file);
    let state = OpenOptions::new().read(true).open(&path)?;
    let mut offset = [0; 8];
    state.read_exact_at(&mut offset, 32)?;
    let ram = GuestRam::within(&path, u64::from_le_bytes(offset), mib << 20)?;
    ram.check_walk()?;
    let image = machine.disk().context("There is no disk")?;
    let checked = disk::check(ram.report(), &image)?;
    ensure!(checked.blocks > 0, "Nothing was written to the disk");
    Ok(())
}

/// RAM stays in its shared file.
fn ignore_shared(machine: &mut Machine) -> Result<()> {
    let capability = json!([{ "capability": "x-ignore-shared", "state": true }]);
    let arguments = json!({ "capabilities": capability });
    machine
        .execute("migrate-set-capabilities", &arguments)
        .map(drop)
}

fn private() -> Result<Setup> {
    Ok(Setup::new(Vmm::Baton)?.private_memory())
}

fn implicit() -> Result<Setup> {
    Ok(Setup::new(Vmm::Baton)?.implicit_memory())
}

#[test]
fn shared_ram_goes_into_the_file_and_back() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    let entered = machine.report().get(ENTRY_TSC);
    for _ in 0..4 {
        machine.wait_progress()?;
        machine = machine.through("file:vm.state", "file:vm.state")?;
        is_whole(&mut machine)?;
    }
    ensure!(
        machine.report().get(ENTRY_TSC) == entered,
        "The guest has booted again"
    );
    // Memory that was shared still is.
    machine = baton_testkit::transfer::succeed(machine)?.0;
    is_whole(&mut machine)?;
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    machine.say("poweroff")?;
    machine.ended_well()
}

#[test]
fn shared_ram_stays_where_it_is() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.append("pace=0").boot()?;
    for _ in 0..5 {
        machine.wait_progress()?;
        ignore_shared(&mut machine)?;
        machine = machine.through("file:vm.state", "file:vm.state")?;
        let state = std::fs::metadata(machine.file("vm.state"))?;
        ensure!(state.len() < 1 << 20, "{} bytes of state", state.len());
        is_whole(&mut machine)?;
    }
    // A file that nobody finds any more cannot keep the guest.
    std::fs::remove_file(machine.file("ram"))?;
    ignore_shared(&mut machine)?;
    keep(&mut machine, "file:vm.state")?;
    kept_ram_is_whole(&machine, "vm.state", 128)
}

#[test]
fn a_guest_that_has_gone_on_is_not_loaded_again() -> Result<()> {
    needs_baton!();
    for in_place in [true, false] {
        let mut source = setup()?.boot()?;
        source.wait_progress()?;
        if in_place {
            ignore_shared(&mut source)?;
        }
        keep(&mut source, "file:vm.state")?;
        source.quit()?;
        let image = source.disk().context("There is no disk")?;
        let modified = std::fs::metadata(&image)?.modified()?;
        let copy = source.file("disk.copy");
        std::fs::copy(&image, &copy)?;
        let mut first = source.loading("file:vm.state")?;
        first.wait_status("running")?;
        is_whole(&mut first)?;
        first.quit()?;
        let said = match in_place {
            true => "the RAM it was left in has gone on since",
            false => "was written after the guest was kept",
        };
        refused(&source, "file:vm.state", &[said])?;
        // With the disk as it was, RAM that was in the file is that of the same moment.
        std::fs::copy(&copy, &image)?;
        let restored = OpenOptions::new().write(true).open(&image)?;
        restored.set_modified(modified)?;
        if in_place {
            refused(&source, "file:vm.state", &[said])?;
            continue;
        }
        let mut again = source.loading("file:vm.state")?;
        again.wait_status("running")?;
        is_whole(&mut again)?;
    }
    Ok(())
}

#[test]
fn a_guest_whose_load_died_where_it_stayed_is_loaded_again() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    ignore_shared(&mut source)?;
    keep(&mut source, "file:vm.state")?;
    source.quit()?;
    for place in ["restore-build", "restore-load", "restore-start"] {
        for what in ["kill", "error"] {
            source.want_fault(place, what)?;
            ensure!(!source.loading("file:vm.state")?.ended()?.success());
            ensure!(source.faulted(place), "{what} at {place} did not happen");
        }
    }
    // From the mark on it counts as run, unless an operator knows better.
    source.want_fault("restore-taken", "kill")?;
    ensure!(!source.loading("file:vm.state")?.ended()?.success());
    refused(&source, "file:vm.state", &["exec:cat FILE"])?;
    let mut target = source.loading("exec:cat vm.state")?;
    target.wait_status("running")?;
    is_whole(&mut target)
}

#[test]
fn a_guest_whose_ram_is_gone_is_refused() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    ignore_shared(&mut source)?;
    keep(&mut source, "exec:cat > vm.state")?;
    source.quit()?;
    std::fs::rename(source.file("ram"), source.file("elsewhere"))?;
    refused(&source, "file:vm.state", &["which the guest stayed in"])?;
    ensure!(!source.file("ram").exists(), "RAM was made anew");
    std::fs::rename(source.file("elsewhere"), source.file("ram"))?;
    let mut target = source.loading("exec:cat vm.state")?;
    target.wait_status("running")?;
    is_whole(&mut target)
}

#[test]
fn private_ram_is_mapped_from_the_file() -> Result<()> {
    needs_baton!();
    for setup in [private()?, implicit()?] {
        let mut machine = setup.append("pace=0").boot()?;
        answers(&mut machine)?;
        for round in 0..3 {
            machine = machine.through("file:vm.state", "file:vm.state")?;
            answers(&mut machine)?;
            keep(&mut machine, &format!("file:next-{round}"))?;
            kept_ram_is_whole(&machine, &format!("next-{round}"), 128)?;
            machine.quit()?;
            machine = machine.loading(&format!("file:next-{round}"))?;
            machine.wait_status("running")?;
            answers(&mut machine)?;
        }
        // Nobody else can share it now.
        baton_testkit::transfer::set_mode(&mut machine)?;
        let info = machine.execute("query-migrate", &json!({}))?;
        let reasons = info["blocked-reasons"].to_string();
        expect_text(&reasons, &["private mapping", "memory-backend-file"])?;
        set_mode(&mut machine)?;
        let info = machine.execute("query-migrate", &json!({}))?;
        ensure!(info.get("blocked-reasons").is_none(), "{info}");
    }
    Ok(())
}

#[test]
fn a_guest_goes_through_commands() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    for _ in 0..2 {
        machine.wait_progress()?;
        machine = machine.through("exec:cat > vm.state", "exec:cat vm.state")?;
        is_whole(&mut machine)?;
    }
    let mut machine = implicit()?.boot()?;
    for (uri, incoming) in [
        ("exec:gzip -1 > a", "exec:gzip -d < a"),
        ("exec:cat > b", "file:b"),
        ("file:c", "exec:cat c"),
        ("file:d,offset=65536", "file:d,offset=65536"),
    ] {
        machine = machine.through(uri, incoming)?;
        answers(&mut machine)?;
    }
    Ok(())
}

#[test]
fn a_process_that_waits_is_told_where_the_guest_is() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.loading("defer")?;
    target.wait_status("inmigrate")?;
    keep(&mut source, "file:vm.state")?;
    // The source has let go of disk and RAM, so that it may still be there.
    let bad = json!({ "uri": "file:nothing", "exit-on-error": false });
    target.execute("migrate-incoming", &bad)?;
    let info = baton_testkit::transfer::outcome(&mut target)?;
    ensure!(info["status"] == "failed", "{info}");
    expect_text(
        &info["error-desc"].to_string(),
        &["nothing", "No such file"],
    )?;
    ensure!(target.status()? == "inmigrate");

    target.qmp()?.forget_events();
    set_mode(&mut target)?;
    target.execute("migrate-incoming", &json!({ "uri": "file:vm.state" }))?;
    let info = baton_testkit::transfer::outcome(&mut target)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("running")?;
    is_whole(&mut target)?;
    let again = json!({ "uri": "file:vm.state" });
    let reason = target.refusal("migrate-incoming", &again)?;
    expect_text(&reason, &["already been started"])
}

#[test]
fn a_load_can_be_cancelled_and_said_again() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    keep(&mut source, "file:vm.state")?;
    source.quit()?;
    // It never says anything.
    let mut target = source.loading("exec:sleep 1000")?;
    target.wait_status("inmigrate")?;
    target.execute("migrate_cancel", &json!({}))?;
    let info = baton_testkit::transfer::outcome(&mut target)?;
    ensure!(info["status"] == "cancelled", "{info}");
    target.execute("migrate-incoming", &json!({ "uri": "file:vm.state" }))?;
    target.wait_status("running")?;
    is_whole(&mut target)
}

#[test]
fn the_source_says_where_the_guest_is_and_never_runs_it_again() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    keep(&mut source, "file:vm.state")?;
    let ticks = source.report().get(TICKS);
    let reason = source.refusal("cont", &json!({}))?;
    expect_text(&reason, &["file:vm.state", "-incoming"])?;
    let reason = source.refusal("migrate", &json!({ "uri": "file:other" }))?;
    expect_text(&reason, &["file:vm.state", "-incoming"])?;
    source.refusal("system_reset", &json!({}))?;
    ensure!(source.status()? == "postmigrate");
    ensure!(source.report().get(TICKS) == ticks, "The guest has run");
    source.quit()
}

#[test]
fn a_paused_guest_stays_paused() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    machine.stop()?;
    let ticks = machine.report().get(TICKS);
    machine = machine.through("file:vm.state", "file:vm.state")?;
    ensure!(machine.report().get(TICKS) == ticks, "The guest has run");
    examine(&mut machine)?;
    machine.cont()?;
    is_whole(&mut machine)
}

#[test]
fn output_to_a_file_goes_on_in_that_file() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.serial(Serial::File).boot()?;
    machine.wait_progress()?;
    machine = machine.through("file:vm.state", "file:vm.state")?;
    machine.wait_progress()?;
    let said = machine.serial()?;
    ensure!(said.matches("BATON-GUEST-UP").count() == 1, "{said}");
    Ok(())
}

#[test]
fn a_save_that_fails_leaves_the_guest_running() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    set_mode(&mut machine)?;
    for (uri, reason) in [
        ("file:no/vm.state", "No such file or directory"),
        ("file:/dev/full", "character device"),
        ("tcp:127.0.0.1:4", "use file:PATH"),
        ("unix:sock", "use file:PATH"),
        ("fd:9999", "9999"),
        ("exec:", "command is missing"),
    ] {
        let found = machine.refusal("migrate", &json!({ "uri": uri }))?;
        expect_text(&found, &[reason])?;
        ensure!(machine.status()? == "running");
    }
    for (uri, reason) in [
        ("exec:cat > /dev/full", "exit status: 1"),
        ("exec:exit 7", "exit status: 7"),
        ("exec:cat > kept; exit 3", "exit status: 3"),
    ] {
        let info = try_to_keep(&mut machine, uri)?;
        ensure!(info["status"] == "failed", "{info}");
        expect_text(&info["error-desc"].to_string(), &[reason])?;
        machine.wait_status("running")?;
        is_whole(&mut machine)?;
    }
    // The process's own limit, in the midst of RAM.
    let limit = std::process::Command::new("prlimit")
        .args([&format!("--pid={}", machine.pid()), "--fsize=5000000:"])
        .status()?;
    ensure!(limit.success(), "prlimit: {limit}");
    let info = try_to_keep(&mut machine, "file:vm.state")?;
    ensure!(info["status"] == "failed", "{info}");
    expect_text(&info["error-desc"].to_string(), &["File too large"])?;
    machine.wait_status("running")?;
    is_whole(&mut machine)?;
    ensure!(!machine.file("vm.state").exists(), "A file is left");
    ensure!(
        !machine.file("vm.state.baton-unfinished").exists(),
        "A file is left"
    );

    // And the next try succeeds.
    let unlimited = format!("--pid={}", machine.pid());
    let limit = std::process::Command::new("prlimit")
        .args([&unlimited, "--fsize=unlimited:"])
        .status()?;
    ensure!(limit.success(), "prlimit: {limit}");
    machine = machine.through("file:vm.state", "file:vm.state")?;
    is_whole(&mut machine)
}

#[test]
fn a_cancelled_save_leaves_the_guest_running() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    set_mode(&mut machine)?;
    machine.qmp()?.forget_events();
    // It never reads anything.
    machine.execute("migrate", &json!({ "uri": "exec:sleep 1000" }))?;
    machine.wait_status("finish-migrate")?;
    // What is being saved stays as it is.
    machine.refusal("system_reset", &json!({}))?;
    machine.refusal("cont", &json!({}))?;
    machine.execute("migrate_cancel", &json!({}))?;
    let info = baton_testkit::transfer::outcome(&mut machine)?;
    ensure!(info["status"] == "cancelled", "{info}");
    machine.wait_status("running")?;
    is_whole(&mut machine)?;
    machine = machine.through("file:vm.state", "file:vm.state")?;
    is_whole(&mut machine)
}

#[test]
fn a_damaged_file_is_refused_in_one_line() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    keep(&mut source, "file:vm.state")?;
    source.quit()?;
    let path = source.file("vm.state");
    let state = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = state.metadata()?.len();
    for at in [3, 30, 4100, 5000] {
        let mut byte = [0];
        state.read_exact_at(&mut byte, at)?;
        state.write_all_at(&[!byte[0]], at)?;
        refused(&source, "file:vm.state", &["vm.state"])?;
        state.write_all_at(&byte, at)?;
    }
    state.set_len(length - 1)?;
    refused(&source, "file:vm.state", &["cut short"])?;
    state.set_len(100)?;
    refused(&source, "file:vm.state", &["too short"])?;
    refused(&source, "file:missing", &["No such file or directory"])?;
    refused(&source, "exec:false", &["exec:"])?;
    refused(&source, "tcp:0:none", &["none"])
}

/// A process that is to load `incoming` ends with one line that says these things.
fn refused(source: &Machine, incoming: &str, parts: &[&str]) -> Result<()> {
    let mut target = source.loading(incoming)?;
    let status = target.ended()?;
    ensure!(status.code() == Some(1), "{incoming}: {status}");
    let log = target.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("baton:"))
        .collect();
    ensure!(lines.len() == 1, "{log}");
    expect_text(lines[0], parts)
}

#[test]
fn another_machine_does_not_take_the_guest() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    keep(&mut source, "file:vm.state")?;
    let other = setup()?.cpus(2).paused().start()?;
    let path = source.file("vm.state");
    refused(&other, &format!("file:{}", path.display()), &["-smp 1"])
}

#[test]
fn cpr_save_and_cpr_load_are_the_older_names() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let nowhere = json!({ "filename": "no/file", "mode": "reboot" });
    source.refusal("cpr-save", &nowhere)?;
    source.refusal("cpr-save", &json!({ "filename": "a", "mode": "none" }))?;
    ensure!(source.status()? == "running");
    let file = json!({ "filename": "vm.state", "mode": "reboot" });
    source.refusal("cpr-load", &file)?;
    source.execute("cpr-save", &file)?;
    ensure!(source.status()? == "postmigrate");
    source.quit()?;
    let mut target = source.loading("defer")?;
    target.refusal("cpr-load", &nowhere)?;
    ensure!(target.status()? == "inmigrate");
    target.execute("cpr-load", &file)?;
    ensure!(target.status()? == "running");
    is_whole(&mut target)
}

#[test]
fn cpr_load_takes_the_place_of_a_machine_that_was_never_started() -> Result<()> {
    needs_baton!();
    // "start qemu using the same arguments plus -S, and issue the cpr-load command"
    let mut source = setup()?.paused().start()?;
    let file = json!({ "filename": "vm.state", "mode": "reboot" });
    for stays in [true, false] {
        source.cont()?;
        source.wait_progress()?;
        if stays {
            ignore_shared(&mut source)?;
        }
        source.execute("cpr-save", &file)?;
        source.quit()?;
        let mut target = source.fresh()?;
        ensure!(target.status()? == "prelaunch");
        let nothing = json!({ "filename": "nothing", "mode": "reboot" });
        target.refusal("cpr-load", &nothing)?;
        ensure!(target.status()? == "prelaunch");
        target.execute("cpr-load", &file)?;
        ensure!(target.status()? == "running");
        is_whole(&mut target)?;
        source = target;
    }
    // A reset boots it anew.
    source.execute("system_reset", &json!({}))?;
    source.wait_up()?;
    is_whole(&mut source)
}

#[test]
fn the_documents_example() -> Result<()> {
    needs_baton!();
    // Memory in /dev/shm, as /dev/dax would be.
    let ram = format!("/dev/shm/baton-native-{}", std::process::id());
    let backend = format!("memory-backend-file,id=ram0,size=128M,mem-path={ram},align=2M,share=on");
    let setup = implicit()?.extra(["-object", &backend, "-machine", "memory-backend=ram0"]);
    let result = documents_example(setup);
    std::fs::remove_file(ram)?;
    result
}

fn documents_example(setup: Setup) -> Result<()> {
    let mut outgoing = setup.boot()?;
    answers(&mut outgoing)?;
    ensure!(outgoing.status()? == "running");
    set_mode(&mut outgoing)?;
    ignore_shared(&mut outgoing)?;
    let file = json!({ "uri": "file:vm.state", "detach": true });
    outgoing.execute("migrate", &file)?;
    outgoing.wait_status("postmigrate")?;
    outgoing.quit()?;

    let mut incoming = outgoing.loading("defer")?;
    ensure!(incoming.status()? == "inmigrate");
    set_mode(&mut incoming)?;
    ignore_shared(&mut incoming)?;
    incoming.execute("migrate-incoming", &json!({ "uri": "file:vm.state" }))?;
    incoming.wait_status("running")?;
    answers(&mut incoming)
}

#[test]
fn a_process_that_is_killed_leaves_nothing_that_looks_whole() -> Result<()> {
    needs_baton!();
    for place in ["stop", "save", "write", "finish"] {
        let mut source = setup()?.boot()?;
        source.want_fault(&format!("checkpoint-{place}"), "kill")?;
        set_mode(&mut source)?;
        let uri = json!({ "uri": "file:vm.state" });
        // The answer may come too late.
        source.execute("migrate", &uri).ok();
        source.ended()?;
        ensure!(!source.file("vm.state").exists(), "{place}: it looks whole");
        refused_by(&source, "file:vm.state.baton-unfinished", place)?;
    }
    // Killed when it was kept, it has left the guest.
    let mut source = setup()?.boot()?;
    source.want_fault("checkpoint-kept", "kill")?;
    source.wait_progress()?;
    set_mode(&mut source)?;
    source
        .execute("migrate", &json!({ "uri": "file:vm.state" }))
        .ok();
    source.ended()?;
    let mut target = source.loading("file:vm.state")?;
    target.wait_status("running")?;
    is_whole(&mut target)
}

fn refused_by(source: &Machine, incoming: &str, place: &str) -> Result<()> {
    let mut target = source.loading(incoming)?;
    let status = target.ended()?;
    ensure!(status.code() == Some(1), "{place}: {status}");
    Ok(())
}

#[test]
fn the_guest_goes_on_after_a_mistake_at_any_step() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    for place in ["prepare", "stop", "save", "write", "finish"] {
        for what in ["error", "panic"] {
            let fault = format!("checkpoint-{place}");
            source.want_fault(&fault, what)?;
            source.wait_progress()?;
            let info = try_to_keep(&mut source, "file:vm.state")?;
            ensure!(info["status"] == "failed", "{fault} {what}: {info}");
            source.wait_status("running")?;
            is_whole(&mut source)?;
            ensure!(!source.file("vm.state").exists());
            // A live update still succeeds.
            source = baton_testkit::transfer::succeed(source)?.0;
            is_whole(&mut source)?;
        }
    }
    Ok(())
}

#[test]
fn a_load_that_fails_or_dies_at_any_step_leaves_what_was_kept() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    keep(&mut source, "file:vm.state")?;
    source.quit()?;
    for place in ["restore-build", "restore-load", "restore-start"] {
        for what in ["kill", "abort", "panic", "error"] {
            source.want_fault(place, what)?;
            let mut target = source.loading("file:vm.state")?;
            let status = target.ended()?;
            ensure!(!status.success(), "{what} at {place}: {status}");
            ensure!(source.faulted(place), "{what} at {place} did not happen");
            if matches!(what, "panic" | "error") {
                ensure!(status.code() == Some(1), "{what} at {place}: {status}");
            }
        }
    }
    let mut target = source.loading("file:vm.state")?;
    target.wait_status("running")?;
    is_whole(&mut target)
}
