//! Mode normal: a guest that is copied while it runs goes on as if nothing had been.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::copied::{begin, copy, parameters};
use baton_testkit::machine::Main;
use baton_testkit::native::expect_text;
use baton_testkit::report::{ENTRY_TSC, TICKS};
use baton_testkit::sockets::free_port;
use baton_testkit::transfer::{outcome, set_capability};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Serial, needs_baton};
use serde_json::json;

use crate::{answers, is_whole, setup};

#[test]
fn a_guest_is_copied_while_it_runs() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.append("pace=0").boot()?;
    let entered = machine.report().get(ENTRY_TSC);
    for _ in 0..3 {
        machine.wait_progress()?;
        let mut target = machine.apart(Main::Unix)?;
        let info = copy(&mut machine, &mut target)?;
        let ram = &info["ram"];
        ensure!(ram["total"] == 128 << 20 && ram["remaining"] == 0, "{info}");
        ensure!(ram["dirty-sync-count"].as_u64() >= Some(2), "{info}");
        ensure!(info["blackout"]["total-us"].is_u64(), "{info}");
        machine.refusal("cont", &json!({}))?;
        machine.quit()?;
        machine = target;
        is_whole(&mut machine)?;
    }
    ensure!(
        machine.report().get(ENTRY_TSC) == entered,
        "The guest has booted again"
    );
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    machine.say("poweroff")?;
    machine.ended_well()
}

#[test]
fn every_byte_of_memory_is_copied_whoever_wrote_it() -> Result<()> {
    needs_baton!();
    // The target has the same command line, so that the guest stands still there.
    let mut source = setup()?.append("pace=0").rngs(2).paused().start()?;
    source.cont()?;
    source.wait_up()?;
    for _ in 0..3 {
        source.wait_progress()?;
        let mut target = source.apart(Main::Unix)?;
        // It reads its disk, so that there are pages that devices alone write.
        source.say("quiesce")?;
        begin(&mut source, &target)?;
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "completed", "{info}");
        target.wait_status("paused")?;
        target.ram().compare(source.ram())?;
        target.cont()?;
        let verdict = target.wait_line("VERIFIED ")?;
        ensure!(verdict.ends_with("bad=0"), "{verdict}");
        target.say("resume")?;
        source = target;
    }
    is_whole(&mut source)
}

#[test]
fn private_memory_is_copied() -> Result<()> {
    needs_baton!();
    for setup in [setup()?.private_memory(), setup()?.implicit_memory()] {
        let mut machine = setup.append("pace=0").boot()?;
        for _ in 0..2 {
            answers(&mut machine)?;
            let mut target = machine.apart(Main::Unix)?;
            copy(&mut machine, &mut target)?;
            machine.quit()?;
            machine = target;
        }
        answers(&mut machine)?;
    }
    Ok(())
}

#[test]
fn two_cpus_and_several_devices_are_copied_over_tcp() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.cpus(2).rngs(3).append("pace=0").boot()?;
    source.wait_progress()?;
    let mut target = source.apart(Main::Tcp(free_port()?))?;
    copy(&mut source, &mut target)?;
    source.quit()?;
    is_whole(&mut target)
}

#[test]
fn a_deferred_target_takes_the_guest() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.serial(Serial::File).boot()?;
    source.wait_progress()?;
    let mut target = source.apart(Main::Deferred)?;
    ensure!(target.status()? == "inmigrate");
    let uri = json!({ "uri": target.main_uri() });
    target.execute("migrate-incoming", &uri)?;
    let reason = target.refusal("migrate-incoming", &uri)?;
    expect_text(&reason, &["already been started"])?;
    copy(&mut source, &mut target)?;
    is_whole(&mut target)?;
    // Its output goes on where it was.
    let said = target.serial()?;
    ensure!(said.matches("BATON-GUEST-UP").count() == 1, "{said}");
    Ok(())
}

