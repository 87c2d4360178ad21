//! Subsections beside a running guest.

use anyhow::{Result, ensure};
use baton_migration::stream::StateImage;
use baton_testkit::fixtures::fixture;
use baton_testkit::transfer::succeed;
use baton_testkit::{Setup, Vmm, needs_kvm};

use crate::capture::captured;

#[test]
fn a_subsection_crosses_when_it_is_needed_and_is_left_out_when_it_is_not() -> Result<()> {
    needs_kvm!();
    let plugin = fixture("probe")?.display().to_string();
    for (more, payload) in [(0, None), (7, Some(vec![7]))] {
        let device = format!("fixture-probe,id=p0,more={more}");
        let setup = Setup::new(Vmm::Baton)?.extra(["-plugin", &plugin, "-device", &device]);
        // A restored device knows of it from the state alone, so that the second handover shows what
        // the first one has brought.
        let second = succeed(setup.boot()?)?.0;
        let mut image = StateImage::read(&captured(second)?[..])?;
        image.take("p0/probe", 0)?;
        let found = image.take_if_present("p0/probe/more", 0);
        let found = found.map(|section| section.payload);
        ensure!(found == payload, "{found:?}");
    }
    Ok(())
}
