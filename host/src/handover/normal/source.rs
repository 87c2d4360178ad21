//! The side the guest leaves.

use std::sync::Arc;
use std::time::Duration;

use baton_migration::address::{MigrationChannel, SocketAddress, main_address};
use baton_migration::channel::Endpoint;
use baton_migration::handover::Timeouts;
use baton_migration::precopy::{Limits, LiveRam, PageSet, Precopy, PrecopyHost, PrecopyOptions};
use baton_migration::settings::{Capability, ZeroPageDetection};
use baton_migration::{HostError, Mode};

use super::super::source::Source;
use super::super::{checkpoint, pauses, producer, resolve_fd};
use super::socket;
use crate::machine::Machine;
use crate::memory::{self, Live};
use crate::vm::Vm;

/// The QMP command `migrate` in mode normal. Returns once the target has been reached; the rest goes
/// on in a thread of its own.
pub fn migrate(
    vm: &Arc<Vm>,
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<(), HostError> {
    let address = main_address(uri, channels)?;
    match socket(&address) {
        Some(target) => copy(vm, target),
        // Nobody waits there for the guest, so that copying it while it runs only makes it more.
        None => checkpoint::migrate(vm, Mode::Normal, &address),
    }
}

fn copy(vm: &Arc<Vm>, target: &SocketAddress) -> Result<(), HostError> {
    let mode = Mode::Normal;
    let settings = vm.state().settings.clone();
    for (capability, why) in [
        (Capability::Multifd, "RAM goes over one connection"),
        (
            Capability::XIgnoreShared,
            "RAM is copied; mode cpr-transfer hands shared RAM over",
        ),
    ] {
        if settings.capabilities.contains(capability) {
            return Err(format!(
                "Capability '{capability}' means nothing in a migration to a socket in mode \
                 normal: {why}; switch it off with migrate-set-capabilities"
            )
            .into());
        }
    }
    let mut host = Source::new(Arc::clone(vm), mode);
    let options = PrecopyOptions {
        mode,
        target: Endpoint::resolve(target, &resolve_fd)?,
        producer: producer(),
        tracker: Arc::clone(&vm.tracker),
        blockers: &vm.blockers,
        timeouts: Timeouts::default(),
        pause: pauses(vm),
        find_zeros: settings.parameters.zero_page_detection != ZeroPageDetection::None,
    };
    let begun = Precopy::begin(options, &mut host)?;
    let thread = std::thread::Builder::new()
        .name("migration".into())
        .spawn(move || {
            let outcome = begun.run(&mut host);
            tracing::info!("the migration has ended: {outcome:?}");
        });
    thread
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

impl PrecopyHost for Source {
    fn limits(&mut self) -> Limits {
        let state = self.vm().state();
        let parameters = &state.settings.parameters;
        Limits {
            max_bandwidth: parameters.max_bandwidth,
            downtime: Duration::from_millis(parameters.downtime_limit),
        }
    }

    fn ram_file(&mut self) -> Option<String> {
        memory::file_identity(&self.vm().options.memory)
    }

    fn prepare(&mut self) -> Result<(), HostError> {
        memory::warm_program();
        Ok(self.machine(Machine::disk_files)??.write_back()?)
    }

    fn track(&mut self) -> Result<Arc<dyn LiveRam>, HostError> {
        self.machine(|machine| {
            machine.log_writes()?;
            Ok(Arc::new(Live(Arc::clone(machine.ram()))) as _)
        })?
    }

    fn written(&mut self, pages: &mut PageSet) -> Result<(), HostError> {
        self.machine(|machine| machine.written(pages))?
    }

    fn forget(&mut self) {
        let forgotten = self.machine(Machine::forget_writes);
        if let Err(e) = forgotten.and_then(|outcome| outcome) {
            tracing::warn!("written pages are still noted: {e}");
        }
    }
}
