//! Migration parameters and capabilities: set, reported, refused.

use anyhow::{Context, Result, ensure};
use baton_testkit::machine::Main;
use baton_testkit::transfer::{begin, outcome, set_capability, set_mode, transfer};
use baton_testkit::{Machine, needs_baton, needs_kvm};
use serde_json::{Value, json};

use crate::setup;

fn capabilities(machine: &mut Machine) -> Result<Vec<(String, bool)>> {
    let all = machine.execute("query-migrate-capabilities", &json!({}))?;
    let row = |row: &Value| {
        Some((
            row["capability"].as_str()?.to_owned(),
            row["state"].as_bool()?,
        ))
    };
    all.as_array()
        .and_then(|all| all.iter().map(row).collect())
        .with_context(|| format!("It reports {all}"))
}

#[test]
fn parameters_are_set_all_or_none_and_reported() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.paused().start()?;
    let before = machine.execute("query-migrate-parameters", &json!({}))?;
    ensure!(before["downtime-limit"] == 300 && before["mode"] == "normal");

    let set = json!({ "mode": "cpr-transfer", "downtime-limit": 7, "multifd-channels": 3,
        "max-bandwidth": 1, "direct-io": true, "zero-page-detection": "legacy" });
    machine.execute("migrate-set-parameters", &set)?;
    let after = machine.execute("query-migrate-parameters", &json!({}))?;
    for (name, value) in before.as_object().context("no object")? {
        let expected = set.get(name).unwrap_or(value);
        ensure!(after[name] == *expected, "{name} is {}", after[name]);
    }

    let half = json!({ "downtime-limit": 8, "multifd-channels": 0 });
    machine.refusal("migrate-set-parameters", &half)?;
    let last = machine.execute("query-migrate-parameters", &json!({}))?;
    ensure!(last == after, "Half of it was set: {last}");
    Ok(())
}

#[test]
fn capabilities_are_set_all_or_none_and_reported() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.paused().start()?;
    let on = |all: Vec<(String, bool)>| -> Vec<String> {
        let on = all.into_iter().filter(|(_, on)| *on);
        on.map(|(name, _)| name).collect()
    };
    let all = capabilities(&mut machine)?;
    ensure!(all.len() >= 22, "It reports {all:?}");
    // The test kit's -global.
    ensure!(on(all) == ["events"]);
    set_capability(&mut machine, "x-ignore-shared", true)?;
    ensure!(on(capabilities(&mut machine)?) == ["events", "x-ignore-shared"]);

    let half = json!([{ "capability": "return-path", "state": true },
        { "capability": "postcopy-ram", "state": true }]);
    let reason = machine.refusal("migrate-set-capabilities", &json!({ "capabilities": half }))?;
    ensure!(
        reason == "Postcopy is not compatible with ignore-shared",
        "{reason}"
    );
    ensure!(on(capabilities(&mut machine)?) == ["events", "x-ignore-shared"]);
    set_capability(&mut machine, "x-ignore-shared", false)?;
    ensure!(on(capabilities(&mut machine)?) == ["events"]);
    Ok(())
}

#[test]
fn nothing_is_set_while_a_migration_is_under_way() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    for (command, arguments) in [
        ("migrate-set-parameters", json!({ "mode": "normal" })),
        ("migrate-set-capabilities", json!({ "capabilities": [] })),
    ] {
        let reason = source.refusal(command, &arguments)?;
        ensure!(
            reason == "There's a migration process in progress",
            "{reason}"
        );
    }
    source.execute("migrate_cancel", &json!({}))?;
    outcome(&mut source)?;
    source.execute("migrate-set-parameters", &json!({ "mode": "normal" }))?;
    Ok(())
}

#[test]
fn a_migration_is_told_in_events_only_while_they_are_on() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    set_capability(&mut source, "events", false)?;
    // Refused once the target is looked for, so that it comes to a status and an event of it.
    let channels = json!([
        { "channel-type": "main",
          "addr": { "transport": "socket", "type": "unix", "path": "/nobody" } },
        { "channel-type": "cpr",
          "addr": { "transport": "socket", "type": "unix", "path": "/nobody" } }]);
    set_mode(&mut source)?;
    source.refusal("migrate", &json!({ "channels": channels }))?;
    let status = source.execute("query-migrate", &json!({}))?;
    ensure!(status["status"] == "failed", "{status}");
    set_capability(&mut source, "events", true)?;
    source.refusal("migrate", &json!({ "channels": channels }))?;

    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "failed") {
        seen.push(source.qmp()?.wait_event("MIGRATION")?["status"].clone());
    }
    ensure!(seen == ["setup", "failed"], "{seen:?}");
    // Whatever was sent before these has come before them.
    source.execute("query-status", &json!({}))?;
    ensure!(source.qmp()?.events("MIGRATION") == 0);

    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    Ok(())
}
