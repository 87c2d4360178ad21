//! Loading: the order of events, whatever goes wrong.

use super::fakes::{FakeHost, FakeSink, Folder, Stage, fingerprint};
use crate::HostError;
use crate::address::parse_uri;
use crate::checkpoint::{
    Cancel, Checkpoint, CheckpointOutcome, Kept, Place, RamLayout, RestoreHost, RestoreOutcome,
    Writing, keeper, restore,
};
use crate::fingerprint::MachineFingerprint;
use crate::settings::Settings;
use crate::status::MigrationStatus::{Active, Cancelled, Cancelling, Completed, Failed, Setup};
use crate::stream::StateImage;

struct Restored {
    stage: Stage,
    fails_at: &'static str,
    cancels_at: &'static str,
    cpus: u32,
    in_place: bool,
}

impl Restored {
    fn new(stage: &Stage) -> Self {
        Self {
            stage: stage.clone(),
            fails_at: "",
            cancels_at: "",
            cpus: 1,
            in_place: true,
        }
    }

    fn act(&self, step: &str) -> Result<(), HostError> {
        self.stage.note(step);
        if step == self.cancels_at {
            self.stage.tracker.cancel();
        }
        match step == self.fails_at {
            true => Err(format!("{step} went wrong").into()),
            false => Ok(()),
        }
    }
}

impl RestoreHost for Restored {
    fn fingerprint(
        &mut self,
        _source: &MachineFingerprint,
    ) -> Result<MachineFingerprint, HostError> {
        self.act("fingerprint")?;
        Ok(MachineFingerprint {
            vcpus: self.cpus,
            ..fingerprint()
        })
    }

    fn goes_on_in_place(&self) -> bool {
        self.in_place
    }

    fn build(&mut self, kept: &mut Kept, cancel: Cancel<'_>) -> Result<(), HostError> {
        self.act("build")?;
        if kept.header().ram == RamLayout::InPlace {
            return Ok(());
        }
        let sink = FakeSink::new(3 * 4096);
        kept.copy_ram(&sink, cancel)?;
        assert_eq!(sink.bytes(), [7; 3 * 4096]);
        Ok(())
    }

    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError> {
        self.act("load")?;
        let registers: String = state.take("cpu/0", 0)?.decode()?;
        assert_eq!(registers, "registers");
        Ok(state.all_taken()?)
    }

    fn start(&mut self) -> Result<(), HostError> {
        self.act("start")
    }

    fn abandon(&mut self) {
        self.stage.note("abandon");
    }
}

/// A guest kept in a file, whose place is returned.
fn kept(folder: &Folder) -> impl Fn() -> Place {
    let uri = format!("file:{}/guest", folder.0.display());
    let place =
        move || Place::of(&parse_uri(&uri).unwrap(), &|_| Err("no descriptors".into())).unwrap();
    let stage = Stage::new(None);
    let mut host = FakeHost::new(&stage);
    let mut keeper = keeper(
        place(),
        crate::Mode::CprReboot,
        Writing::of(&Settings::default()),
    )
    .unwrap();
    let checkpoint = Checkpoint::begin(stage.options(), &mut host, &mut *keeper).unwrap();
    let outcome = checkpoint.run(&mut host, &mut *keeper);
    assert_eq!(outcome, CheckpointOutcome::Completed);
    place
}

#[test]
fn a_kept_guest_is_restored_step_by_step_any_number_of_times() {
    let folder = Folder::new();
    let place = kept(&folder);
    for _ in 0..2 {
        let stage = Stage::new(None);
        let mut host = Restored::new(&stage);
        let outcome = restore(place(), &stage.tracker, &mut host);
        assert_eq!(outcome, Ok(RestoreOutcome::Restored));
        assert_eq!(stage.journal(), ["fingerprint", "build", "load", "start"]);
        assert_eq!(*stage.statuses.lock().unwrap(), [Setup, Active, Completed]);
        assert!(stage.tracker.info().blackout.is_some());
    }
}

#[test]
fn whatever_fails_the_guest_can_be_loaded_again() {
    let folder = Folder::new();
    let place = kept(&folder);
    for step in ["fingerprint", "build", "load", "start"] {
        let stage = Stage::new(None);
        let mut host = Restored::new(&stage);
        host.fails_at = step;
        let outcome = restore(place(), &stage.tracker, &mut host);
        let reason = format!("{step} went wrong");
        assert_eq!(outcome, Ok(RestoreOutcome::Failed { reason }));
        assert!(stage.journal().ends_with(&[step.into(), "abandon".into()]));
        assert_eq!(stage.statuses.lock().unwrap().last(), Some(&Failed));

        host.fails_at = "";
        let outcome = restore(place(), &stage.tracker, &mut host);
        assert_eq!(outcome, Ok(RestoreOutcome::Restored));
    }
}

#[test]
fn another_machine_is_refused_before_it_is_built() {
    let folder = Folder::new();
    let place = kept(&folder);
    let stage = Stage::new(None);
    let mut host = Restored::new(&stage);
    host.cpus = 2;
    let outcome = restore(place(), &stage.tracker, &mut host).unwrap();
    let RestoreOutcome::Failed { reason } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(
        reason.contains("vCPU") || reason.contains("-smp"),
        "{reason}"
    );
    assert_eq!(stage.journal(), ["fingerprint", "abandon"]);
}

#[test]
fn it_can_be_cancelled_before_the_guest_runs() {
    let folder = Folder::new();
    let place = kept(&folder);
    for step in ["fingerprint", "build", "load"] {
        let stage = Stage::new(None);
        let mut host = Restored::new(&stage);
        host.cancels_at = step;
        let outcome = restore(place(), &stage.tracker, &mut host);
        assert_eq!(outcome, Ok(RestoreOutcome::Cancelled), "{step}");
        assert!(!stage.journal().contains(&"start".to_owned()));
        assert!(
            stage
                .statuses
                .lock()
                .unwrap()
                .ends_with(&[Cancelling, Cancelled])
        );
    }
}