#[test]
fn a_paused_guest_stays_paused() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    source.stop()?;
    let ticks = source.report().get(TICKS);
    let mut target = source.apart(Main::Unix)?;
    copy(&mut source, &mut target)?;
    ensure!(target.report().get(TICKS) == ticks, "The guest has run");
    examine(&mut target)?;
    target.cont()?;
    is_whole(&mut target)
}

/// The guest is in the source, does all it did, and can be copied after all.
fn goes_on_and_can_be_retried(mut source: Machine) -> Result<()> {
    source.wait_status("running")?;
    is_whole(&mut source)?;
    parameters(
        &mut source,
        &json!({ "max-bandwidth": 0, "downtime-limit": 300 }),
    )?;
    let mut target = source.apart(Main::Unix)?;
    copy(&mut source, &mut target)?;
    is_whole(&mut target)
}

/// So slow that it does not end by itself.
fn begin_slowly(source: &mut Machine, target: &Machine) -> Result<()> {
    parameters(source, &json!({ "max-bandwidth": 4096 }))?;
    begin(source, target)?;
    wait_for("RAM to be copied", PATIENCE, || {
        let info = source.execute("query-migrate", &json!({}))?;
        let copied = info["ram"]["transferred"].as_u64() > Some(0);
        Ok((info["status"] == "active" && copied).then_some(()))
    })
}

#[test]
fn a_cancelled_migration_ends_the_target_and_not_the_guest() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.apart(Main::Unix)?;
    begin_slowly(&mut source, &target)?;
    is_whole(&mut source)?;
    let mode = json!({ "mode": "cpr-reboot" });
    source.refusal("migrate-set-parameters", &mode)?;
    source.execute("migrate_cancel", &json!({}))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "cancelled", "{info}");
    ensure!(!target.ended()?.success(), "The target ends well");
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_migration_that_is_too_slow_is_let_go_faster() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.apart(Main::Unix)?;
    begin_slowly(&mut source, &target)?;
    parameters(
        &mut source,
        &json!({ "max-bandwidth": 0, "downtime-limit": 500 }),
    )?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("running")?;
    is_whole(&mut target)
}

#[test]
fn a_target_that_dies_while_memory_comes_costs_nothing() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.apart(Main::Unix)?;
    begin_slowly(&mut source, &target)?;
    target.kill()?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "failed", "{info}");
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_target_whose_source_dies_ends_with_a_reason() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.apart(Main::Unix)?;
    begin_slowly(&mut source, &target)?;
    source.kill()?;
    ensure!(!target.ended()?.success(), "The target ends well");
    expect_text(&target.log(), &["The source hung up"])
}

#[test]
fn a_target_that_fails_at_any_step_before_it_ran_the_guest_gives_it_back() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.append("pace=0").boot()?;
    for place in [
        "target-Build",
        "target-ReportReady",
        "target-Receive",
        "target-Load",
        "target-ReportLoaded",
        "target-AwaitCommit",
        "target-Start",
        "normal-start",
    ] {
        for what in ["error", "kill"] {
            // Then the source cannot know whether the guest ran.
            let given = place.ends_with("tart") || place == "target-AwaitCommit";
            if what == "kill" && given {
                continue;
            }
            source.wait_progress()?;
            source.want_fault(place, what)?;
            let mut target = source.apart(Main::Unix)?;
            begin(&mut source, &target)?;
            let info = outcome(&mut source)?;
            ensure!(info["status"] == "failed", "{place} {what}: {info}");
            ensure!(!target.ended()?.success(), "{place}: the target ends well");
            source
                .wait_status("running")
                .with_context(|| format!("{place} {what}: {info}"))?;
            is_whole(&mut source)?;
            // It has its disk's lock, and uses it.
            let devices = source.execute("query-devices", &json!({}))?;
            ensure!(!devices.to_string().contains("reason"), "{devices}");
        }
    }
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_guest_that_was_given_away_is_not_resumed_whatever_happens_to_it() -> Result<()> {
    needs_baton!();
    for place in ["target-Start", "target-ReportStarted"] {
        let mut source = setup()?.boot()?;
        source.wait_progress()?;
        source.want_fault(place, "kill")?;
        let target = source.apart(Main::Unix)?;
        begin(&mut source, &target)?;
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "failed", "{info}");
        expect_text(&info["error-desc"].to_string(), &["not resumed here"])?;
        ensure!(source.status()? == "postmigrate");
        source.refusal("cont", &json!({}))?;
    }
    Ok(())
}

