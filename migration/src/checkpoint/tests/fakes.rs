//! A machine without a guest and a place without a disk. Both write into one journal, so that the
//! order of events across them can be looked at.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::blockers::{Blockers, OwnedBlocker};
use crate::checkpoint::{
    Cancel, CheckpointHost, CheckpointOptions, Keeper, RamPart, RamSink, RamSource,
};
use crate::claim::Reclaimed;
use crate::fingerprint::{MachineFingerprint, RamRegion};
use crate::handover::{OutgoingFd, SourceHost};
use crate::status::{MigrationStatus, Tracker};
use crate::stream::{SectionWriter, StateImage};
use crate::{HostError, MigrationEvent, Mode};

/// The steps of a checkpoint, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Step {
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
    pub(in crate::checkpoint) const ALL: [Step; 8] = [
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
    pub(in crate::checkpoint) fn in_begin(self) -> bool {
        matches!(self, Step::Setup | Step::Open)
    }

    /// Whether the guest was stopped when it failed.
    pub(in crate::checkpoint) fn in_blackout(self) -> bool {
        !self.in_begin() && self != Step::Prepare
    }
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Trouble {
    Fail,
    /// An operator cancels, and the step succeeds all the same.
    Cancel,
    /// An operator cancels, and the step fails of it.
    CancelAndFail,
    /// A mistake of ours.
    Panic,
}

/// What all fakes of one test share.
#[derive(Clone)]
pub(in crate::checkpoint) struct Stage {
    pub(in crate::checkpoint) plan: Option<(Step, Trouble)>,
    pub(in crate::checkpoint) tracker: Arc<Tracker>,
    pub(in crate::checkpoint) statuses: Arc<Mutex<Vec<MigrationStatus>>>,
    /// Everything that happened, in order.
    pub(in crate::checkpoint) journal: Arc<Mutex<Vec<String>>>,
    pub(in crate::checkpoint) blockers: Blockers,
    pub(in crate::checkpoint) pause: bool,
}

impl Stage {
    pub(in crate::checkpoint) fn new(plan: Option<(Step, Trouble)>) -> Self {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&statuses);
        let observer = move |status| seen.lock().unwrap().push(status);
        Self {
            plan,
            tracker: Arc::new(Tracker::new(Box::new(observer)).unwrap()),
            statuses,
            journal: Arc::default(),
            blockers: Blockers::new(),
            pause: false,
        }
    }

    pub(in crate::checkpoint) fn options(&self) -> CheckpointOptions<'_> {
        CheckpointOptions {
            mode: Mode::CprReboot,
            producer: "test".into(),
            tracker: Arc::clone(&self.tracker),
            blockers: &self.blockers,
            pause: self.pause,
        }
    }

    pub(in crate::checkpoint) fn note(&self, what: impl Into<String>) {
        self.journal.lock().unwrap().push(what.into());
    }

    pub(in crate::checkpoint) fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }

    fn act(&self, step: Step) -> Result<(), HostError> {
        self.note(format!("{step:?}"));
        let failure = || Err(format!("{step:?} went wrong").into());
        match self.plan {
            Some((at, trouble)) if at == step => {
                if matches!(trouble, Trouble::Cancel | Trouble::CancelAndFail) {
                    self.tracker.cancel();
                }
                match trouble {
                    Trouble::Cancel => Ok(()),
                    // Without the panic's message in the test's output.
                    Trouble::Panic => std::panic::resume_unwind(Box::new(step)),
                    Trouble::Fail | Trouble::CancelAndFail => failure(),
                }
            }
            _ => Ok(()),
        }
    }
}

pub(in crate::checkpoint) fn fingerprint() -> MachineFingerprint {
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

pub(in crate::checkpoint) struct FakeHost {
    pub(in crate::checkpoint) stage: Stage,
    pub(in crate::checkpoint) runs: bool,
    pub(in crate::checkpoint) blockers: Vec<OwnedBlocker>,
}

impl FakeHost {
    pub(in crate::checkpoint) fn new(stage: &Stage) -> Self {
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

pub(in crate::checkpoint) struct FakeRam(pub(in crate::checkpoint) Vec<u8>);

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

/// RAM that is filled.
pub(in crate::checkpoint) struct FakeSink(Mutex<Vec<u8>>);

impl FakeSink {
    pub(in crate::checkpoint) fn new(size: u64) -> Self {
        Self(Mutex::new(vec![0; size as usize]))
    }

    pub(in crate::checkpoint) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl RamSink for FakeSink {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        let at = offset as usize;
        let mut ram = self.0.lock().unwrap();
        let there = ram.get_mut(at..at + bytes.len()).ok_or("beyond the end")?;
        there.copy_from_slice(bytes);
        Ok(())
    }
}

/// A folder of its own, removed at the end.
pub(in crate::checkpoint) struct Folder(pub(in crate::checkpoint) PathBuf);

impl Folder {
    pub(in crate::checkpoint) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("baton-checkpoint-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(in crate::checkpoint) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names in it.
    pub(in crate::checkpoint) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A file without a name.
pub(in crate::checkpoint) fn scratch() -> File {
    let folder = Folder::new();
    let path = folder.join("file");
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap()
}

pub(in crate::checkpoint) struct FakeKeeper {
    pub(in crate::checkpoint) stage: Stage,
    pub(in crate::checkpoint) state: Option<StateImage>,
    pub(in crate::checkpoint) ram: u64,
}

impl FakeKeeper {
    pub(in crate::checkpoint) fn new(stage: &Stage) -> Self {
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

    fn finish(&mut self, _: Cancel<'_>) -> Result<(), HostError> {
        self.stage.act(Step::Finish)
    }

    fn discard(&mut self) {
        self.stage.note("discard");
        self.state = None;
    }
}
