//! The side the guest comes to.

use std::sync::Arc;

use baton_migration::address::SocketAddress;
use baton_migration::channel::{ChannelError, Endpoint, Listener};
use baton_migration::claim::{Started, TargetClaim};
use baton_migration::fds::FdTable;
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::handover::{
    StartError, TargetHandover, TargetHost, TargetOptions, TargetOutcome, Timeouts,
};
use baton_migration::stream::StateImage;
use baton_migration::{HostError, Mode, error_chain};

use super::monitors::InheritedMonitors;
use super::resolve_fd;
use crate::blockers::check_only_migratable;
use crate::machine::events::MachineEvent;
use crate::machine::{GlobalState, Inventory, Machine};
use crate::runstate::RunState;
use crate::successor;
use crate::systemd;
use crate::vm::Vm;

/// The VM as the target of a handover.
pub(super) struct Target {
    vm: Arc<Vm>,
    /// Built here, and the VM's once the guest is.
    machine: Option<Machine>,
    /// Whether the guest ran in the source.
    ran: bool,
}

/// Waits for a source on the cpr channel, and builds the machine it describes. The guest runs in
/// the source meanwhile.
///
/// `listens` is called once a source can connect.
pub fn receive(
    vm: &Arc<Vm>,
    cpr: &SocketAddress,
    listens: impl FnOnce() -> Result<(), HostError>,
) -> Result<TargetHandover, HostError> {
    let listener = Listener::bind(Endpoint::resolve(cpr, &resolve_fd)?)?;
    successor::waiting();
    listens()?;
    let options = TargetOptions {
        tracker: Arc::clone(&vm.tracker),
        timeouts: Timeouts::default(),
    };
    let mut host = Target {
        vm: Arc::clone(vm),
        machine: None,
        ran: false,
    };
    let handover = TargetHandover::receive(listener, options, &mut host)?;
    // `run` makes its own `Target` around the machine.
    vm.state().machine = host.machine.take();
    Ok(handover)
}

/// The main channel of an address, which names a descriptor that may be closed soon.
pub fn main_channel(main: &SocketAddress) -> Result<Endpoint, ChannelError> {
    Endpoint::resolve(main, &resolve_fd)
}

/// Opens the main channel and takes the guest. If it does not come the process is asked to end,
/// unless the operator wanted otherwise.
pub fn run(
    vm: &Arc<Vm>,
    handover: TargetHandover,
    main: Result<Endpoint, ChannelError>,
    exit_on_error: bool,
) {
    let machine = {
        let mut state = vm.state();
        state.migrating = true;
        state.machine.take()
    };
    let mut host = Target {
        vm: Arc::clone(vm),
        machine,
        ran: false,
    };
    let expected = vm.state().expected.take();
    let checked = match (&host.machine, &expected) {
        (Some(machine), Some(theirs)) => machine.check_inventory(theirs),
        _ => Ok(()),
    };
    let main = checked.and(main.map_err(HostError::from));
    let outcome = match main {
        Ok(main) => handover.run(main, &mut host),
        Err(e) => {
            let reason = error_chain(&*e);
            handover.abandon(&reason, &mut host);
            TargetOutcome::Abandoned { reason }
        }
    };
    match outcome {
        TargetOutcome::Running => {
            let inherited = vm.inherited_monitors().take();
            if let Some(monitors) = inherited {
                monitors.serve(vm);
            }
            successor::running();
            systemd::took_over(vm.state().runstate.status());
        }
        TargetOutcome::Abandoned { reason } | TargetOutcome::Lost { reason } => {
            vm.state().migration_over();
            if exit_on_error {
                // The main thread lives until it hears this.
                let _ = vm.requests.send(MachineEvent::Abandoned(reason));
            } else {
                tracing::error!("the guest did not come: {reason}");
            }
        }
    }
}

/// Whether the guest ran when its state was saved, or slept: the machine knows which.
pub(super) fn ran_in_source(global: &GlobalState) -> Result<bool, HostError> {
    match global.runstate.as_str() {
        "running" | "suspended" => Ok(true),
        "paused" | "prelaunch" => Ok(false),
        other => Err(format!("The source was in runstate '{other}'").into()),
    }
}

impl Target {
    /// The target of a guest whose machine was built by other means.
    pub(super) fn with(vm: Arc<Vm>, machine: Machine) -> Self {
        Self {
            vm,
            machine: Some(machine),
            ran: false,
        }
    }

    fn built(&self) -> Result<&Machine, HostError> {
        self.machine
            .as_ref()
            .ok_or_else(|| "The machine is not built".into())
    }
}

impl TargetHost for Target {
    fn fingerprint(
        &mut self,
        source: &MachineFingerprint,
    ) -> Result<MachineFingerprint, HostError> {
        successor::guest_comes();
        Machine::expected_fingerprint(&self.vm.options, source)
    }

    fn prepare(&mut self, fds: &Arc<FdTable>, preview: StateImage) -> Result<(), HostError> {
        let vm = &self.vm;
        let source = &preview.header().fingerprint;
        let machine = vm.build_on(Mode::CprTransfer, fds, source)?;
        let monitors = InheritedMonitors::take(fds, &vm.options.monitors)?;
        *vm.inherited_monitors() = Some(monitors);
        let mut preview = preview;
        if let Some(theirs) = Inventory::take(&mut preview)? {
            // After -incoming defer devices may still come.
            if vm
                .options
                .incoming
                .as_ref()
                .is_some_and(|i| i.main.is_some())
            {
                machine.check_inventory(&theirs)?;
            }
            vm.state().expected = Some(theirs);
        }
        machine.rehearse(preview.header())?;
        check_only_migratable(&vm.options, Some(&machine))?;
        machine.warm_up(preview)?;
        machine.warm_ram()?;
        crate::memory::warm_program();
        self.machine = Some(machine);
        Ok(())
    }

    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError> {
        let global = self.built()?.load(state)?;
        self.ran = ran_in_source(&global)?;
        state.all_taken()?;
        Ok(self.vm.chardevs.load()?)
    }

    fn start(&mut self, claim: TargetClaim) -> Result<Started, StartError> {
        let vm = Arc::clone(&self.vm);
        let mut state = vm.state();
        let runs = self.ran && state.autostart;
        let machine = self
            .machine
            .take()
            .ok_or_else(|| StartError::Host("The machine is not built".into()))?;
        let started = match claim.start() {
            Ok(started) => started,
            Err(e) => {
                self.machine = Some(machine);
                return Err(e.into());
            }
        };
        let result = if runs {
            machine.enter()
        } else {
            Ok(RunState::Paused)
        };
        if matches!(result, Ok(RunState::Running)) {
            started.entered();
            machine.start_devices();
        }
        vm.chardevs.serve();
        if let Some(monitors) = &*vm.inherited_monitors() {
            monitors.claim();
        }
        state.machine = Some(machine);
        // Clients are told next that it has ended, and may want another.
        state.migration_over();
        match result {
            Ok(runstate) => {
                match runs {
                    true => vm.went_live(&mut state, runstate),
                    false => state.runstate = runstate,
                }
                vm.arrived();
                Ok(started)
            }
            Err(e) => {
                state.runstate = RunState::InternalError;
                Err(StartError::Host(e))
            }
        }
    }

    fn abandon(&mut self, reason: &str) {
        tracing::debug!("the guest does not come: {reason}");
        self.machine = None;
        self.vm.state().machine = None;
        self.vm.chardevs.abandon();
        *self.vm.inherited_monitors() = None;
    }
}
