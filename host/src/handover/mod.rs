//! The VM's two sides of a live update; the order of events is the migration crate's.

mod checkpoint;
mod exec;
mod monitors;
mod normal;
mod passed;
mod restore;
mod source;
mod target;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use baton_migration::address::{
    ChannelType, IncomingChannels, MigrationAddress, MigrationChannel, TransferChannels,
    main_address,
};
use baton_migration::handover::{SourceHandover, SourceOptions, Timeouts};
use baton_migration::settings::Capability;
use baton_migration::{HostError, Mode};

use crate::fd::adopt_listed;
use crate::runstate::RunState;
use crate::vm::{Deferred, State, Vm};

pub use checkpoint::save;
pub use exec::{Succession, rehearse};
pub use monitors::InheritedMonitors;
pub use passed::numbered;
pub use restore::load_file;
pub use target::{main_channel, receive, run};

/// This program, as it names itself in a stream.
fn producer() -> String {
    format!("baton {}", env!("CARGO_PKG_VERSION"))
}

/// An `fd:` address names a descriptor by its number; it stays the caller's, who may use it again.
fn resolve_fd(name: &str) -> Result<OwnedFd, HostError> {
    adopt_listed(name)
}

/// The QMP command `migrate`. Returns once the target has been reached; the rest goes on in a
/// thread of its own while the guest runs.
pub fn migrate(
    vm: &Arc<Vm>,
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<(), HostError> {
    let mode = may_begin(vm, |state| {
        let mode = state.settings.parameters.mode;
        refuse_cpr_channel(mode, channels)?;
        // Without an address, cpr-exec keeps the state in memory.
        let main = match (mode, uri, channels) {
            (Mode::CprExec, None, None) => None,
            _ => Some(main_address(uri, channels)?),
        };
        state.settings.check_migration(main.as_ref())?;
        Ok(mode)
    })?;
    let begun = match mode {
        Mode::CprReboot => main_address(uri, channels)
            .map_err(HostError::from)
            .and_then(|place| checkpoint::migrate(vm, mode, &place)),
        Mode::CprTransfer => transfer(vm, uri, channels),
        Mode::CprExec => exec::migrate(vm, uri, channels),
        Mode::Normal => normal::migrate(vm, uri, channels),
    };
    begun.inspect_err(|_| vm.state().migration_over())
}

/// A channel that the mode has no use for is a mode that was forgotten. But not with cpr-exec, which
/// may be told where another process would be, as in QEMU.
fn refuse_cpr_channel(mode: Mode, channels: Option<&[MigrationChannel]>) -> Result<(), HostError> {
    let cpr = |channel: &MigrationChannel| channel.channel_type == ChannelType::Cpr;
    if mode == Mode::CprTransfer || !channels.is_some_and(|channels| channels.iter().any(cpr)) {
        return Ok(());
    }
    if mode == Mode::CprExec {
        exec::ignore_cpr_channel();
        return Ok(());
    }
    Err(format!(
        "Migration mode '{mode}' has no channel of type cpr; set mode to 'cpr-transfer' with \
         migrate-set-parameters, or leave the channel out"
    )
    .into())
}

/// Whether the operator says when the guest is stopped.
fn pauses(vm: &Vm) -> bool {
    let capabilities = vm.state().settings.capabilities;
    capabilities.contains(Capability::PauseBeforeSwitchover)
}

/// Refuses a migration in a runstate in which there can be none, and what `check` refuses; else
/// notes that one is under way.
fn may_begin<T>(
    vm: &Vm,
    check: impl FnOnce(&State) -> Result<T, HostError>,
) -> Result<T, HostError> {
    let mut state = vm.state();
    if state.migrating {
        return Err("There's a migration process in progress".into());
    }
    match state.runstate {
        RunState::InMigrate => return Err("Guest is waiting for an incoming migration".into()),
        RunState::PostMigrate if let Some(place) = &state.kept_in => {
            return Err(format!(
                "Can't migrate the vm that was paused due to previous migration: the guest is kept \
                 in '{place}'; load it in another process with -incoming"
            )
            .into());
        }
        RunState::PostMigrate => {
            return Err("Can't migrate the vm that was paused due to previous migration".into());
        }
        RunState::Shutdown | RunState::InternalError | RunState::FinishMigrate => {
            return Err(format!(
                "The guest cannot be migrated in runstate '{}'; reset it first",
                state.runstate.as_str()
            )
            .into());
        }
        RunState::Prelaunch | RunState::Running | RunState::Suspended | RunState::Paused => {}
    }
    let checked = check(&state)?;
    state.boot_if_needed()?;
    state.migrating = true;
    Ok(checked)
}

/// The QMP command `migrate` in mode cpr-transfer.
fn transfer(
    vm: &Arc<Vm>,
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<(), HostError> {
    let mode = Mode::CprTransfer;
    let pause = pauses(vm);
    let mut host = source::Source::new(Arc::clone(vm), mode);
    let begun = TransferChannels::from_arguments(uri, channels)
        .map_err(HostError::from)
        .and_then(|channels| {
            let options = SourceOptions {
                mode,
                channels,
                producer: producer(),
                tracker: Arc::clone(&vm.tracker),
                blockers: &vm.blockers,
                timeouts: Timeouts::default(),
                pause,
                resolve_fd: &resolve_fd,
            };
            SourceHandover::begin(options, &mut host).map_err(HostError::from)
        });
    let handover = begun?;
    let thread = std::thread::Builder::new()
        .name("migration".into())
        .spawn(move || {
            let outcome = handover.run(&mut host);
            tracing::info!("the migration has ended: {outcome:?}");
        });
    thread
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

/// Takes the guest that comes from `address` without a cpr channel: one that is kept there, or one
/// that a source copies. What can be refused at once is; the rest goes on in a thread of its own.
pub fn arrive(
    vm: &Arc<Vm>,
    address: &MigrationAddress,
    exit_on_error: bool,
) -> Result<(), HostError> {
    take(vm)?;
    let begun = match normal::streams(address) {
        true => normal::receive(vm, address, exit_on_error),
        false => restore::begin(vm, address, exit_on_error),
    };
    begun.inspect_err(|_| vm.state().migration_over())
}

/// Refuses a second guest, and one that comes otherwise.
fn take(vm: &Vm) -> Result<(), HostError> {
    let mut state = vm.state();
    if state.runstate != RunState::InMigrate || state.migrating || state.deferred.is_some() {
        return Err("The incoming migration has already been started".into());
    }
    state.migrating = true;
    Ok(())
}

/// The QMP command `migrate_cancel`.
pub fn cancel(vm: &Vm) {
    exec::give_back(vm);
    vm.tracker.cancel();
}

/// The QMP command `migrate-incoming`.
pub fn incoming(
    vm: &Arc<Vm>,
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
    exit_on_error: bool,
) -> Result<(), HostError> {
    let Some(incoming) = &vm.options.incoming else {
        return Err("'-incoming' was not specified on the command line".into());
    };
    if matches!(vm.state().deferred, Some(Deferred::Inherited { .. })) {
        return exec::take_now(vm, uri, channels);
    }
    if incoming.cpr.is_none() {
        return arrive(vm, &main_address(uri, channels)?, exit_on_error);
    }
    let main = main_channel(&IncomingChannels::deferred_main(uri, channels)?);
    let Some(Deferred::Transfer(handover)) = vm.state().deferred.take() else {
        return Err("The incoming migration has already been started".into());
    };
    let vm = Arc::clone(vm);
    let thread = std::thread::Builder::new()
        .name("incoming".into())
        .spawn(move || run(&vm, *handover, main, exit_on_error));
    thread
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}
