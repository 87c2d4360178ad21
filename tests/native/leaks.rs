//! A guest may be handed over for years: no generation may have more than the one before.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::transfer::succeed;
use baton_testkit::{needs_kvm, process};

use crate::setup;

#[test]
fn twenty_generations_open_no_more_descriptors_than_two() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    let mut counts = Vec::new();
    for _ in 0..20 {
        machine.wait_progress()?;
        machine = succeed(machine)?.0;
        machine.wait_progress()?;
        counts.push(process::descriptors(machine.pid())?);
    }
    let numbers: Vec<_> = counts.iter().map(Vec::len).collect();
    ensure!(
        counts[1].len() == counts[19].len(),
        "Open descriptors by generation: {numbers:?}; in the last one: {:?}",
        counts[19]
    );
    examine(&mut machine).map(drop)
}
