//! The VM: the machine with its runstate, and everything that may be asked of it.

mod running;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use baton_migration::blockers::Blockers;
use baton_migration::fds::FdTable;
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::handover::TargetHandover;
use baton_migration::settings::{Capability, ParameterChanges, Settings};
use baton_migration::status::{MigrationStatus, Tracker};
use baton_migration::{HostError, Mode};
use baton_plugin_api::Object;

use crate::blockers;
use crate::chardev::Chardevs;
use crate::cli::{DeviceOption, Options, children};
use crate::handover::InheritedMonitors;
use crate::machine::events::MachineEvent;
use crate::machine::{Inventory, Machine, MachineDevice, Origin, Wanted};
use crate::memory;
use crate::monitor::{Events, Monitor};
use crate::nodes::Nodes;
use crate::plugin::{Plugin, Registry};
use crate::query;
use crate::runstate::RunState;

/// A VM. Every method may be called from any thread.
pub struct Vm {
    /// What the command line asked for.
    pub options: Options,
    /// The plugins.
    registry: Mutex<Arc<Registry>>,
    /// Where each plugin was loaded from at the start, by its name.
    places: BTreeMap<String, PathBuf>,
    /// Where QMP events go.
    pub events: Events,
    /// The migration's status.
    pub tracker: Arc<Tracker>,
    /// What the machine itself knows to block migrations.
    pub blockers: Blockers,
    /// The character devices.
    pub chardevs: Arc<Chardevs>,
    /// To the main thread.
    pub requests: Sender<MachineEvent>,
    /// Whether `MIGRATION` is emitted: the capability `events`, for those who do not hold the state.
    migration_events: Arc<AtomicBool>,
    state: Mutex<State>,
    /// The monitors, while they are served.
    monitor: Mutex<Option<Monitor>>,
    /// The source's monitors, until the guest is here.
    inherited: Mutex<Option<InheritedMonitors>>,
    /// The process that was started to take the guest.
    successor: Mutex<Option<u32>>,
}

/// What changes.
pub struct State {
    /// The machine; gone once another process has it, not there yet before it came.
    pub machine: Option<Machine>,
    /// The devices that it has, or will have.
    pub devices: Vec<DeviceOption>,
    /// Block nodes that have come since the process was started.
    pub nodes: Nodes,
    /// Objects that have come since the process was started.
    pub objects: Vec<Object>,
    /// What it is doing.
    pub runstate: RunState,
    /// Whether the monitors are another process's, and the last client has left.
    pub deserted: bool,
    /// Migration parameters and capabilities.
    pub settings: Settings,
    /// An incoming handover that waits for `migrate-incoming`.
    pub deferred: Option<Deferred>,
    /// When the guest's clock wakes it; it counts in runstate `suspended` alone.
    alarm: Option<SystemTime>,
    /// The devices of the guest that is to come, as far as its source has told.
    pub expected: Option<Inventory>,
    /// Whether the guest has asked for a reset that waits for the end of a migration.
    pub reset_later: bool,
    /// Whether the machine is to boot before it runs for the first time.
    pub unbooted: bool,
    /// Where the guest is kept that was here.
    pub kept_in: Option<String>,
    /// Whether the guest is let run once it has come in.
    pub autostart: bool,
    /// Whether a handover is under way in either direction.
    pub migrating: bool,
}

/// A handover that waits for `migrate-incoming`.
pub enum Deferred {
    /// Of a guest that runs in another process meanwhile.
    Transfer(Box<TargetHandover>),
    /// Of a guest that stands still, in what this program inherits. The main thread has that.
    Inherited {
        /// Where the old program has written the state as well.
        uri: Option<String>,
    },
}

impl State {
    /// Boots a machine that was left for later.
    pub fn boot_if_needed(&mut self) -> Result<(), HostError> {
        if let (true, Some(machine)) = (self.unbooted, &mut self.machine) {
            machine.boot()?;
            self.unbooted = false;
        }
        Ok(())
    }

    /// Whether the guest sleeps, in whatever runstate.
    pub fn guest_sleeps(&self) -> bool {
        self.machine.as_ref().is_some_and(Machine::is_asleep)
    }
}

