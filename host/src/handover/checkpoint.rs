//! cpr-reboot, and mode normal by way of a file, the side the guest leaves: it is kept until it is loaded.

use std::sync::Arc;

use baton_migration::address::MigrationAddress;
use baton_migration::checkpoint::{
    Checkpoint, CheckpointHost, CheckpointOptions, CheckpointOutcome, Keeper, RamSource, Writing,
    keeper,
};
use baton_migration::settings::Capability;
use baton_migration::{HostError, Mode};

use super::source::Source;
use super::{passed, pauses, producer};
use crate::machine::Machine;
use crate::memory::{self, Lasting, Ram, Stopped};
use crate::systemd;
use crate::vm::Vm;

/// A checkpoint that has begun.
struct Begun {
    checkpoint: Checkpoint,
    host: Source,
    keeper: Box<dyn Keeper + Send>,
}

/// The QMP command `migrate` to a place that keeps the guest. Returns once the place is open; the rest goes on in
/// a thread of its own.
pub(super) fn migrate(
    vm: &Arc<Vm>,
    mode: Mode,
    address: &MigrationAddress,
) -> Result<(), HostError> {
    let begun = begin(vm, mode, address)?;
    let thread = std::thread::Builder::new().name("migration".into());
    let spawned = thread.spawn(move || {
        begun.run();
    });
    spawned
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

/// The QMP command `cpr-save`: the same, and waits for the end.
pub fn save(vm: &Arc<Vm>, filename: &str) -> Result<(), HostError> {
    super::may_begin(vm, |_| Ok(()))?;
    let address = MigrationAddress::File {
        filename: filename.to_owned(),
        offset: 0,
    };
    let begun =
        begin(vm, Mode::CprReboot, &address).inspect_err(|_| vm.state().migration_over())?;
    match begun.run() {
        CheckpointOutcome::Completed => Ok(()),
        CheckpointOutcome::Cancelled => Err("The save was cancelled; the guest goes on".into()),
        CheckpointOutcome::Failed { reason } => {
            Err(format!("{reason}; the guest goes on here").into())
        }
    }
}

fn begin(vm: &Arc<Vm>, mode: Mode, address: &MigrationAddress) -> Result<Begun, HostError> {
    let place = passed::place(address, true)?;
    let writing = Writing::of(&vm.state().settings);
    let mut keeper = keeper(place, mode, writing)?;
    let mut host = Source::new(Arc::clone(vm), mode);
    host.kept_in = Some(address.to_string());
    let options = CheckpointOptions {
        mode,
        producer: producer(),
        tracker: Arc::clone(&vm.tracker),
        blockers: &vm.blockers,
        pause: pauses(vm),
    };
    let checkpoint = Checkpoint::begin(options, &mut host, &mut *keeper)?;
    Ok(Begun {
        checkpoint,
        host,
        keeper,
    })
}

impl Begun {
    fn run(mut self) -> CheckpointOutcome {
        let outcome = self.checkpoint.run(&mut self.host, &mut *self.keeper);
        tracing::info!("the checkpoint has ended: {outcome:?}");
        outcome
    }
}

impl CheckpointHost for Source {
    fn prepare(&mut self) -> Result<(), HostError> {
        memory::warm_program();
        self.machine(Machine::disk_files)??.write_back()?;
        let ram = self.machine(|machine| Arc::clone(machine.ram()))?;
        match stays_in_place(self.vm(), &ram) {
            Some(Lasting::File(_)) => ram.write_back(),
            Some(Lasting::Store(_)) => Ok(systemd::store_has_room()?),
            None => Ok(()),
        }
    }

    fn ram(&mut self) -> Result<Option<Arc<dyn RamSource>>, HostError> {
        if self.vm().state().reset_later {
            return Err("The guest resets itself; try again once it has".into());
        }
        // What the guest was told is on its disks must be there for whoever loads it.
        self.machine(Machine::disk_files)??.write_back()?;
        let ram = self.machine(|machine| Arc::clone(machine.ram()))?;
        match stays_in_place(self.vm(), &ram) {
            Some(Lasting::File(_)) => ram.write_back()?,
            Some(Lasting::Store(name)) => {
                let file = ram.shared_file().ok_or("The RAM is not shared")??;
                systemd::store(&name, &file)?;
            }
            None => return Ok(Some(Arc::new(Stopped(ram)))),
        }
        Ok(None)
    }
}

/// Where RAM is left, if it is.
fn stays_in_place<'a>(vm: &'a Vm, ram: &Ram) -> Option<Lasting<'a>> {
    let wanted = vm
        .state()
        .settings
        .capabilities
        .contains(Capability::XIgnoreShared);
    memory::lasting(&vm.options.memory).filter(|place| wanted && ram.stays_in(place))
}
