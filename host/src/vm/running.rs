//! The guest runs, stands still, sleeps, is reset and ends.

use std::time::{Duration, SystemTime};

use baton_migration::HostError;

use super::{State, Vm};
use crate::machine::events::MachineEvent;
use crate::machine::{Machine, WakeSource};
use crate::runstate::RunState;
use crate::systemd;

impl Vm {
    /// Lets the guest run.
    pub fn cont(&self) -> Result<(), HostError> {
        let mut state = self.state();
        if state.runstate == RunState::InMigrate {
            // As in QEMU: the guest will run once it is here.
            state.autostart = true;
            return Ok(());
        }
        if let (RunState::PostMigrate, Some(place)) = (state.runstate, &state.kept_in) {
            return Err(format!(
                "The guest is kept in '{place}'; letting it run here too would destroy it. Quit \
                 this process, and load the guest in another with -incoming"
            )
            .into());
        }
        if let Some(refusal) = state.runstate.cont_refusal() {
            return Err(refusal.into());
        }
        self.run(&mut state)
    }

    /// Stops the guest.
    pub fn stop(&self) -> Result<(), HostError> {
        let mut state = self.state();
        match state.runstate {
            RunState::InMigrate => state.autostart = false,
            runstate if runstate.is_live() => self.halt(&mut state, RunState::Paused)?,
            _ => {}
        }
        Ok(())
    }

    /// The guest has suspended itself.
    pub fn suspend(&self) {
        let mut state = self.state();
        // Whoever stopped it since has seen that it sleeps.
        if state.runstate != RunState::Running || !state.guest_sleeps() {
            return;
        }
        if let Err(e) = self.stop_machine(&mut state, false) {
            tracing::error!("while the guest was suspended: {e}");
        }
        self.sleeps(&mut state);
    }

    /// The machine, which sleeps and does nothing, waits to be woken.
    pub fn sleeps(&self, state: &mut State) {
        state.runstate = RunState::Suspended;
        state.alarm = state.machine.as_ref().and_then(Machine::alarm);
        if state.alarm.is_some() {
            // The main thread, which waits, lives until it hears this.
            let _ = self.requests.send(MachineEvent::AlarmSet);
        }
    }

