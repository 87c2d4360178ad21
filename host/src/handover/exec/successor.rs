//! The next program, or the old one again: takes the guest out of what it inherits.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use baton_migration::claim::{ClaimWatch, Moment, TargetClaim};
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::settings::Capability;
use baton_migration::stream::{Header, StateImage};
use baton_migration::{HostError, Mode, error_chain, fault};

use super::super::target::Target;
use super::deferred;
use crate::blockers::check_only_migratable;
use crate::chardev::Chardevs;
use crate::cli::{Options, children};
use crate::control::serve_monitors;
use crate::exec::{Guard, Handoff, Inherited, Purpose};
use crate::machine::events::MachineEvent;
use crate::machine::{Machine, Origin, Wanted};
use crate::monitor::Kept;
use crate::plugin::Registry;
use crate::vm::{Deferred, Vm};

/// Builds the machine on descriptors whose guest runs in another process, and lets go of it again.
pub fn rehearse(options: &Options, inherited: &Inherited) -> Result<(), HostError> {
    let handoff = inherited.handoff()?;
    check_incoming(options, handoff)?;
    compare(options, &handoff.fingerprint)?;
    let registry = Registry::load(&options.plugins)?;
    let (events, _inbox) = std::sync::mpsc::channel();
    fault::point("rehearsal-build")?;
    let fds = Arc::new(inherited.table()?);
    let chardevs = Arc::new(Chardevs::new()?);
    chardevs.open(&options.chardevs, Some(&fds), true)?;
    let devices = children::seat(&options.devices, &registry)?;
    let wanted = Wanted {
        devices: &devices,
        ..Wanted::of(options)
    };
    let machine = Machine::build(
        options,
        wanted,
        &registry,
        Origin::HandedOver(Mode::CprExec, &fds, &handoff.fingerprint),
        &chardevs,
        &events,
    )?;
    let header = Header {
        producer: String::new(),
        fingerprint: handoff.fingerprint.clone(),
    };
    // First, since its errors name devices.
    machine.would_load(&handoff.outline, &header)?;
    fds.all_claimed()?;
    check_only_migratable(options, Some(&machine))
}

