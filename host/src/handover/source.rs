//! The side the guest leaves.
// Giving way to the guest is a system call without a safe wrapper.
#![allow(unsafe_code)]

use std::sync::Arc;

use baton_migration::blockers::{Blocked, OwnedBlocker};
use baton_migration::claim::Reclaimed;
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::handover::{OutgoingFd, SourceHost};
use baton_migration::stream::SectionWriter;
use baton_migration::{HostError, MigrationEvent, Mode};
use nix::errno::Errno;

use super::monitors::OfferedMonitors;
use crate::blockers::Objections;
use crate::machine::events::MachineEvent;
use crate::machine::{GlobalState, HostTime, Machine};
use crate::memory;
use crate::runstate::RunState;
use crate::systemd;
use crate::vm::Vm;

/// The VM as the source of a handover.
pub(super) struct Source {
    vm: Arc<Vm>,
    mode: Mode,
    /// What the guest was doing before the blackout.
    before: RunState,
    /// What devices allow only while the guest is suspended, which it was when they were asked.
    lifted: Vec<OwnedBlocker>,
    /// Whether devices were told to come to rest while the guest ran.
    settled: bool,
    /// Where it is going to be kept, if it is.
    pub(super) kept_in: Option<String>,
    /// What the target may listen on.
    monitors: OfferedMonitors,
}

impl Source {
    pub(super) fn new(vm: Arc<Vm>, mode: Mode) -> Self {
        Self {
            vm,
            mode,
            before: RunState::Paused,
            lifted: Vec::new(),
            settled: false,
            kept_in: None,
            monitors: OfferedMonitors::default(),
        }
    }

    /// A service that moves to another process or program is the same service.
    fn tell_manager(&self, event: MigrationEvent) {
        match (self.mode, event) {
            (Mode::CprTransfer | Mode::CprExec, MigrationEvent::Setup) => {
                systemd::reloading("The guest is being moved");
            }
            (
                Mode::CprTransfer | Mode::CprExec,
                MigrationEvent::Failed | MigrationEvent::Cancelled,
            ) => systemd::ready("The guest goes on, a live update has failed"),
            (Mode::CprTransfer, MigrationEvent::Done) => systemd::succeeded(*self.vm.successor()),
            _ => {}
        }
    }

    pub(super) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    pub(super) fn machine<T>(&self, f: impl FnOnce(&Machine) -> T) -> Result<T, HostError> {
        let state = self.vm.state();
        state
            .machine
            .as_ref()
            .map(f)
            .ok_or_else(|| "There is no machine to migrate".into())
    }
}

impl SourceHost for Source {
    fn device_blockers(&mut self, mode: Mode) -> Vec<OwnedBlocker> {
        let objections = self.machine(|machine| Objections::now(machine, mode));
        let Objections { blocking, lifted } = objections.unwrap_or_default();
        self.lifted = lifted;
        blocking
    }

    fn fingerprint(&mut self) -> MachineFingerprint {
        self.machine(|machine| machine.fingerprint().clone())
            .unwrap_or_default()
    }

    fn notify(&mut self, event: MigrationEvent) -> Result<(), HostError> {
        self.tell_manager(event);
        if event != MigrationEvent::Setup {
            // The end, which clients are told next: whatever they want then is not too early.
            self.vm.state().migration_over();
        }
        match event {
            MigrationEvent::Setup if self.mode.preserves_fds() => self.vm.chardevs.freeze(),
            MigrationEvent::Cancelled | MigrationEvent::Failed => self.vm.chardevs.thaw(),
            _ => {}
        }
        self.machine(|machine| {
            machine
                .devices()
                .iter()
                .try_for_each(|device| device.notify(event))
        })?
        .map_err(HostError::from)
    }

    fn fds(&mut self) -> Result<Vec<OutgoingFd>, HostError> {
        let mode = self.mode;
        let mut all = self.machine(|machine| machine.fds(mode))??;
        if mode == Mode::CprTransfer {
            self.monitors = OfferedMonitors::offer(&self.vm, &mut all)?;
        }
        Ok(all)
    }

    fn preview(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        memory::warm_program();
        self.machine(|machine| machine.preview(out))?
    }

    fn settle(&mut self) {
        self.settled = true;
        let state = self.vm.state();
        if state.runstate.is_running()
            && let Some(machine) = &state.machine
        {
            machine.settle();
        }
    }