    /// How long it is to the alarm of a suspended guest, if it has one.
    pub fn until_alarm(&self) -> Option<Duration> {
        let state = self.state();
        let at = state
            .alarm
            .filter(|_| state.runstate == RunState::Suspended)?;
        Some(at.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The alarm of a suspended guest goes off, unless somebody came first or it is not time yet.
    pub fn ring(&self) {
        let mut state = self.state();
        let due = state.alarm.is_some_and(|at| at <= SystemTime::now());
        if state.runstate != RunState::Suspended || !due {
            return;
        }
        // Once, also if the guest has left nowhere to go on at.
        state.alarm = None;
        if let Err(e) = self.wake_up_in(&mut state, WakeSource::Alarm) {
            tracing::error!("the clock's alarm: {}", baton_migration::error_chain(&*e));
        }
    }

    /// The guest is woken.
    ///
    /// # Errors
    ///
    /// It does not sleep (QEMU's text), or it has left nowhere to go on at and sleeps on.
    pub fn wake_up(&self, source: WakeSource) -> Result<(), HostError> {
        let mut state = self.state();
        self.wake_up_in(&mut state, source)
    }

    fn wake_up_in(&self, state: &mut State, source: WakeSource) -> Result<(), HostError> {
        if state.runstate != RunState::Suspended {
            return Err("Unable to wake up: guest is not in suspended state".into());
        }
        let machine = state
            .machine
            .as_mut()
            .ok_or("There is no machine in this process")?;
        let vector = machine.waking_vector()?;
        let woken = machine.wake(vector, source).and_then(|()| machine.start());
        match woken {
            Ok(runstate) => {
                state.runstate = runstate;
                self.events.emit("WAKEUP", None);
                Ok(())
            }
            Err(e) => {
                state.runstate = RunState::InternalError;
                self.events.emit("STOP", None);
                Err(e)
            }
        }
    }

    /// The guest resets, at its own or an operator's wish.
    pub fn reset(&self, guest: bool) -> Result<(), HostError> {
        let mut state = self.state();
        let before = state.runstate;
        if before == RunState::InMigrate {
            // What is built here already is on the memory of a guest that runs elsewhere.
            return Err("Guest is waiting for an incoming migration".into());
        }
        if guest && state.guest_sleeps() {
            // It slept before it came to that.
            return Ok(());
        }
        if before == RunState::FinishMigrate {
            // What is being saved must stay as it is.
            if !guest {
                return Err("Migration is not finalized yet; reset the guest once it is".into());
            }
            state.reset_later = true;
            return Ok(());
        }
        // A reset boots it.
        state.unbooted = false;
        let Some(machine) = state.machine.as_mut() else {
            return Err("There is no machine in this process to reset".into());
        };
        let running = before.is_running();
        // A device that fails to stop is reset all the same.
        if running && let Err(e) = machine.stop(false) {
            tracing::error!("while stopping for a reset: {e}");
        }
        machine.hotplug().eject_requested();
        self.remove_ejected_from(&mut state);
        let Some(machine) = state.machine.as_mut() else {
            return Err("There is no machine in this process to reset".into());
        };
        let reset = machine.reset();
        let reason = if guest {
            "guest-reset"
        } else {
            "host-qmp-system-reset"
        };
        let data = serde_json::json!({ "guest": guest, "reason": reason });
        self.events.emit("RESET", Some(data));
        if let Err(e) = reset {
            state.runstate = RunState::InternalError;
            self.events.emit("STOP", None);
            return Err(e);
        }
        if running {
            machine.start()?;
        } else if matches!(before, RunState::Shutdown | RunState::InternalError) {
            state.runstate = RunState::Paused;
        } else if before == RunState::Suspended {
            // As in QEMU: it is for the operator to start it.
            state.runstate = RunState::Prelaunch;
        }
        Ok(())
    }

    /// A vCPU cannot go on: everything stops.
    pub fn fail(&self, reason: &str) {
        tracing::error!("the guest cannot go on: {reason}");
        let mut state = self.state();
        if let Err(e) = self.halt(&mut state, RunState::InternalError) {
            tracing::error!("while stopping it: {e}");
        }
    }

    /// Somebody presses the power button, which wakes a guest that sleeps.
    pub fn power_button(&self) -> Result<(), HostError> {
        let mut state = self.state();
        if state.runstate == RunState::InMigrate {
            return Err("Guest is waiting for an incoming migration".into());
        }
        let machine = state
            .machine
            .as_ref()
            .ok_or("There is no machine in this process")?;
        if state.runstate != RunState::Suspended {
            machine.press_power_button();
        }
        self.events.emit("POWERDOWN", None);
        match state.runstate {
            RunState::Suspended => self.wake_up_in(&mut state, WakeSource::PowerButton),
            _ => Ok(()),
        }
    }

    /// Ends the guest's run in this process, with the event that says why.
    pub fn shut_down(&self, guest: bool, reason: &str) {
        let mut state = self.state();
        if state.runstate.is_running() {
            self.events.emit("STOP", None);
        }
        // Dropping the machine stops vCPUs and devices first.
        let running = state.runstate.is_running();
        if let Some(machine) = state.machine.as_mut()
            && running
            && let Err(e) = machine.stop(false)
        {
            tracing::error!("while shutting down: {e}");
        }
        // A process whose guest is elsewhere ends without the service.
        if state.runstate != RunState::PostMigrate {
            systemd::stopping();
        }
        state.runstate = RunState::Shutdown;
        let data = serde_json::json!({ "guest": guest, "reason": reason });
        self.events.emit("SHUTDOWN", Some(data));
    }

    /// Lets the stopped machine run, or sleep on if it did.
    pub fn run(&self, state: &mut State) -> Result<(), HostError> {
        if state.runstate.is_live() {
            return Ok(());
        }
        state.boot_if_needed()?;
        let machine = state
            .machine
            .as_ref()
            .ok_or("There is no machine in this process")?;
        if state.runstate == RunState::Paused {
            machine.announce_pause();
        }
        let runstate = machine.start()?;
        self.went_live(state, runstate);
        Ok(())
    }

    /// The machine, which did not, runs or sleeps from now on.
    pub fn went_live(&self, state: &mut State, runstate: RunState) {
        match runstate {
            RunState::Suspended => self.sleeps(state),
            _ => state.runstate = runstate,
        }
        self.events.emit("RESUME", None);
    }

    /// Stops the machine, which runs or sleeps.
    fn halt(&self, state: &mut State, to: RunState) -> Result<(), HostError> {
        let stopped = match state.runstate {
            RunState::Running => self.stop_machine(state, false),
            RunState::Suspended => Ok(()),
            _ => return Ok(()),
        };
        state.runstate = to;
        self.events.emit("STOP", None);
        stopped
    }

    /// Stops the running machine, whose guest may have suspended itself just then: clients hear of
    /// that.
    pub fn stop_machine(&self, state: &mut State, save: bool) -> Result<(), HostError> {
        let stopped = state
            .machine
            .as_mut()
            .map_or(Ok(()), |machine| machine.stop(save));
        if state.guest_sleeps() {
            self.events.emit("SUSPEND", None);
        }
        stopped
    }
}