#[test]
fn a_target_with_the_sources_memory_or_another_machine_is_refused() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    // Its RAM is the same file.
    let mut target = source.loading(&format!("unix:{}", source.file("same").display()))?;
    wait_for("the target to listen", PATIENCE, || {
        Ok(source.file("same").exists().then_some(()))
    })?;
    parameters(&mut source, &json!({ "mode": "normal" }))?;
    source.qmp()?.forget_events();
    source.execute(
        "migrate",
        &json!({ "uri": format!("unix:{}", source.file("same").display()) }),
    )?;
    let info = outcome(&mut source)?;
    expect_text(&info["error-desc"].to_string(), &["another mem-path"])?;
    ensure!(!target.ended()?.success(), "The target ends well");
    is_whole(&mut source)?;

    let mut other = setup()?.cpus(2).paused().start()?;
    let mut target = other.apart(Main::Unix)?;
    begin(&mut source, &target)?;
    let info = outcome(&mut source)?;
    expect_text(&info["error-desc"].to_string(), &["-smp 1"])?;
    ensure!(!target.ended()?.success(), "The target ends well");
    other.quit()?;
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_guest_waits_in_the_source_for_the_word_to_go_on() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    set_capability(&mut source, "pause-before-switchover", true)?;
    let mut target = source.apart(Main::Unix)?;
    begin(&mut source, &target)?;
    source
        .qmp()?
        .wait_event_with("MIGRATION", |data| data["status"] == "pre-switchover")?;
    is_whole(&mut source)?;
    let state = json!({ "state": "pre-switchover" });
    source.execute("migrate-continue", &state)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("running")?;
    is_whole(&mut target)
}

#[test]
fn every_round_is_told() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let target = source.apart(Main::Unix)?;
    begin(&mut source, &target)?;
    for pass in 1..=2 {
        let this = |data: &serde_json::Value| data["pass"] == pass;
        source.qmp()?.wait_event_with("MIGRATION_PASS", this)?;
    }
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    Ok(())
}

#[test]
fn a_guest_goes_through_a_file() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.append("pace=0").boot()?;
    for _ in 0..2 {
        machine.wait_progress()?;
        parameters(&mut machine, &json!({ "mode": "normal" }))?;
        machine.qmp()?.forget_events();
        machine.execute("migrate", &json!({ "uri": "file:vm.state" }))?;
        let info = outcome(&mut machine)?;
        ensure!(info["status"] == "completed", "{info}");
        ensure!(machine.status()? == "postmigrate");
        machine.quit()?;
        machine = machine.loading("file:vm.state")?;
        machine.wait_status("running")?;
        is_whole(&mut machine)?;
    }
    Ok(())
}

#[test]
fn what_means_nothing_is_refused() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let nobody = json!({ "uri": "unix:nobody" });
    for (capability, reason) in [
        ("multifd", "one connection"),
        ("x-ignore-shared", "cpr-transfer"),
        ("mapped-ram", "seekable"),
    ] {
        set_capability(&mut source, capability, true)?;
        let found = source.refusal("migrate", &nobody)?;
        expect_text(&found, &[reason])?;
        set_capability(&mut source, capability, false)?;
    }
    let found = source.refusal("migrate", &nobody)?;
    expect_text(&found, &["nobody", "-incoming"])?;
    goes_on_and_can_be_retried(source)
}
