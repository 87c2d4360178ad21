//! cpr-reboot, and mode normal by way of a file, the side the guest comes to: from where it was kept.

use std::sync::Arc;

use baton_migration::address::MigrationAddress;
use baton_migration::checkpoint::{
    Cancel, Kept, Place, RamLayout, RestoreHost, RestoreOutcome, restore,
};
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::stream::StateImage;
use baton_migration::{Blocker, HostError, Mode};

use super::target::ran_in_source;
use super::{passed, take};
use crate::blockers::check_only_migratable;
use crate::machine::events::MachineEvent;
use crate::machine::{Machine, Origin};
use crate::memory::{self, Contents};
use crate::runstate::RunState;
use crate::vm::Vm;

/// The blocker of a guest whose memory is mapped from the file it was kept in.
const MAPPED: &str = "memory-mapped-from-state";

/// The VM as the one a kept guest is loaded into.
struct Restore {
    vm: Arc<Vm>,
    machine: Option<Machine>,
    /// What the guest was kept from.
    source: MachineFingerprint,
    /// Whether the guest ran when it was kept.
    ran: bool,
    /// Whether it runs here if it did, whatever `-S` says.
    at_once: bool,
    /// Whether its memory is mapped from the file.
    mapped: bool,
}

/// Loads what an address names, in a thread of its own, once [`take`] has allowed it. If the guest
/// does not come the process is asked to end, unless the operator wanted otherwise.
pub(super) fn begin(
    vm: &Arc<Vm>,
    address: &MigrationAddress,
    exit_on_error: bool,
) -> Result<(), HostError> {
    let place = passed::place(address, false)?;
    let for_thread = Arc::clone(vm);
    let spawned = std::thread::Builder::new()
        .name("incoming".into())
        .spawn(move || {
            let vm = for_thread;
            // Who cancels is there to say what next.
            if let Err(Absent::Failed(reason)) = load(&vm, place, false)
                && exit_on_error
            {
                // The main thread lives until it hears this.
                let _ = vm.requests.send(MachineEvent::Abandoned(reason));
            }
        });
    spawned
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

/// The QMP command `cpr-load`: loads and waits for the end. A machine that was never started makes
/// way.
pub fn load_file(vm: &Arc<Vm>, filename: &str) -> Result<(), HostError> {
    let place = passed::place(
        &MigrationAddress::File {
            filename: filename.to_owned(),
            offset: 0,
        },
        false,
    )?;
    let fresh = make_way(vm)?;
    let loaded = take(vm).and_then(|()| Ok(load(vm, place, true)?));
    if fresh && loaded.is_err() {
        vm.power_on()?;
        vm.state().runstate = RunState::Prelaunch;
    }
    loaded
}

/// Lets go of a machine that was never started; whether there was one.
fn make_way(vm: &Vm) -> Result<bool, HostError> {
    let machine = {
        let mut state = vm.state();
        match state.runstate {
            RunState::InMigrate => return Ok(false),
            RunState::Running => return Err("cpr-load called for a running VM".into()),
            RunState::Prelaunch if state.migrating => {
                return Err("There's a migration process in progress".into());
            }
            RunState::Prelaunch => {}
            other => {
                return Err(format!(
                    "cpr-load would destroy the guest that is here in runstate '{}'; start another \
                     Baton with -incoming defer",
                    other.as_str()
                )
                .into());
            }
        }
        if !state.unbooted && memory::lasting(&vm.options.memory).is_some() {
            return Err(
                "A guest has been booted in the file of the memory backend, and another cannot \
                 have stayed in it; start Baton with -incoming defer"
                    .into(),
            );
        }
        state.runstate = RunState::InMigrate;
        state.unbooted = false;
        state.machine.take()
    };
    drop(machine);
    Ok(true)
}

/// Why the guest did not come.
#[derive(Debug, thiserror::Error)]
enum Absent {
    #[error("The load was cancelled")]
    Cancelled,
    #[error("{0}")]
    Failed(String),
}

fn load(vm: &Arc<Vm>, place: Place, at_once: bool) -> Result<(), Absent> {
    let mut host = Restore {
        vm: Arc::clone(vm),
        machine: None,
        source: MachineFingerprint::default(),
        ran: false,
        at_once,
        mapped: false,
    };
    match restore(place, &vm.tracker, &mut host) {
        Ok(RestoreOutcome::Restored) => Ok(()),
        Ok(RestoreOutcome::Cancelled) => Err(Absent::Cancelled),
        Ok(RestoreOutcome::Failed { reason }) => {
            tracing::error!("the guest did not come: {reason}");
            Err(Absent::Failed(reason))
        }
        Err(e) => {
            vm.state().migration_over();
            Err(Absent::Failed(e.to_string()))
        }
    }
}

impl Restore {
    fn built(&self) -> Result<&Machine, HostError> {
        self.machine
            .as_ref()
            .ok_or_else(|| "The machine is not built".into())
    }
}

impl RestoreHost for Restore {
    fn fingerprint(
        &mut self,
        source: &MachineFingerprint,
    ) -> Result<MachineFingerprint, HostError> {
        self.source = source.clone();
        Machine::expected_fingerprint(&self.vm.options, source)
    }

    fn goes_on_in_place(&self) -> bool {
        self.vm.options.memory.share
    }

    fn build(&mut self, kept: &mut Kept, cancel: Cancel<'_>) -> Result<(), HostError> {
        let vm = Arc::clone(&self.vm);
        let header = *kept.header();
        if !matches!(header.mode, Mode::CprReboot | Mode::Normal) {
            return Err(format!(
                "'{}' was kept by {} and not by cpr-reboot or in mode normal",
                kept.name(),
                header.mode
            )
            .into());
        }
        let mapped = match memory::wants_mapping(&vm.options.memory) {
            true => kept.mappable()?,
            false => None,
        };
        let contents = match (header.ram, mapped) {
            (RamLayout::InPlace, _) => Contents::InPlace,
            (_, Some(kept)) => Contents::Mapped(kept),
            _ => Contents::New,
        };
        let copied = matches!(contents, Contents::New);
        self.mapped = matches!(contents, Contents::Mapped(_));
        let origin = Origin::Kept(contents, &self.source);
        let machine = vm.build(origin)?;
        check_only_migratable(&vm.options, Some(&machine))?;
        if copied {
            machine.ram().clear()?;
            kept.copy_ram(&**machine.ram(), cancel)?;
        }
        self.machine = Some(machine);
        Ok(())
    }

    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError> {
        let machine = self.built()?;
        machine.images()?.check(state)?;
        machine.adapt_clocks(state)?;
        let global = machine.load(state)?;
        state.all_taken()?;
        self.ran = ran_in_source(&global)?;
        Ok(())
    }

    fn start(&mut self) -> Result<(), HostError> {
        let vm = Arc::clone(&self.vm);
        let mut state = vm.state();
        let machine = self.machine.take().ok_or("The machine is not built")?;
        if self.mapped {
            let added = vm.blockers.add("", mapped_blocker());
            added.map_err(|e| e.to_string())?;
        }
        state.machine = Some(machine);
        state.runstate = RunState::Paused;
        if self.ran && (self.at_once || state.autostart) {
            let started = vm.run(&mut state);
            if started.is_err() {
                state.runstate = RunState::InMigrate;
                self.machine = state.machine.take();
            }
            started?;
        }
        // Clients are told next: whatever they want then is not too early.
        state.migration_over();
        drop(state);
        memory::leave_store(&vm.options.memory);
        vm.arrived();
        Ok(())
    }

    fn abandon(&mut self) {
        self.machine = None;
        self.vm.state().migration_over();
        self.vm.blockers.remove("", MAPPED);
    }
}

fn mapped_blocker() -> Blocker {
    Blocker {
        id: MAPPED.into(),
        reason: "memory was restored by private mapping of the file it was kept in, and no other \
                 process can share it"
            .into(),
        remedy:
            "Save it with cpr-reboot and load it with a memory-backend-file,share=on, or start \
                 the guest anew"
                .into(),
        modes: vec![Mode::CprTransfer, Mode::CprExec],
        unless_suspended: false,
    }
}