impl Vm {
    /// A VM with no machine yet.
    pub fn new(
        mut options: Options,
        registry: Registry,
        events: Events,
        requests: Sender<MachineEvent>,
    ) -> Result<Arc<Self>, HostError> {
        let settings = options.settings.clone();
        let on = settings.capabilities.contains(Capability::Events);
        let migration_events = Arc::new(AtomicBool::new(on));
        let (sink, wanted) = (events.clone(), Arc::clone(&migration_events));
        let (passes, wanted_passes) = (events.clone(), Arc::clone(&migration_events));
        let tracker = Tracker::new(Box::new(move |status: MigrationStatus| {
            if wanted.load(Ordering::SeqCst) {
                sink.emit("MIGRATION", Some(serde_json::json!({ "status": status })));
            }
        }))?;
        let tracker = tracker.on_pass(Box::new(move |pass| {
            if wanted_passes.load(Ordering::SeqCst) {
                passes.emit("MIGRATION_PASS", Some(serde_json::json!({ "pass": pass })));
            }
        }));
        let known = Blockers::new();
        for blocker in blockers::of_options(&options) {
            // Nothing migrates yet, so that nothing is refused.
            let _ = known.add("", blocker);
        }
        let (runstate, autostart) = match options.incoming {
            Some(_) => (RunState::InMigrate, !options.paused),
            None => (RunState::Prelaunch, !options.paused),
        };
        options.devices = children::seat(&options.devices, &registry)?;
        let devices = options.devices.clone();
        let place = |plugin: &Plugin| (plugin.descriptor.name.clone(), plugin.path.clone());
        let places = registry.plugins().map(place).collect();
        let chardevs = Arc::new(Chardevs::new()?);
        let keys = requests.clone();
        chardevs.on_exit(move || {
            // The main thread lives until it hears this.
            let cause = "host-ui";
            let _ = keys.send(MachineEvent::Quit { cause });
        });
        Ok(Arc::new(Self {
            options,
            registry: Mutex::new(Arc::new(registry)),
            places,
            chardevs,
            events,
            tracker: Arc::new(tracker),
            blockers: known,
            requests,
            migration_events,
            state: Mutex::new(State {
                machine: None,
                nodes: Nodes::default(),
                objects: Vec::new(),
                deserted: false,
                devices,
                runstate,
                settings,
                deferred: None,
                alarm: None,
                expected: None,
                reset_later: false,
                unbooted: false,
                kept_in: None,
                autostart,
                migrating: false,
            }),
            monitor: Mutex::new(None),
            inherited: Mutex::new(None),
            successor: Mutex::new(None),
        }))
    }

    /// The plugins as they are now.
    pub fn registry(&self) -> Arc<Registry> {
        let registry = self.registry.lock();
        Arc::clone(&registry.unwrap_or_else(PoisonError::into_inner))
    }

    /// These are the plugins from here on.
    pub fn set_registry(&self, registry: Registry) {
        let mut now = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(registry);
    }

    /// Where the plugin of this name was loaded from at the start.
    pub fn first_place(&self, plugin: &str) -> Option<PathBuf> {
        self.places.get(plugin).cloned()
    }

    /// The VM's state. It is held while the guest is stopped or let run, and never while waiting
    /// for somebody else.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monitors: nobody serves them until they are given back.
    pub fn take_monitor(&self) -> Option<Monitor> {
        self.monitor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Serves monitors on character devices as the others, from here on.
    pub fn serve_chardevs(self: &Arc<Self>) {
        let vm = Arc::downgrade(self);
        self.chardevs.serve_monitors(move |mode, stream, keys| {
            // While the monitors change there is none.
            let add = |monitor: &mut Monitor| monitor.add(mode, stream, keys);
            vm.upgrade().and_then(|vm| vm.with_monitor(add)).is_some()
        });
    }

    /// The process that was started last to take the guest, while it lives.
    pub fn successor(&self) -> MutexGuard<'_, Option<u32>> {
        self.successor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The source's monitors that this process goes on with, from when they came until the guest does.
    pub fn inherited_monitors(&self) -> MutexGuard<'_, Option<InheritedMonitors>> {
        self.inherited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the monitors, if they are served.
    pub fn with_monitor<T>(&self, f: impl FnOnce(&mut Monitor) -> T) -> Option<T> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        monitor.as_mut().map(f)
    }

    /// These are the monitors from here on.
    pub fn set_monitor(&self, monitor: Monitor) {
        *self.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(monitor);
    }

    /// The guest that was waited for is here.
    pub fn arrived(&self) {
        // The main thread lives longer than the guest.
        let _ = self.requests.send(MachineEvent::Arrived);
    }

    /// Sets migration parameters.
    pub fn set_parameters(&self, changes: ParameterChanges) -> Result<(), HostError> {
        let mut state = self.state();
        if !changes.only_limits() {
            state.settings_may_change()?;
        }
        state.settings.parameters.apply(changes);
        Ok(())
    }

