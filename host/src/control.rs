//! The monitor's commands, carried out on the VM.

use std::sync::Arc;

use baton_migration::settings::Capability;
use baton_migration::status::{MigrationStatus, NotPaused};
use baton_migration::{HostError, error_chain};
use baton_plugin_api::Child;
use serde_json::{Value, json};

use crate::blockers;
use crate::chardev::{ChardevInfo, qapi};
use crate::cli::DeviceOption;
use crate::handover;
use crate::hotplug::PlugError;
use crate::machine::events::MachineEvent;
use crate::machine::{Machine, MachineDevice, MappedRange, MappedSpace, WakeSource};
use crate::monitor::{
    Caller, Command, Control, Kept, Monitor, MonitorError, MonitorOption, QmpError, YankInstance,
    about, hmp, query_fdsets, remove_fd,
};
use crate::plugin;
use crate::query;
use crate::state;
use crate::successor;
use crate::vm::Vm;

/// A VM as the monitor sees it.
pub struct VmControl(pub Arc<Vm>);

impl Control for VmControl {
    fn execute(&self, command: Command, caller: &Caller) -> Result<Value, QmpError> {
        let vm = &self.0;
        match command {
            Command::QmpCapabilities { .. } => Err(QmpError::negotiated()),
            Command::QueryVersion => Ok(about::version()),
            Command::QueryCommands => Ok(about::commands()),
            Command::QueryQmpSchema => Ok(about::schema()),
            Command::HumanMonitorCommand {
                command_line,
                cpu_index,
            } => self.human_line(&command_line, cpu_index),
            Command::QueryStatus => {
                let runstate = vm.state().runstate;
                Ok(json!({ "status": runstate.as_str(), "running": runstate.is_running() }))
            }
            Command::Stop => done(vm.stop()),
            Command::Cont => done(vm.cont()),
            Command::Quit => {
                // The main thread lives until it hears this.
                let _ = vm.requests.send(MachineEvent::Quit {
                    cause: "host-qmp-quit",
                });
                Ok(json!({}))
            }
            Command::SystemReset => done(vm.reset(false)),
            Command::SystemPowerdown => done(vm.power_button()),
            Command::SystemWakeup => done(vm.wake_up(WakeSource::Operator)),
            Command::QueryName => Ok(match &vm.options.name {
                Some(name) => json!({ "name": name }),
                None => json!({}),
            }),
            Command::QueryKvm => Ok(json!({ "enabled": true, "present": true })),
            Command::QueryDevices => Ok(devices(vm)),
            Command::DeviceAdd(option) => plugged(vm.device_add(&option)),
            Command::ObjectAdd(arguments) => done(vm.object_add(arguments)),
            Command::ObjectDel { id } => done(vm.object_del(&id)),
            Command::BlockdevAdd(arguments) => done(vm.blockdev_add(arguments)),
            Command::BlockdevDel { node_name } => done(vm.blockdev_del(&node_name)),
            Command::PluginReplace { file } => done(vm.plugin_replace(file.as_ref())),
            Command::DeviceDel { id } => plugged(vm.device_del(&id)),
            Command::QueryPlugins => Ok(plugins(vm)),
            Command::QueryAddressSpaces => Ok(address_spaces(vm)),
            Command::QueryProcess => value(successor::describe(vm)),
            Command::QueryVmstate => value(state::of_vm(vm)),
            Command::StartSuccessor {
                program,
                arguments,
                report,
                log,
            } => {
                let wanted = successor::Start {
                    program,
                    arguments,
                    report,
                    log,
                };
                value(successor::start(vm, &wanted).map(|pid| json!({ "pid": pid })))
            }
            Command::Getfd { fdname } => caller.name_fd(fdname),
            Command::Closefd { fdname } => caller.close_fd(&fdname),
            Command::AddFd { fdset_id, opaque } => caller.add_fd(fdset_id, opaque),
            Command::RemoveFd { fdset_id, fd } => remove_fd(fdset_id, fd),
            Command::QueryFdsets => Ok(query_fdsets()),
            Command::QueryTarget => Ok(query::target()),
            Command::QueryMachines => Ok(query::machines()),
            Command::QueryCurrentMachine => Ok(query::current_machine()),
            Command::QueryUuid => Ok(query::uuid()),
            Command::QueryCpusFast => Ok(query::cpus(vm)),
            Command::QueryMemorySizeSummary => Ok(query::memory_size(&vm.options)),
            Command::QueryMemdev => Ok(query::memdev(&vm.options)),
            // There can be none.
            Command::QueryMemoryDevices | Command::QueryIothreads => Ok(json!([])),
            Command::QueryCommandLineOptions { option } => query::options(option.as_deref()),
            Command::QueryBlock => Ok(query::block(vm)),
            Command::QueryPci => Ok(query::pci(vm)),
            Command::QueryNamedBlockNodes { .. } => Ok(query::named_nodes(vm)),
            Command::QomList { path } => query::list(vm, &path),
            Command::QomGet { path, property } => query::get(vm, &path, &property),
            Command::QomListTypes {
                implements,
                r#abstract,
            } => Ok(query::types(
                &vm.registry(),
                implements.as_deref(),
                r#abstract == Some(true),
            )),
            Command::QomListProperties { typename } => {
                query::type_properties(&vm.registry(), &typename)
            }
            Command::DeviceListProperties { typename } => {
                query::device_properties(&vm.registry(), &typename)
            }
            Command::QueryMigrationthreads => Ok(query::migration_threads()),
            Command::QueryYank => Ok(query_yank(vm)),
            Command::Yank { instances } => yank(vm, &instances),
            Command::Migrate { uri, channels, .. } => done(
                handover::numbered(uri, channels, &caller.named).and_then(|to| {
                    handover::migrate(vm, to.uri.as_deref(), to.channels.as_deref())
                }),
            ),
            Command::MigrateContinue { state } => done(go_on(vm, state)),
            Command::MigrateCancel => {
                handover::cancel(vm);
                Ok(json!({}))
            }
            Command::MigrateIncoming {
                uri,
                channels,
                exit_on_error,
            } => done(
                handover::numbered(uri, channels, &caller.named).and_then(|from| {
                    let exit_on_error = exit_on_error.unwrap_or(true);
                    let (uri, channels) = (from.uri.as_deref(), from.channels.as_deref());
                    handover::incoming(vm, uri, channels, exit_on_error)
                }),
            ),
            Command::CprSave { filename, .. } => done(handover::save(vm, &filename)),
            Command::CprLoad { filename, .. } => done(handover::load_file(vm, &filename)),
            Command::MigrateSetParameters(changes) => done(vm.set_parameters(changes)),
            Command::MigrateSetCapabilities { capabilities } => {
                let changes = capabilities.iter().map(|one| (one.capability, one.state));
                done(vm.set_capabilities(&changes.collect::<Vec<_>>()))
            }
            Command::QueryMigrateParameters => {
                Ok(Value::Object(vm.state().settings.parameters.report()))
            }
            Command::QueryMigrateCapabilities => Ok(capabilities(vm)),
            Command::QueryChardev => Ok(json!(chardevs(vm))),
            Command::QueryChardevBackends => Ok(json!(qapi::backends())),
            Command::ChardevAdd { id, backend } => answer(qapi::add(&vm.chardevs, &id, backend)),
            Command::ChardevRemove { id } => done(vm.chardevs.remove(&id).map_err(Into::into)),
            Command::RingbufRead {
                device,
                size,
                format,
            } => answer(qapi::ringbuf_read(&vm.chardevs, &device, size, format)),
            Command::RingbufWrite {
                device,
                data,
                format,
            } => {
                done(qapi::ringbuf_write(&vm.chardevs, &device, &data, format).map_err(Into::into))
            }
            Command::QueryMigrate => query_migrate(vm),
            Command::QueryMigratable { mode } => {
                blockers::report(vm, mode).map_err(|e| QmpError::generic(error_chain(&*e)))
            }
        }
    }