    fn stop_and_quiesce(&mut self) -> Result<(), HostError> {
        self.monitors.shut(&self.vm, true);
        let mut state = self.vm.state();
        self.before = state.runstate;
        if matches!(state.runstate, RunState::Shutdown | RunState::InternalError) {
            return Err("The guest has ended meanwhile".into());
        }
        if !self.lifted.is_empty() && !state.guest_sleeps() {
            // It was woken since. From here on nobody wakes it: the state is held, then the runstate
            // is another.
            return Err(Blocked {
                mode: self.mode,
                reasons: std::mem::take(&mut self.lifted),
            }
            .into());
        }
        state.runstate = RunState::FinishMigrate;
        if self.before.is_live() {
            self.vm.events.emit("STOP", None);
        }
        if self.before.is_running() {
            let stopped = self.vm.stop_machine(&mut state, true);
            if state.guest_sleeps() {
                // Nobody had acted on that yet.
                self.before = RunState::Suspended;
            }
            stopped?;
        }
        self.vm.chardevs.hold()?;
        match self.mode {
            Mode::Normal => state
                .machine
                .as_ref()
                .ok_or("There is no machine to migrate")?
                .release_shared(),
            _ => Ok(()),
        }
    }

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        let runstate = self.before.as_str().to_owned();
        self.machine(|machine| machine.save(&GlobalState { runstate }, out))??;
        // It may be another host that loads it, or one that was started anew.
        if matches!(self.mode, Mode::CprReboot | Mode::Normal) {
            HostTime::now().save(out)?;
        }
        match self.kept_in {
            Some(_) => self.machine(Machine::images)??.save(out),
            None => Ok(()),
        }
    }

    fn resume(&mut self, _proof: Reclaimed) {
        if self.kept_in.is_some() {
            memory::leave_store(&self.vm.options.memory);
        }
        self.vm.chardevs.resume();
        self.monitors.shut(&self.vm, false);
        let settled = std::mem::take(&mut self.settled);
        let mut state = self.vm.state();
        if settled
            && state.runstate.is_running()
            && let Some(machine) = &mut state.machine
        {
            // It was not stopped: what has come to rest is started again, from a full stop.
            match machine.stop(false).and_then(|()| machine.start()) {
                Ok(RunState::Suspended) => {
                    self.vm.sleeps(&mut state);
                    self.vm.events.emit("SUSPEND", None);
                }
                Ok(_) => {}
                Err(e) => tracing::error!("the guest cannot be resumed: {e}"),
            }
            return;
        }
        if state.runstate != RunState::FinishMigrate {
            return;
        }
        if std::mem::take(&mut state.reset_later) {
            // The main thread lives until it hears this.
            let _ = self.vm.requests.send(MachineEvent::Reset);
        }
        if !self.before.is_live() {
            state.runstate = self.before;
            return;
        }
        state.runstate = RunState::Paused;
        if let Err(e) = self.vm.run(&mut state) {
            tracing::error!("the guest cannot be resumed: {e}");
            state.runstate = RunState::InternalError;
        }
    }

    fn postmigrate(&mut self) {
        let machine = self.vm.state().machine.take();
        if self.mode == Mode::CprTransfer {
            self.vm.chardevs.let_go();
        }
        self.monitors.settle(&self.vm);
        // Unmapping much memory takes a while, and the guest, which runs elsewhere, goes first. A
        // thread that cannot be started lets go of the machine at once.
        let teardown = std::thread::Builder::new()
            .name("teardown".into())
            .spawn(move || {
                give_way();
                drop(machine);
            });
        if let Ok(teardown) = teardown
            && teardown.join().is_err()
        {
            tracing::error!("the machine that was given away did not end well");
        }
        // Who sees this finds everything let go of.
        let mut state = self.vm.state();
        state.runstate = RunState::PostMigrate;
        state.kept_in = self.kept_in.take();
        drop(state);
        // The last client may have left while that was done.
        self.vm.end_if_deserted();
    }
}

/// What this thread still does is less urgent than all else. It gets a tenth of what others do, and not
/// nothing: somebody waits for it, and vCPUs may leave no CPU idle.
fn give_way() {
    use nix::libc::{PRIO_PROCESS, getpriority, setpriority};
    // SAFETY: both are about the calling thread's niceness and nothing else (sched(7): on Linux it is a
    // thread's).
    let given = unsafe { setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + LESS) };
    if given != 0 {
        tracing::debug!("the thread keeps its priority: {}", Errno::last());
    }
}

/// How much nicer; each step is a quarter more for the others (sched(7)).
const LESS: i32 = 10;
