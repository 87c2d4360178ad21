//! What commands around migrations say when they refuse, word by word: management software knows
//! QEMU's texts.

use anyhow::{Result, ensure};
use baton_testkit::machine::Main;
use baton_testkit::transfer::{begin, outcome, set_capability, transfer};
use baton_testkit::{Machine, Vmm, needs_baton, needs_kvm};
use serde_json::{Value, json};

use crate::setup;

/// Each command with its arguments must be refused with its text; `migrate` in mode cpr-transfer.
fn refuses(machine: &mut Machine, table: &[(&str, Value, &str)]) -> Result<()> {
    for (command, arguments, text) in table {
        let reason = machine.refusal(command, arguments)?;
        ensure!(reason == *text, "{command} {arguments}: {reason}");
    }
    Ok(())
}

fn unix(path: &str) -> Value {
    json!({ "transport": "socket", "type": "unix", "path": path })
}

fn tcp(port: &str) -> Value {
    json!({ "transport": "socket", "type": "inet", "host": "localhost", "port": port })
}

fn file() -> Value {
    json!({ "transport": "file", "filename": "/dev/null", "offset": 0 })
}

fn channel(kind: &str, addr: &Value) -> Value {
    json!({ "channel-type": kind, "addr": addr })
}

/// The arguments of `migrate` with these two channels.
fn channels(main: &Value, cpr: &Value) -> Value {
    json!({ "channels": [channel("main", main), channel("cpr", cpr)] })
}

fn mode(machine: &mut Machine, mode: &str) -> Result<()> {
    machine
        .execute("migrate-set-parameters", &json!({ "mode": mode }))
        .map(drop)
}

#[test]
fn of_channels_that_make_no_sense() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.paused().start()?;
    mode(&mut machine, "cpr-transfer")?;
    let main = channel("main", &unix("a"));
    let table = [
        (
            "migrate",
            json!({}),
            "need either 'uri' or 'channels' argument",
        ),
        (
            "migrate",
            json!({ "uri": "foo:bar" }),
            "unknown migration protocol: foo:bar",
        ),
        (
            "migrate",
            json!({ "uri": "unix:a" }),
            "missing 'cpr' migration channel",
        ),
        (
            "migrate",
            json!({ "uri": "file:a" }),
            "Migration requires streamable transport (eg unix)",
        ),
        (
            "migrate",
            json!({ "channels": [main, main] }),
            "Channel list has more than one main entry",
        ),
        (
            "migrate",
            channels(&file(), &unix("a")),
            "Migration requires streamable transport (eg unix)",
        ),
        (
            "migrate",
            channels(&unix("a"), &file()),
            "bad cpr channel address; must be unix",
        ),
        (
            "migrate",
            channels(&unix("a"), &tcp("1")),
            "bad cpr channel address; must be unix",
        ),
        (
            "migrate-incoming",
            json!({ "uri": "unix:a" }),
            "'-incoming' was not specified on the command line",
        ),
    ];
    refuses(&mut machine, &table)?;
    if Vmm::under_test()? == Vmm::Baton {
        let own = [
            (
                "migrate",
                json!({ "channels": [channel("cpr", &unix("a"))] }),
                "Channel list has no main entry",
            ),
            (
                "migrate",
                json!({ "uri": "unix:a", "channels": [main] }),
                "need either 'uri' or 'channels' argument",
            ),
            (
                "migrate",
                channels(&tcp("0"), &unix("a")),
                "tcp port 0 cannot be used for the main channel of cpr-transfer; choose a port",
            ),
        ];
        refuses(&mut machine, &own)?;
        // None of them has begun anything.
        ensure!(machine.execute("query-migrate", &json!({}))? == json!({}));
    }
    machine.execute("cont", &json!({}))?;
    machine.wait_status("running")
}

#[test]
fn of_settings_that_do_not_fit() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.paused().start()?;
    mode(&mut machine, "cpr-transfer")?;
    let exec = json!({ "transport": "exec", "args": ["cat"] });
    for (capability, arguments, text) in [
        (
            "mapped-ram",
            channels(&unix("a"), &unix("a")),
            "Migration requires seekable transport (e.g. file)",
        ),
        (
            "multifd",
            channels(&exec, &unix("a")),
            "Migration requires multi-channel URIs (e.g. tcp)",
        ),
        (
            "postcopy-ram",
            channels(&unix("a"), &unix("a")),
            "Cannot use postcopy with CPR",
        ),
        (
            "background-snapshot",
            channels(&unix("a"), &unix("a")),
            "Cannot use background snapshot with CPR",
        ),
        (
            "x-colo",
            channels(&unix("a"), &unix("a")),
            "Cannot use COLO with CPR",
        ),
    ] {
        set_capability(&mut machine, capability, true)?;
        refuses(&mut machine, &[("migrate", arguments, text)])?;
        set_capability(&mut machine, capability, false)?;
    }
    Ok(())
}

#[test]
fn of_a_process_that_waits_for_a_guest() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    let main = channel("main", &unix("a"));
    let cpr = channel("cpr", &unix("a"));
    let table = [
        (
            "migrate",
            channels(&unix("a"), &unix("a")),
            "Guest is waiting for an incoming migration",
        ),
        (
            "migrate-incoming",
            json!({}),
            "need either 'uri' or 'channels' argument",
        ),
        (
            "migrate-incoming",
            json!({ "channels": [main, cpr] }),
            "Channel list must have only one entry, for type 'main'",
        ),
        (
            "migrate-incoming",
            json!({ "uri": "foo:a" }),
            "unknown migration protocol: foo:a",
        ),
    ];
    refuses(&mut target, &table)?;
    // Asked for meanwhile, a second migration is refused on the other side.
    let again = json!({ "channels": target.channels() });
    let busy = "There's a migration process in progress";
    refuses(&mut source, &[("migrate", again, busy)])?;

    let main = json!({ "uri": target.main_uri() });
    target.execute("migrate-incoming", &main)?;
    let started = "The incoming migration has already been started";
    refuses(&mut target, &[("migrate-incoming", main, started)])?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("running")
}

#[test]
fn of_a_process_that_the_guest_has_left() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    let arguments = json!({ "channels": target.channels() });
    let table = [
        (
            "migrate",
            arguments,
            "Can't migrate the vm that was paused due to previous migration",
        ),
        (
            "cont",
            json!({}),
            "The guest runs in the process it was migrated to; letting it run here too would \
             destroy it. Quit this one",
        ),
    ];
    refuses(&mut source, &table)?;
    // Neither is an error, as in QEMU.
    source.execute("stop", &json!({}))?;
    source.execute("migrate_cancel", &json!({}))?;
    ensure!(source.status()? == "postmigrate");
    Ok(())
}
