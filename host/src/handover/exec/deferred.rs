//! A new program that was executed with `-incoming defer`: the guest stands still until
//! `migrate-incoming`, and goes back to the old program if that does not come.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use baton_migration::address::{MigrationChannel, main_address};
use baton_migration::{HostError, fault};

use crate::machine::events::MachineEvent;
use crate::vm::{Deferred, Vm};

/// How long the guest stands still for an operator.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the guest is to be taken. An error is why it goes back.
pub(super) fn wait(vm: &Vm, inbox: &Receiver<MachineEvent>) -> Result<(), HostError> {
    let patience = fault::patience(PATIENCE);
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(left) {
            Ok(MachineEvent::Incoming) => return Ok(()),
            Ok(MachineEvent::Abandoned(reason)) => return Err(reason.into()),
            Ok(MachineEvent::Quit {
                cause: cause @ "host-signal",
            }) => {
                // Whoever signals means the guest: it is taken, to be ended.
                let mut state = vm.state();
                (state.autostart, state.deferred) = (false, None);
                let _ = vm.requests.send(MachineEvent::Quit { cause });
                return Ok(());
            }
            Ok(MachineEvent::Quit { .. }) => {
                return Err("The new program was told to quit before migrate-incoming".into());
            }
            // The guest does not run.
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!(
                    "The new program was not told migrate-incoming within {} s",
                    patience.as_secs()
                )
                .into());
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// The QMP command `migrate-incoming` in such a program. What it refuses may be said again.
pub fn take_now(
    vm: &Vm,
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<(), HostError> {
    let said = match (uri, channels) {
        (None, None) => None,
        _ => Some(main_address(uri, channels)?.to_string()),
    };
    let mut state = vm.state();
    let Some(Deferred::Inherited { uri }) = &state.deferred else {
        return Err("The incoming migration has already been started".into());
    };
    match (&said, uri) {
        (Some(said), Some(uri)) if said != uri => {
            return Err(format!("'{said}': the old program has kept the guest in '{uri}'").into());
        }
        (Some(said), None) => {
            return Err(format!(
                "'{said}': the old program was told no address for the guest and has kept it in \
                 memory; say migrate-incoming without one"
            )
            .into());
        }
        _ => {}
    }
    (state.deferred, state.migrating) = (None, true);
    // The main thread lives until the guest is taken or goes back.
    let _ = vm.requests.send(MachineEvent::Incoming);
    Ok(())
}

/// Lets a guest that waits here go back to the old program; does nothing where none waits.
pub fn give_back(vm: &Vm) {
    let mut state = vm.state();
    if !matches!(state.deferred, Some(Deferred::Inherited { .. })) {
        return;
    }
    state.deferred = None;
    let reason = "The migration was cancelled before migrate-incoming".to_owned();
    // As above.
    let _ = vm.requests.send(MachineEvent::Abandoned(reason));
}