/// What `-incoming` says must be where the guest comes from; nothing need be said.
fn check_incoming(options: &Options, handoff: &Handoff) -> Result<(), HostError> {
    let Some(incoming) = &options.incoming else {
        return Ok(());
    };
    if incoming.cpr.is_some() {
        super::ignore_cpr_channel();
    }
    let Some(main) = &incoming.main else {
        return Ok(());
    };
    let said = main.to_string();
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

/// What the guest is taken with, once the machine is built.
struct Ready {
    claim: TargetClaim,
    watch: ClaimWatch,
    stream: Vec<u8>,
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

    /// The plugins of this program: the old one's again are those it had, whatever lies in their
    /// place by now.
    pub fn plugins(&self, options: &Options) -> Result<Registry, HostError> {
        match self.inherited.purpose {
            Purpose::Rollback { .. } => Ok(Registry::load_open(self.inherited.plugins()?)?),
            _ => Ok(Registry::load(&options.plugins)?),
        }
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

    /// Takes the guest and lets it run, if its operator wants so once that was said (`inbox`). The
    /// guest runs here from a success on; before, everything can still be inherited again. Gives the
    /// monitors that are to be served, unless they are already.
    pub fn take(
        &mut self,
        vm: &Arc<Vm>,
        inbox: &Receiver<MachineEvent>,
    ) -> Result<Option<Kept>, HostError> {
        let ready = self.prepare(vm)?;
        if self.waits(vm) {
            let taken = self
                .wait(vm, inbox, &ready.watch)
                .and_then(|()| self.run(vm, ready));
            return match taken {
                Ok(()) => Ok(None),
                Err(e) => {
                    self.give_monitors_back(vm);
                    Err(e)
                }
            };
        }
        let kept = self.inherited.monitors(&ready.watch)?;
        self.run(vm, ready)?;
        Ok(Some(kept))
    }

    /// Whether the guest is taken only when an operator says so. The old program takes it back
    /// however it came itself.
    fn waits(&self, vm: &Vm) -> bool {
        let deferred = vm.options.incoming.as_ref().is_some_and(|i| i.defer);
        deferred && self.inherited.purpose == Purpose::Successor
    }

    /// Builds the machine, which is the VM's then.
    fn prepare(&self, vm: &Arc<Vm>) -> Result<Ready, HostError> {
        let inherited = &self.inherited;
        let handoff = inherited.handoff()?;
        let (claim, watch) = TargetClaim::adopt(&inherited.claim()?)?;
        vm.tracker.inherit(handoff.total_ms, handoff.setup_ms);
        if handoff.events {
            vm.set_capabilities(&[(Capability::Events, true)])?;
        }
        let stream = inherited.state()?.ok_or("No state was handed over")?;
        match inherited.purpose {
            // Its options say how it once came by the guest, which goes on as it was.
            Purpose::Rollback { .. } => {
                let mut state = vm.state();
                state.autostart = true;
                state.nodes = inherited.nodes()?;
                state.objects = inherited.objects();
                vm.chardevs.expect(inherited.chardevs()?);
                if let Some(devices) = inherited.devices()? {
                    state.devices = children::seat(&devices, &vm.registry())?;
                }
            }
            _ => check_incoming(&vm.options, handoff)?,
        }
        compare(&vm.options, &handoff.fingerprint)?;
        fault(&self.inherited, "build")?;
        let fds = Arc::new(inherited.table()?);
        let machine = vm.build_on(Mode::CprExec, &fds, &handoff.fingerprint)?;
        fds.all_claimed()?;
        vm.state().machine = Some(machine);
        Ok(Ready {
            claim,
            watch,
            stream,
        })
    }

    /// Serves the monitors while the guest stands still, until `migrate-incoming`.
    fn wait(
        &self,
        vm: &Arc<Vm>,
        inbox: &Receiver<MachineEvent>,
        watch: &ClaimWatch,
    ) -> Result<(), HostError> {
        let kept = self.inherited.monitors(watch)?;
        if let Some(guard) = &self.guard {
            guard.wait(deferred::PATIENCE);
        }
        let uri = self.inherited.handoff()?.uri.clone();
        vm.state().deferred = Some(Deferred::Inherited { uri });
        // The old program has done its part, as an operator of QEMU's is told.
        vm.tracker.end_inherited(Ok(None));
        // From here on what the old program knows of its clients is out of date.
        watch.stamp(Moment::Waiting);
        if let Err(e) = serve_monitors(vm, kept) {
            tracing::error!("{}", error_chain(&e));
        }
        fault(&self.inherited, "wait")?;
        deferred::wait(vm, inbox)?;
        if let Some(guard) = &self.guard {
            guard.wait(Duration::ZERO);
        }
        vm.tracker.take_inherited()
    }

    /// Loads the state, and lets the guest run.
    fn run(&mut self, vm: &Arc<Vm>, ready: Ready) -> Result<(), HostError> {
        let Ready {
            claim,
            watch,
            stream,
        } = ready;
        let machine = vm.state().machine.take();
        let mut target = Target::with(Arc::clone(vm), machine.ok_or("The machine is not built")?);
        watch.stamp(Moment::Received);
        fault(&self.inherited, "load")?;
        let mut image = StateImage::read(&stream[..])?;
        if image.header().fingerprint != self.inherited.handoff()?.fingerprint {
            return Err("The state is of another machine than the descriptors".into());
        }
        use baton_migration::handover::TargetHost;
        target.load(&mut image)?;
        watch.stamp(Moment::Loaded);
        fault(&self.inherited, "start")?;
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
        fault(&self.inherited, "claim")?;
        let _started = target.start(claim)?;
        self.conclude(vm, &watch);
        Ok(())
    }

    /// Monitors that were served here go back as they are now.
    fn give_monitors_back(&mut self, vm: &Vm) {
        let Some(monitor) = vm.take_monitor() else {
            return;
        };
        let (description, fds) = monitor.detach().into_parts();
        let renewed = rmp_serde::to_vec_named(&description)
            .map_err(HostError::from)
            .and_then(|description| self.inherited.renew_monitors(description, fds));
        if let Err(e) = renewed {
            // Without them the old program finds those it knows out of date, and lets go of them.
            tracing::error!("the monitors' clients are disconnected: {e}");
        }
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