    fn deserted(&self) {
        self.0.state().deserted = true;
        self.0.end_if_deserted();
    }
}

impl VmControl {
    /// A line of the monitor for people; gives what it prints.
    fn human_line(&self, line: &str, cpu: Option<i64>) -> Result<Value, QmpError> {
        let cpu = u64::try_from(cpu.unwrap_or(0)).ok();
        let cpu = cpu.filter(|cpu| *cpu < u64::from(self.0.options.cpus));
        match cpu {
            Some(cpu) => Ok(hmp::print(self, line, cpu).into()),
            None => Err(QmpError::generic(
                "Parameter 'cpu-index' expects a CPU number",
            )),
        }
    }
}

/// Starts the monitors of the command line that are not inherited, and waits for the clients that
/// are waited for.
pub fn start_monitors(vm: &Arc<Vm>) -> Result<(), MonitorError> {
    let control: Arc<dyn Control> = Arc::new(VmControl(Arc::clone(vm)));
    let options = &vm.options.monitors;
    let own: Vec<_> = match &*vm.inherited_monitors() {
        None => options.clone(),
        // The guest's source has these; nobody is waited for, as the guest has started long ago.
        Some(inherited) => options
            .iter()
            .filter(|option| !inherited.has(&option.address))
            .cloned()
            .collect(),
    };
    let monitor = Monitor::start(&own, control, vm.events.clone())?;
    vm.set_monitor(monitor);
    vm.serve_chardevs();
    Ok(())
}

