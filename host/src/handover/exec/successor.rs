//! The next program, or the old one again: takes the guest out of what it inherits.

use std::sync::Arc;

use baton_migration::claim::{ClaimWatch, Moment, TargetClaim};
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::settings::Capability;
use baton_migration::stream::{Header, StateImage};
use baton_migration::{HostError, Mode, fault};

use super::super::target::Target;
use crate::blockers::check_only_migratable;
use crate::cli::Options;
use crate::exec::{Guard, Handoff, Inherited, Purpose};
use crate::machine::{Machine, Origin};
use crate::monitor::Kept;
use crate::plugin::Registry;
use crate::vm::Vm;

/// Builds the machine on descriptors whose guest runs in another process, and lets go of it again.
pub fn rehearse(options: &Options, inherited: &Inherited) -> Result<(), HostError> {
    let handoff = inherited.handoff()?;
    check_incoming(options, handoff)?;
    compare(options, &handoff.fingerprint)?;
    let registry = Registry::load(&options.plugins)?;
    let (events, _inbox) = std::sync::mpsc::channel();
    fault::point("rehearsal-build")?;
    let fds = Arc::new(inherited.table()?);
    let machine = Machine::build(
        options,
        &registry,
        Origin::HandedOver(Mode::CprExec, &fds, &handoff.fingerprint),
        &events,
    )?;
    fds.all_claimed()?;
    check_only_migratable(options, Some(&machine))?;
    let header = Header {
        producer: String::new(),
        fingerprint: handoff.fingerprint.clone(),
    };
    machine.would_load(&handoff.outline, &header)
}

/// What `-incoming` says must be where the guest comes from; nothing need be said.
fn check_incoming(options: &Options, handoff: &Handoff) -> Result<(), HostError> {
    let Some(incoming) = &options.incoming else {
        return Ok(());
    };
    if incoming.cpr.is_some() {
        // As in QEMU, whose words these are.
        tracing::warn!("ignoring cpr channel for migration mode cpr-exec");
    }
    let said = match &incoming.main {
        Some(main) => main.to_string(),
        None if incoming.cpr.is_some() => return Ok(()),
        None => "defer".to_owned(),
    };
    match &handoff.uri {
        Some(uri) if *uri == said => Ok(()),
        Some(uri) => Err(format!(
            "-incoming {said}: the old program keeps the guest in {uri}; say -incoming {uri}, or \
             leave it out"
        )
        .into()),
        None => Err(format!(
            "-incoming {said}: the guest comes from the program that this one was executed by; \
             leave it out"
        )
        .into()),
    }
}

fn compare(options: &Options, theirs: &MachineFingerprint) -> Result<(), HostError> {
    let mismatches = Machine::expected_fingerprint(options, theirs)?.compare(theirs);
    if mismatches.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = mismatches.iter().map(ToString::to_string).collect();
    Err(format!("It describes another machine: {}", list.join("; ")).into())
}

/// The inheritance and the way back, until the guest runs.
pub struct Succession {
    inherited: Inherited,
    guard: Option<Guard>,
}

impl Succession {
    /// Prepares the way back first, unless this is it.
    pub fn new(inherited: Inherited) -> Result<Self, HostError> {
        fault(&inherited, "begin")?;
        let guard = match inherited.purpose {
            Purpose::Rollback { .. } | Purpose::Rehearsal => None,
            Purpose::Successor => Some(Guard::arm(&inherited.old, inherited.fd)?),
        };
        Ok(Self { inherited, guard })
    }

    /// Goes back to the old program. Returns only if there is no way back, with all that is known.
    pub fn roll_back(self, reason: &str) -> String {
        match (self.guard, self.inherited.purpose) {
            (Some(guard), _) => format!("{reason}. {}", guard.roll_back(reason)),
            (None, Purpose::Rollback { reason: first }) => {
                format!("{reason}. This is the old program again, since {first}")
            }
            (None, _) => reason.to_owned(),
        }
    }

    /// Takes the guest and lets it run. The guest runs here from a success on; before, everything
    /// can still be inherited again.
    pub fn take(&mut self, vm: &Arc<Vm>) -> Result<Kept, HostError> {
        let inherited = &self.inherited;
        let handoff = inherited.handoff()?;
        let (claim, watch) = TargetClaim::adopt(&inherited.claim()?)?;
        vm.tracker.inherit(handoff.total_ms, handoff.setup_ms);
        if handoff.events {
            vm.set_capabilities(&[(Capability::Events, true)])?;
        }
        let stream = inherited.state()?.ok_or("No state was handed over")?;
        check_incoming(&vm.options, handoff)?;
        compare(&vm.options, &handoff.fingerprint)?;
        fault(&self.inherited, "build")?;
        let fds = Arc::new(inherited.table()?);
        let machine = Machine::build(
            &vm.options,
            &vm.registry,
            Origin::HandedOver(Mode::CprExec, &fds, &handoff.fingerprint),
            &vm.requests,
        )?;
        fds.all_claimed()?;
        let mut target = Target::with(Arc::clone(vm), machine);
        watch.stamp(Moment::Received);
        fault(&self.inherited, "load")?;
        let mut image = StateImage::read(&stream[..])?;
        if image.header().fingerprint != handoff.fingerprint {
            return Err("The state is of another machine than the descriptors".into());
        }
        use baton_migration::handover::TargetHost;
        target.load(&mut image)?;
        watch.stamp(Moment::Loaded);
        let kept = inherited.monitors()?;
        fault(&self.inherited, "start")?;
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
        fault(&self.inherited, "claim")?;
        let _started = target.start(claim)?;
        self.conclude(vm, &watch);
        Ok(kept)
    }

    fn conclude(&self, vm: &Vm, watch: &ClaimWatch) {
        match &self.inherited.purpose {
            Purpose::Rollback { reason } => {
                tracing::warn!("migration failed: {reason}");
                vm.tracker.end_inherited(Err(reason));
            }
            _ => vm.tracker.end_inherited(Ok(watch.blackout())),
        }
    }

    /// The guest runs here: lets go of the rest of the inheritance.
    pub fn release(self) {
        // An error is too late to be one.
        let _ = fault(&self.inherited, "release");
        self.inherited.release();
    }
}

/// `successor-STEP` in the new program; in the old one again `rollback-STEP`, or `rescue-STEP` if
/// its process had ended.
fn fault(inherited: &Inherited, step: &str) -> Result<(), HostError> {
    let held = |handoff: &Handoff| handoff.holder.is_some();
    let who = match inherited.purpose {
        Purpose::Rollback { .. } if inherited.handoff.as_ref().is_ok_and(held) => "rollback",
        Purpose::Rollback { .. } => "rescue",
        _ => "successor",
    };
    fault::point(&format!("{who}-{step}"))
}
