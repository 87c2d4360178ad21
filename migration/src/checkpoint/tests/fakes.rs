//! A machine without a guest and a place without a disk. Both write into one journal, so that the
//! order of events across them can be looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::blockers::{Blockers, OwnedBlocker};
use crate::checkpoint::{Cancel, CheckpointHost, CheckpointOptions, Keeper, RamPart, RamSource};
use crate::claim::Reclaimed;
use crate::fingerprint::{MachineFingerprint, RamRegion};
use crate::handover::{OutgoingFd, SourceHost};
use crate::status::{MigrationStatus, Tracker};
use crate::stream::{SectionWriter, StateImage};
use crate::{HostError, MigrationEvent, Mode};

/// The steps of a checkpoint, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Setup,
    Open,
    Prepare,
    Stop,
    Save,
    Ram,
    Write,
    Finish,
}

impl Step {
    pub(super) const ALL: [Step; 8] = [
        Step::Setup,
        Step::Open,
        Step::Prepare,
        Step::Stop,
        Step::Save,
        Step::Ram,
        Step::Write,
        Step::Finish,
    ];

    /// Whether its error is the command's.
    pub(super) fn in_begin(self) -> bool {
        matches!(self, Step::Setup | Step::Open)
    }

    /// Whether the guest was stopped when it failed.
    pub(super) fn in_blackout(self) -> bool {
        !self.in_begin() && self != Step::Prepare
    }
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Fail,
    /// An operator cancels, and the step succeeds all the same.
    Cancel,
    /// An operator cancels, and the step fails of it.
    CancelAndFail,
}

/// What all fakes of one test share.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) plan: Option<(Step, Trouble)>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) statuses: Arc<Mutex<Vec<MigrationStatus>>>,
    /// Everything that happened, in order.
    pub(super) journal: Arc<Mutex<Vec<String>>>,
    pub(super) blockers: Blockers,
}

impl Stage {
    pub(super) fn new(plan: Option<(Step, Trouble)>) -> Self {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&statuses);
        let observer = move |status| seen.lock().unwrap().push(status);
        Self {
            plan,
            tracker: Arc::new(Tracker::new(Box::new(observer)).unwrap()),
            statuses,
            journal: Arc::default(),
            blockers: Blockers::new(),
        }
    }

    pub(super) fn options(&self) -> CheckpointOptions<'_> {
        CheckpointOptions {
            mode: Mode::CprReboot,
            producer: "test".into(),
            tracker: Arc::clone(&self.tracker),
            blockers: &self.blockers,
        }
    }

    pub(super) fn note(&self, what: impl Into<String>) {
        self.journal.lock().unwrap().push(what.into());
    }

    pub(super) fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }

    fn act(&self, step: Step) -> Result<(), HostError> {
        self.note(format!("{step:?}"));
        let failure = || Err(format!("{step:?} went wrong").into());
        match self.plan {
            Some((at, trouble)) if at == step => {
                if trouble != Trouble::Fail {
                    self.tracker.cancel();
                }
                match trouble {
                    Trouble::Cancel => Ok(()),
                    Trouble::Fail | Trouble::CancelAndFail => failure(),
                }
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn fingerprint() -> MachineFingerprint {
    MachineFingerprint {
        machine_type: "baton-1.0".into(),
        vcpus: 1,
        ram: vec![RamRegion {
            guest_address: 0,
            size: 3 * 4096,
        }],
        cpu: BTreeMap::new(),
    }
}

pub(super) struct FakeHost {
    pub(super) stage: Stage,
    pub(super) runs: bool,
    pub(super) blockers: Vec<OwnedBlocker>,
}

impl FakeHost {
    pub(super) fn new(stage: &Stage) -> Self {
        Self {
            stage: stage.clone(),
            runs: true,
            blockers: Vec::new(),
        }
    }
}

impl SourceHost for FakeHost {
    fn device_blockers(&mut self, _: Mode) -> Vec<OwnedBlocker> {
        self.blockers.clone()
    }

    fn fingerprint(&mut self) -> MachineFingerprint {
        fingerprint()
    }

    fn notify(&mut self, event: MigrationEvent) -> Result<(), HostError> {
        match event {
            MigrationEvent::Setup => self.stage.act(Step::Setup),
            other => {
                self.stage.note(format!("notify {other:?}"));
                Ok(())
            }
        }
    }

    fn fds(&mut self) -> Result<Vec<OutgoingFd>, HostError> {
        panic!("no descriptor outlives the process")
    }

    fn preview(&mut self, _: &mut SectionWriter<'_>) -> Result<(), HostError> {
        panic!("nobody waits for a preview")
    }

    fn settle(&mut self) {}

    fn stop_and_quiesce(&mut self) -> Result<(), HostError> {
        assert!(self.runs, "stopped twice");
        self.runs = false;
        self.stage.act(Step::Stop)
    }

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        self.stage.act(Step::Save)?;
        Ok(out.put("cpu/0", 0, 1, "registers")?)
    }

    fn resume(&mut self, proof: Reclaimed) {
        drop(proof);
        assert!(!self.runs, "resumed although it runs");
        self.stage.note("resume");
        self.runs = true;
    }

    fn postmigrate(&mut self) {
        assert!(!self.runs, "postmigrate although it runs");
        self.stage.note("postmigrate");
    }
}

impl CheckpointHost for FakeHost {
    fn prepare(&mut self) -> Result<(), HostError> {
        assert!(self.runs, "prepared in the blackout");
        self.stage.act(Step::Prepare)
    }

    fn ram(&mut self) -> Result<Option<Arc<dyn RamSource>>, HostError> {
        self.stage.act(Step::Ram)?;
        Ok(Some(Arc::new(FakeRam(vec![7; 3 * 4096]))))
    }
}

pub(super) struct FakeRam(pub(super) Vec<u8>);

impl RamSource for FakeRam {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn parts(&self) -> Result<Vec<RamPart<'_>>, HostError> {
        Ok(vec![RamPart {
            offset: 0,
            bytes: &self.0,
        }])
    }
}

pub(super) struct FakeKeeper {
    pub(super) stage: Stage,
    pub(super) state: Option<StateImage>,
    pub(super) ram: u64,
}

impl FakeKeeper {
    pub(super) fn new(stage: &Stage) -> Self {
        Self {
            stage: stage.clone(),
            state: None,
            ram: 0,
        }
    }
}

impl Keeper for FakeKeeper {
    fn open(&mut self) -> Result<(), HostError> {
        self.stage.act(Step::Open)
    }

    fn write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        self.stage.act(Step::Write)?;
        if cancel.requested() {
            return Err("the writing was interrupted".into());
        }
        self.state = Some(StateImage::read(state)?);
        self.ram = ram.map_or(0, RamSource::size);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), HostError> {
        self.stage.act(Step::Finish)
    }

    fn discard(&mut self) {
        self.stage.note("discard");
        self.state = None;
    }
}
