//! A monitor's place in a cpr-transfer: whoever connects there reaches the process that has the guest.

use anyhow::{Context, Result, ensure};
use baton_testkit::qmp::Qmp;
use baton_testkit::transfer::{begin, outcome, succeed};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton, transfer};
use serde_json::json;
use std::path::Path;

use crate::{is_whole, setup};

/// All processes of the guest are told to listen here.
const SHARED: &str = "shared.sock";

fn boot(wait: &str) -> Result<Machine> {
    let address = format!("unix:{SHARED},server=on,wait={wait}");
    let mut machine = setup()?.extra(["-qmp", &address]).start()?;
    if wait == "on" {
        // The guest starts when somebody has connected.
        let path = machine.file(SHARED);
        wait_for("the monitor", PATIENCE, || Ok(Qmp::connect(&path).ok()))?;
    }
    machine.wait_up()?;
    machine.wait_progress()?;
    Ok(machine)
}

fn status_at(path: &Path) -> Result<String> {
    let answer = Qmp::connect(path)?.execute("query-status", &json!({}))?;
    Ok(answer["status"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn the_same_place_leads_to_the_successor_and_clients_stay_where_they_are() -> Result<()> {
    needs_baton!();
    let mut source = boot("off")?;
    let path = source.file(SHARED);
    let mut client = Qmp::connect(&path)?;
    for _ in 0..3 {
        let mut target = source.successor()?;
        transfer(&mut source, &mut target)?;
        ensure!(status_at(&path)? == "running", "It leads nowhere");
        let stays = client.execute("query-status", &json!({}))?;
        ensure!(stays["status"] == "postmigrate", "{stays}");
        client = Qmp::connect(&path)?;
        source.quit()?;
        ensure!(status_at(&path)? == "running", "The source took it along");
        source = target;
    }
    is_whole(&mut source)?;
    source.quit()?;
    ensure!(!path.exists(), "The last one left its socket");
    Ok(())
}

#[test]
fn nobody_waits_for_a_client_of_an_inherited_monitor() -> Result<()> {
    needs_baton!();
    let machine = boot("on")?;
    let (mut machine, _) = succeed(machine)?;
    is_whole(&mut machine)
}

#[test]
fn a_handover_that_fails_leaves_the_place_to_the_source() -> Result<()> {
    needs_baton!();
    let mut source = boot("off")?;
    let path = source.file(SHARED);
    for place in ["target-Prepare", "target-Load", "target-Start"] {
        let mut target = source.successor()?;
        target.want_fault(place, "error")?;
        begin(&mut source, &target)?;
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "failed", "{info}");
        target.ended()?;
        let status = status_at(&path).with_context(|| format!("After a failure at {place}"))?;
        ensure!(status == "running", "{place}: {status}");
    }
    is_whole(&mut source)
}