/// Serves monitors: those that are kept, and those of the command line. If these cannot be had,
/// clients that are kept are served all the same.
pub fn serve_monitors(vm: &Arc<Vm>, kept: Kept) -> Result<(), MonitorError> {
    let control: Arc<dyn Control> = Arc::new(VmControl(Arc::clone(vm)));
    let attach = |kept, options: &[MonitorOption]| {
        Monitor::attach(kept, options, Arc::clone(&control), vm.events.clone())
    };
    match attach(kept, &vm.options.monitors) {
        Ok(monitor) => {
            vm.set_monitor(monitor);
            vm.serve_chardevs();
            Ok(())
        }
        Err(failed) => {
            if let Ok(monitor) = attach(*failed.kept, &[]) {
                vm.set_monitor(monitor);
                vm.serve_chardevs();
            }
            Err(failed.error)
        }
    }
}

fn plugged(result: Result<(), PlugError>) -> Result<Value, QmpError> {
    match result {
        Ok(()) => Ok(json!({})),
        Err(e @ PlugError::NotFound(_)) => Err(QmpError::device_not_found(e.to_string())),
        Err(e) => Err(QmpError::generic(e.to_string())),
    }
}

fn answer<T: serde::Serialize>(result: Result<T, String>) -> Result<Value, QmpError> {
    result.map(|value| json!(value)).map_err(QmpError::generic)
}

fn value<T: serde::Serialize>(result: Result<T, HostError>) -> Result<Value, QmpError> {
    result
        .and_then(|value| Ok(serde_json::to_value(value)?))
        .map_err(|e| QmpError::generic(error_chain(&*e)))
}

fn done(result: Result<(), baton_migration::HostError>) -> Result<Value, QmpError> {
    match result {
        Ok(()) => Ok(json!({})),
        Err(e) => Err(QmpError::generic(error_chain(&*e))),
    }
}

/// May be said out of band: takes no lock that somebody holds while waiting.
fn query_yank(vm: &Vm) -> Value {
    match vm.tracker.status().in_progress() {
        true => json!([{ "type": "migration" }]),
        false => json!([]),
    }
}

/// Likewise.
fn yank(vm: &Vm, instances: &[YankInstance]) -> Result<Value, QmpError> {
    let migrating = vm.tracker.status().in_progress();
    let there = |instance: &YankInstance| migrating && *instance == YankInstance::Migration;
    if !instances.iter().all(there) {
        return Err(QmpError::device_not_found("Instance not found"));
    }
    if !instances.is_empty() {
        vm.tracker.cancel();
    }
    Ok(json!({}))
}