    /// Switches migration capabilities on and off: all of `changes` or none.
    pub fn set_capabilities(&self, changes: &[(Capability, bool)]) -> Result<(), HostError> {
        let mut state = self.state();
        state.settings_may_change()?;
        let capabilities = state.settings.capabilities.with(changes)?;
        state.settings.capabilities = capabilities;
        let events = capabilities.contains(Capability::Events);
        self.migration_events.store(events, Ordering::SeqCst);
        Ok(())
    }

    /// Opens the character devices of the command line.
    pub fn open_chardevs(&self) -> Result<(), HostError> {
        let restoring = self.options.incoming.is_some();
        Ok(self
            .chardevs
            .open(&self.options.chardevs, None, restoring)?)
    }

    /// Ends the process if its guest is another's, and no client is left that could say so.
    pub fn end_if_deserted(&self) {
        let state = self.state();
        if state.deserted && state.runstate == RunState::PostMigrate {
            // As if the last client had said so. The main thread lives until it hears this.
            let cause = "host-qmp-quit";
            let _ = self.requests.send(MachineEvent::Quit { cause });
        }
    }

    /// The guest has begun or ceased to use children of devices: QEMU's event VSERPORT_CHANGE for each
    /// that has an id.
    pub fn guest_opened(&self) {
        let state = self.state();
        let Some(machine) = &state.machine else {
            return;
        };
        let children = machine.devices().iter().map(MachineDevice::option);
        let said: Vec<_> = children.flat_map(|device| &device.children).collect();
        for (id, open) in machine.opened().take() {
            let named =
                |child: &&&DeviceOption| child.id.as_ref().is_some_and(|own| own.as_str() == id);
            if said.iter().any(|child| named(&child)) {
                let data = serde_json::json!({ "id": id, "open": open });
                self.events.emit("VSERPORT_CHANGE", Some(data));
            }
        }
    }

    /// The guest has set clocks: QEMU's event RTC_CHANGE for each.
    pub fn clocks_set(&self) {
        let state = self.state();
        let Some(machine) = &state.machine else {
            return;
        };
        for (id, ahead) in machine.clocks().take() {
            let device = machine.devices().iter().find(|device| device.id() == id);
            if let Some(path) = device.map(query::device_path) {
                let data = serde_json::json!({ "offset": ahead, "qom-path": path });
                self.events.emit("RTC_CHANGE", Some(data));
            }
        }
    }

    /// Builds a machine, which is nobody's yet, on character devices that are open.
    pub fn build(&self, origin: Origin<'_>) -> Result<Machine, HostError> {
        let (options, registry) = (&self.options, self.registry());
        let (devices, drives, objects) = {
            let state = self.state();
            let devices = state.devices.clone();
            (devices, state.drives(options), state.objects(options))
        };
        let wanted = Wanted {
            devices: &devices,
            drives: &drives,
            objects: &objects,
        };
        let (chardevs, requests) = (&self.chardevs, &self.requests);
        Machine::build(options, wanted, &registry, origin, chardevs, requests)
    }

    /// Builds the machine on what another process hands over.
    pub fn build_on(
        &self,
        mode: Mode,
        fds: &Arc<FdTable>,
        source: &MachineFingerprint,
    ) -> Result<Machine, HostError> {
        self.chardevs
            .open(&self.options.chardevs, Some(fds), true)?;
        self.build(Origin::HandedOver(mode, fds, source))
    }

    /// Builds and boots the machine, which does not run yet. With `-S`, RAM in a file that outlasts
    /// processes is left alone until the guest starts: it may hold the guest that is loaded instead.
    pub fn power_on(&self) -> Result<(), HostError> {
        let mut machine = self.build(Origin::Fresh)?;
        blockers::check_only_migratable(&self.options, Some(&machine))?;
        let later = self.options.paused && memory::lasting(&self.options.memory).is_some();
        if !later {
            machine.boot()?;
        }
        let mut state = self.state();
        state.machine = Some(machine);
        state.unbooted = later;
        Ok(())
    }
}

impl State {
    /// The migration has ended: whatever waited for that is done.
    pub fn migration_over(&mut self) {
        self.migrating = false;
        if let Some(machine) = &self.machine {
            machine.hotplug().announce_ejected();
        }
    }

    /// Notes which devices the machine has, and where.
    pub fn note_devices(&mut self) {
        if let Some(machine) = &self.machine {
            let devices = machine.devices().iter();
            self.devices = devices.map(MachineDevice::pinned_option).collect();
        }
    }

    /// What a migration has begun with stays as it is.
    fn settings_may_change(&self) -> Result<(), HostError> {
        match self.migrating {
            true => Err("There's a migration process in progress".into()),
            false => Ok(()),
        }
    }
}
