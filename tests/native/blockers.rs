//! What keeps a guest from being migrated is told before anything is tried.

use anyhow::{Result, ensure};
use baton_testkit::fixtures::fixture;
use baton_testkit::transfer::{set_mode, transfer};
use baton_testkit::{Machine, Setup, needs_baton};
use serde_json::{Value, json};

use crate::setup;

/// A machine with a device that blocks.
fn with_device(device: &str) -> Result<Setup> {
    let plugin = fixture("blocks")?.display().to_string();
    Ok(setup()?.extra(["-plugin", &plugin, "-device", device]))
}

fn migratable(machine: &mut Machine, arguments: &Value) -> Result<Value> {
    machine.execute("query-migratable", arguments)
}

/// The row of a mode that nothing blocks.
fn free(mode: &str) -> Value {
    json!({ "mode": mode, "migratable": true, "blockers": [] })
}

#[test]
fn every_mode_has_its_blockers_with_owner_reason_and_remedy() -> Result<()> {
    needs_baton!();
    let mut machine = with_device("fixture-blocks,id=b0")?.paused().start()?;
    let dynamic = json!({ "id": "dynamic", "owner": "b0", "reason": "It is told to stay",
        "remedy": "Say transfer=on and normal=on." });
    let fixed = json!({ "id": "static", "owner": "b0", "reason": "It outlives no program",
        "remedy": "Use cpr-transfer instead" });
    let blocked = |mode, by: &Value| json!({ "mode": mode, "migratable": false, "blockers": [by] });
    let all = migratable(&mut machine, &json!({}))?;
    let expected = json!([
        blocked("normal", &dynamic),
        free("cpr-reboot"),
        blocked("cpr-transfer", &dynamic),
        blocked("cpr-exec", &fixed),
    ]);
    ensure!(all == expected, "{all}");
    let one = migratable(&mut machine, &json!({ "mode": "cpr-exec" }))?;
    ensure!(one == json!([blocked("cpr-exec", &fixed)]), "{one}");
    let reason = machine.refusal("query-migratable", &json!({ "mode": "x" }))?;
    ensure!(
        reason == "Parameter 'mode' does not accept value 'x'",
        "{reason}"
    );

    // And so says the other command, for the mode that is set.
    set_mode(&mut machine)?;
    let info = machine.execute("query-migrate", &json!({}))?;
    let told = "device 'b0': It is told to stay (Say transfer=on and normal=on)";
    ensure!(info == json!({ "blocked-reasons": [told] }), "{info}");
    let reason = machine.refusal("migrate", &json!({ "channels": machine.channels() }))?;
    ensure!(reason == told, "{reason}");
    Ok(())
}

#[test]
fn what_is_not_blocked_is_migrated() -> Result<()> {
    needs_baton!();
    let device = "fixture-blocks,id=b0,transfer=on";
    let mut source = with_device(device)?
        .extra(["-only-migratable", "cpr-transfer,cpr-reboot"])
        .boot()?;
    let one = migratable(&mut source, &json!({ "mode": "cpr-transfer" }))?;
    ensure!(one == json!([free("cpr-transfer")]), "{one}");
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    // Nothing is left here that could be.
    let reason = source.refusal("query-migratable", &json!({}))?;
    ensure!(
        reason == "There is no machine in this process to migrate",
        "{reason}"
    );
    let one = migratable(&mut target, &json!({ "mode": "cpr-transfer" }))?;
    ensure!(one == json!([free("cpr-transfer")]), "{one}");
    Ok(())
}

#[test]
fn private_memory_is_the_machines_own_blocker() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.private_memory().paused().start()?;
    let all = migratable(&mut machine, &json!({}))?;
    for (row, mode, free) in [
        (&all[0], "normal", true),
        (&all[1], "cpr-reboot", true),
        (&all[2], "cpr-transfer", false),
        (&all[3], "cpr-exec", false),
    ] {
        ensure!(row["mode"] == mode && row["migratable"] == free, "{row}");
    }
    let blocker = &all[2]["blockers"][0];
    ensure!(
        blocker["owner"] == "" && blocker["id"] == "memory-not-shared",
        "{blocker}"
    );
    Ok(())
}
