//! Handovers that do not come about: the guest goes on where it was, and the next try succeeds.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::machine::Main;
use baton_testkit::native::expect_text;
use baton_testkit::transfer::{begin, outcome, set_mode};
use baton_testkit::{Machine, Setup, Vmm, needs_baton, needs_kvm, transfer};
use serde_json::json;

use crate::setup;

/// The guest runs in `source`, is whole, and can be handed over.
pub(crate) fn goes_on_and_can_be_retried(mut source: Machine) -> Result<()> {
    source.wait_status("running")?;
    source.wait_progress()?;
    examine(&mut source)?;
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    target.wait_progress()?;
    examine(&mut target).map(drop)
}

#[test]
fn nobody_on_the_cpr_channel_is_a_refusal() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor()?;
    target.kill()?;
    set_mode(&mut source)?;
    source.refusal("migrate", &json!({ "channels": target.channels() }))?;
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_second_handover_beside_the_first_is_refused() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    let mut first = source.successor_on(Main::Deferred)?;
    begin(&mut source, &first)?;
    first.wait_status("inmigrate")?;
    // The first one lasts until it is told where its main channel is.
    let second = source.successor()?;
    let reason = source.refusal("migrate", &json!({ "channels": second.channels() }))?;
    expect_text(&reason, &["There's a migration process in progress"])?;
    source.wait_progress()?;

    let uri = first.main_uri();
    first.execute("migrate-incoming", &json!({ "uri": uri }))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    first.wait_status("running")?;
    first.wait_progress()
}

#[test]
fn a_cancelled_handover_leaves_the_guest_running() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    source.execute("migrate_cancel", &json!({}))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "cancelled", "{info}");
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_mode_that_was_not_set_is_a_refusal() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let target = source.successor()?;
    let reason = source.refusal("migrate", &json!({ "channels": target.channels() }))?;
    expect_text(&reason, &["migrate-set-parameters", "cpr-transfer"])?;
    drop(target);
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_target_with_another_machine_is_refused_and_ends() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    // A machine of its own, in another folder, that waits for just any guest.
    let other = setup()?.cpus(2).boot()?;
    let mut target = other.successor()?;
    set_mode(&mut source)?;
    // Depending on when the target's refusal comes, the command or the migration fails.
    if source
        .execute("migrate", &json!({ "channels": target.channels() }))
        .is_ok()
    {
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "failed", "{info}");
    }
    ensure!(
        !target.ended()?.success(),
        "The target says that all is well"
    );
    goes_on_and_can_be_retried(source)
}

#[test]
fn memory_that_is_not_shared_is_a_blocker_with_a_remedy() -> Result<()> {
    needs_baton!();
    // The last -object of a name would be refused, so this machine is described from scratch.
    let mut machine = private_memory()?.start()?;
    set_mode(&mut machine)?;
    let info = machine.execute("query-migrate", &json!({}))?;
    expect_text(
        &info["blocked-reasons"].to_string(),
        &["share=on is required"],
    )?;
    let target = machine.successor()?;
    let reason = machine.refusal("migrate", &json!({ "channels": target.channels() }))?;
    expect_text(&reason, &["share=on is required"])
}

fn private_memory() -> Result<Setup> {
    Ok(Setup::new(Vmm::Baton)?.private_memory())
}