/// Only a pause before the switchover can be ended.
fn go_on(vm: &Vm, state: MigrationStatus) -> Result<(), HostError> {
    let now = vm.tracker.status();
    if state != now {
        return Err(NotPaused(now).into());
    }
    Ok(vm.tracker.proceed()?)
}

fn capabilities(vm: &Vm) -> Value {
    let on = vm.state().settings.capabilities;
    let row = |capability| json!({ "capability": capability, "state": on.contains(capability) });
    Capability::ALL.into_iter().map(row).collect()
}

fn query_migrate(vm: &Vm) -> Result<Value, QmpError> {
    let mut info = vm.tracker.info();
    let state = vm.state();
    if let Some(machine) = &state.machine {
        let blockers = blockers::of_machine(vm, machine, state.settings.parameters.mode);
        info.blocked_reasons = blockers.iter().map(ToString::to_string).collect();
    }
    serde_json::to_value(info).map_err(|e| QmpError::generic(e.to_string()))
}

fn devices(vm: &Vm) -> Value {
    let state = vm.state();
    let Some(machine) = &state.machine else {
        return json!([]);
    };
    let row = |device: &crate::machine::MachineDevice| {
        let mut row = json!({
            "id": device.id(),
            "driver": device.device_type().name,
            "bus": device.device_type().bus.as_str(),
            "address": device.place(),
            "failed": false,
            "hotplugged": device.option().hotplugged,
            "arguments": device.pinned_option().arguments(),
        });
        if let Some(reason) = machine.failures().get(device.id()) {
            row["failed"] = true.into();
            row["reason"] = reason.into();
        }
        row
    };
    let rows = |device: &MachineDevice| {
        let (bus, kind) = device.child_bus().unwrap_or_default();
        let child = |(child, said): (&Child, &DeviceOption)| {
            json!({
                "id": child.config.id,
                "driver": child.device_type,
                "bus": kind,
                "address": bus,
                "failed": false,
                "hotplugged": said.hotplugged,
                "arguments": said.arguments(),
            })
        };
        let children: Vec<_> = device.children().map(child).collect();
        std::iter::once(row(device)).chain(children)
    };
    machine.devices().iter().flat_map(rows).collect()
}

/// The character devices. Of one behind a child, such as a port, the frontend is open when a program
/// in the guest has opened that.
fn chardevs(vm: &Vm) -> Vec<ChardevInfo> {
    let mut all = vm.chardevs.query();
    let state = vm.state();
    let Some(machine) = &state.machine else {
        return all;
    };
    for device in machine.devices() {
        for (child, _) in device.children() {
            for chardev in plugin::chardevs(device.device_type(), child) {
                if let Some(info) = all.iter_mut().find(|info| info.label == chardev) {
                    info.frontend_open &= machine.opened().is_open(&child.config.id);
                }
            }
        }
    }
    all
}

fn address_spaces(vm: &Vm) -> Value {
    let state = vm.state();
    let spaces = state.machine.iter().flat_map(Machine::address_spaces);
    let range = |range: &MappedRange| {
        let kind = if range.ram { "ram" } else { "i/o" };
        json!({ "base": range.base, "last": range.last, "kind": kind, "name": range.name })
    };
    let space = |space: MappedSpace| {
        let ranges: Value = space.ranges.iter().map(range).collect();
        json!({ "name": space.name, "last": space.last, "ranges": ranges })
    };
    spaces.map(space).collect()
}

fn plugins(vm: &Vm) -> Value {
    let row = |plugin: &crate::plugin::Plugin| {
        let mut row = json!({
            "file": plugin.path.display().to_string(),
            "name": plugin.descriptor.name,
            "version": plugin.descriptor.version,
            "abi": format!("{}.{}", plugin.magic.abi_major, plugin.magic.abi_minor),
            "api-version": plugin.magic.api_version(),
            "devices": plugin.descriptor.devices.iter().map(|d| &d.name).collect::<Vec<_>>(),
        });
        if let Some(id) = &plugin.build_id {
            row["build-id"] = id.as_str().into();
        }
        row
    };
    vm.registry().plugins().map(row).collect()
}
