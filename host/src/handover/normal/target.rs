//! The side the guest comes to.

use std::sync::Arc;

use baton_migration::address::MigrationAddress;
use baton_migration::channel::{Endpoint, Listener};
use baton_migration::checkpoint::RamSink;
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::handover::Timeouts;
use baton_migration::precopy::{
    Incoming, IncomingHost, IncomingOptions, IncomingOutcome, StartFailure,
};
use baton_migration::stream::StateImage;
use baton_migration::{HostError, fault};

use super::super::resolve_fd;
use super::super::target::ran_in_source;
use super::socket;
use crate::blockers::check_only_migratable;
use crate::machine::events::MachineEvent;
use crate::machine::{Machine, Origin};
use crate::memory;
use crate::runstate::RunState;
use crate::vm::Vm;

/// The VM as the target of a migration.
struct Target {
    vm: Arc<Vm>,
    machine: Option<Machine>,
    /// Whether the guest ran in the source.
    ran: bool,
}

/// Listens, and takes the guest in a thread of its own. If it does not come the process is asked to
/// end, unless the operator wanted otherwise.
pub fn begin(
    vm: &Arc<Vm>,
    address: &MigrationAddress,
    exit_on_error: bool,
) -> Result<(), HostError> {
    let socket = socket(address).ok_or("A guest that is kept is not copied")?;
    let listener = Listener::bind(Endpoint::resolve(socket, &resolve_fd)?)?;
    let options = IncomingOptions {
        tracker: Arc::clone(&vm.tracker),
        timeouts: Timeouts::default(),
    };
    let mut host = Target {
        vm: Arc::clone(vm),
        machine: None,
        ran: false,
    };
    let spawned = std::thread::Builder::new()
        .name("incoming".into())
        .spawn(move || {
            let outcome = Incoming::new(listener, options).run(&mut host);
            if let IncomingOutcome::Abandoned { reason } | IncomingOutcome::Lost { reason } =
                outcome
                && exit_on_error
            {
                // The main thread lives until it hears this.
                let _ = host.vm.requests.send(MachineEvent::Abandoned(reason));
            }
        });
    spawned
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

impl IncomingHost for Target {
    fn fingerprint(
        &mut self,
        source: &MachineFingerprint,
    ) -> Result<MachineFingerprint, HostError> {
        Machine::expected_fingerprint(&self.vm.options, source)
    }

    fn build(
        &mut self,
        source: &MachineFingerprint,
        ram_file: Option<&str>,
    ) -> Result<Arc<dyn RamSink + Send>, HostError> {
        let vm = Arc::clone(&self.vm);
        let memory = &vm.options.memory;
        // Before anything is mapped: the guest runs in that file.
        if memory.share
            && let Some(theirs) = ram_file
            && memory::file_identity(memory).as_deref() == Some(theirs)
        {
            return Err(format!(
                "Memory backend '{}' is the file in which the source's guest runs; give the target \
                 another mem-path, or set mode cpr-transfer in the source",
                memory.id
            )
            .into());
        }
        let origin = Origin::Copied(source);
        let machine = vm.build(origin)?;
        check_only_migratable(&vm.options, Some(&machine))?;
        machine.ram().clear()?;
        memory::warm_program();
        let ram = Arc::clone(machine.ram());
        self.machine = Some(machine);
        Ok(ram)
    }

    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError> {
        let machine = self.machine.as_ref().ok_or("The machine is not built")?;
        machine.adapt_clocks(state)?;
        let global = machine.load(state)?;
        self.ran = ran_in_source(&global)?;
        state.all_taken()?;
        Ok(())
    }

    fn start(&mut self) -> Result<(), StartFailure> {
        let vm = Arc::clone(&self.vm);
        let mut state = vm.state();
        let never = |error| StartFailure { ran: false, error };
        fault::point("normal-start").map_err(never)?;
        let machine = self.machine.take();
        let machine = machine.ok_or_else(|| never("The machine is not built".into()))?;
        let runs = self.ran && state.autostart;
        let started = if runs {
            machine.start()
        } else {
            Ok(RunState::Paused)
        };
        state.machine = Some(machine);
        // Clients are told next that it has ended, and may want another.
        state.migration_over();
        let runstate = started.map_err(|error| {
            // Some vCPU may have run.
            state.runstate = RunState::InternalError;
            StartFailure { ran: true, error }
        })?;
        match runs {
            true => vm.went_live(&mut state, runstate),
            false => state.runstate = runstate,
        }
        vm.arrived();
        Ok(())
    }

    fn abandon(&mut self, reason: &str) {
        tracing::error!("the guest did not come: {reason}");
        self.machine = None;
        let mut state = self.vm.state();
        state.migration_over();
        if state.runstate != RunState::InternalError {
            state.machine = None;
        }
    }
}
