//! Machines that cannot be migrated as `-only-migratable` wants.

use anyhow::Result;
use baton_testkit::fixtures::fixture;
use baton_testkit::refusal::refusal;
use baton_testkit::{needs_kvm, scratch::Scratch};

use crate::machine;

/// The line of a Baton with these arguments must be this one.
fn expect(arguments: &[&str], line: &str) -> Result<()> {
    let said = refusal(machine()?.args(arguments))?.line()?;
    anyhow::ensure!(said == line, "{arguments:?}: {said}");
    Ok(())
}

const PRIVATE: &str = "disallowing migration blocker (--only-migratable) for: Memory region \
    baton.ram is not compatible with CPR. share=on is required for memory-backend objects, and \
    aux-ram-share=on is required. (it blocks cpr-transfer; Start the guest with shared memory: \
    without -machine aux-ram-share=off)";

#[test]
fn memory_that_is_not_shared() -> Result<()> {
    needs_kvm!();
    let private = ["-machine", "aux-ram-share=off", "-only-migratable"];
    let line = format!("-only-migratable: {PRIVATE}");
    expect(
        &[&private[..], &["cpr-transfer,cpr-reboot"]].concat(),
        &line,
    )?;
    // A target is not even waited for.
    let scratch = Scratch::new()?;
    let cpr = format!(
        "cpr,addr.transport=socket,addr.type=unix,addr.path={}",
        scratch.join("cpr").display()
    );
    let target = ["cpr-transfer", "-incoming", "defer", "-incoming", &cpr];
    expect(&[&private[..], &target].concat(), &line)
}

#[test]
fn a_device_and_memory_at_once() -> Result<()> {
    needs_kvm!();
    let plugin = fixture("blocks")?.display().to_string();
    let device = ["-plugin", &plugin, "-device", "fixture-blocks,id=b0"];
    expect(
        &[&device[..], &["-only-migratable"]].concat(),
        "-only-migratable: Device b0 is not migratable, but --only-migratable was specified: It \
         is told to stay (it blocks normal; Say transfer=on and normal=on)",
    )?;
    let both = ["-machine", "memfd-alloc=off"];
    let modes = [
        "-only-migratable",
        "cpr-exec",
        "-only-migratable",
        "normal,cpr-transfer",
    ];
    let memory = PRIVATE.replace("blocks cpr-transfer", "blocks cpr-transfer, cpr-exec");
    let line = format!(
        "-only-migratable: Device b0 is not migratable, but --only-migratable was specified: It is \
         told to stay (it blocks normal, cpr-transfer; Say transfer=on and normal=on); {memory}; \
         Device b0 is not migratable, but --only-migratable was specified: It outlives no program \
         (it blocks cpr-exec; Use cpr-transfer instead)"
    );
    expect(&[&device[..], &both, &modes].concat(), &line)
}

#[test]
fn a_mode_that_there_is_not() -> Result<()> {
    expect(
        &["-only-migratable", "cpr-transfer,cpr"],
        "-only-migratable cpr-transfer,cpr: Parameter 'mode' does not accept value 'cpr'",
    )
}
