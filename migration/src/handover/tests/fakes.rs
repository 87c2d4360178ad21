//! Two machines without a guest, that can fail or die at any step.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::blockers::OwnedBlocker;
use crate::claim::{Reclaimed, Started, TargetClaim};
use crate::fds::{FdKey, FdTable};
use crate::fingerprint::{MachineFingerprint, RamRegion};
use crate::handover::{OutgoingFd, SourceHost, StartError, TargetHost};
use crate::stream::{SectionWriter, StateImage};
use crate::{HostError, MigrationEvent, Mode};

/// Who runs the guest, as an observer of both processes sees it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) source: AtomicBool,
    pub(super) target: AtomicBool,
    /// Whether it ever ran twice at the same time.
    twice: AtomicBool,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            source: AtomicBool::new(true),
            target: AtomicBool::new(false),
            twice: AtomicBool::new(false),
        })
    }

    fn run(&self, here: &AtomicBool, there: &AtomicBool) {
        here.store(true, SeqCst);
        if there.load(SeqCst) {
            self.twice.store(true, SeqCst);
        }
    }

    /// (source runs it, target runs it); panics if it ever ran in both.
    pub(super) fn runs(&self) -> (bool, bool) {
        assert!(
            !self.twice.load(SeqCst),
            "the guest ran twice at the same time"
        );
        (self.source.load(SeqCst), self.target.load(SeqCst))
    }
}

/// Who can go wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    SourceSetup,
    SourceFds,
    SourcePreview,
    SourceStop,
    SourceSave,
    SourceDone,
    SourcePostmigrate,
    TargetFingerprint,
    TargetPrepare,
    TargetLoad,
    /// In `start`, before the claim.
    TargetStart,
    /// In `start`, after the claim.
    TargetClaimed,
}

impl Step {
    pub(super) const ALL: [Step; 12] = [
        Step::SourceSetup,
        Step::SourceFds,
        Step::SourcePreview,
        Step::SourceStop,
        Step::SourceSave,
        Step::SourceDone,
        Step::SourcePostmigrate,
        Step::TargetFingerprint,
        Step::TargetPrepare,
        Step::TargetLoad,
        Step::TargetStart,
        Step::TargetClaimed,
    ];

    pub(super) fn of_source(self) -> bool {
        format!("{self:?}").starts_with("Source")
    }
}

/// How it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// An error, as far as the step can have one.
    Fail,
    /// The process dies: the thread unwinds and its sockets close, nothing else happens.
    Die,
    /// A panic, which is an error like any other.
    Panic,
}

/// A step and how it goes wrong.
pub(super) type Plan = Option<(Step, Trouble)>;

fn act(plan: Plan, step: Step, runs: &AtomicBool) -> Result<(), HostError> {
    match plan {
        Some((at, Trouble::Fail)) if at == step => Err(format!("{step:?} went wrong").into()),
        Some((at, Trouble::Die)) if at == step => {
            // Nothing runs in a dead process.
            runs.store(false, SeqCst);
            resume_unwind(Box::new(crate::Died));
        }
        // Without the panic's message in the test's output.
        Some((at, Trouble::Panic)) if at == step => resume_unwind(Box::new(step)),
        _ => Ok(()),
    }
}

pub(super) fn fingerprint() -> MachineFingerprint {
    MachineFingerprint {
        machine_type: "baton-1.0".into(),
        vcpus: 2,
        ram: vec![RamRegion {
            guest_address: 0,
            size: 1 << 27,
        }],
        cpu: BTreeMap::from([("vendor".into(), "test".into())]),
    }
}

/// The state that goes over; the same on both sides if and only if it went well.
pub(super) const SECTIONS: [(&str, &str); 3] = [
    ("cpu/0", "registers"),
    ("cpu/1", "more registers"),
    ("0000:00:01.0/virtio-rng", "queue"),
];

pub(super) struct FakeSource {
    pub(super) world: Arc<World>,
    pub(super) plan: Plan,
    pub(super) fds: Vec<(FdKey, OwnedFd)>,
    pub(super) blockers: Vec<OwnedBlocker>,
    /// Bytes of an additional section, to fill sockets.
    pub(super) ballast: usize,
    pub(super) events: Vec<MigrationEvent>,
    pub(super) postmigrate: bool,
}

impl FakeSource {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self {
            world: Arc::clone(world),
            plan: None,
            fds: Vec::new(),
            blockers: Vec::new(),
            ballast: 0,
            events: Vec::new(),
            postmigrate: false,
        }
    }

    fn act(&self, step: Step) -> Result<(), HostError> {
        act(self.plan, step, &self.world.source)
    }

    fn write(&self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        for (name, state) in SECTIONS {
            out.put(name, 0, 1, state)?;
        }
        if self.ballast > 0 {
            out.put_raw("ballast", 0, 1, &vec![7; self.ballast])?;
        }
        Ok(())
    }
}

impl SourceHost for FakeSource {
    fn device_blockers(&mut self, _: Mode) -> Vec<OwnedBlocker> {
        self.blockers.clone()
    }

    fn fingerprint(&mut self) -> MachineFingerprint {
        fingerprint()
    }

    fn notify(&mut self, event: MigrationEvent) -> Result<(), HostError> {
        self.events.push(event);
        match event {
            MigrationEvent::Setup => self.act(Step::SourceSetup),
            MigrationEvent::Done => self.act(Step::SourceDone),
            _ => Ok(()),
        }
    }

    fn fds(&mut self) -> Result<Vec<OutgoingFd>, HostError> {
        self.act(Step::SourceFds)?;
        let copy = |(key, fd): &(FdKey, OwnedFd)| {
            Ok(OutgoingFd {
                key: key.clone(),
                fd: fd.try_clone()?,
            })
        };
        self.fds.iter().map(copy).collect()
    }

    fn preview(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        self.act(Step::SourcePreview)?;
        self.write(out)
    }

    fn settle(&mut self) {
        assert!(self.world.source.load(SeqCst), "settled while stopped");
    }

    fn stop_and_quiesce(&mut self) -> Result<(), HostError> {
        assert!(self.world.source.swap(false, SeqCst), "stopped twice");
        self.act(Step::SourceStop)
    }

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        self.act(Step::SourceSave)?;
        self.write(out)
    }

    fn resume(&mut self, proof: Reclaimed) {
        drop(proof);
        assert!(!self.world.source.load(SeqCst), "resumed although it runs");
        self.world.run(&self.world.source, &self.world.target);
    }

    fn postmigrate(&mut self) {
        let _ = self.act(Step::SourcePostmigrate);
        assert!(
            !self.world.source.load(SeqCst),
            "postmigrate although it runs"
        );
        self.postmigrate = true;
    }
}

pub(super) struct FakeTarget {
    pub(super) world: Arc<World>,
    pub(super) plan: Plan,
    pub(super) fingerprint: MachineFingerprint,
    /// Descriptors it takes while it prepares.
    pub(super) wants: Vec<FdKey>,
    pub(super) got: Vec<OwnedFd>,
    /// Sections it does not know.
    pub(super) ignores: Vec<&'static str>,
    pub(super) abandoned: Option<String>,
}

impl FakeTarget {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self {
            world: Arc::clone(world),
            plan: None,
            fingerprint: fingerprint(),
            wants: Vec::new(),
            got: Vec::new(),
            ignores: Vec::new(),
            abandoned: None,
        }
    }

    fn act(&self, step: Step) -> Result<(), HostError> {
        act(self.plan, step, &self.world.target)
    }
}

impl TargetHost for FakeTarget {
    fn fingerprint(
        &mut self,
        _source: &MachineFingerprint,
    ) -> Result<MachineFingerprint, HostError> {
        self.act(Step::TargetFingerprint)?;
        Ok(self.fingerprint.clone())
    }

    fn prepare(&mut self, fds: &Arc<FdTable>, preview: StateImage) -> Result<(), HostError> {
        self.act(Step::TargetPrepare)?;
        assert!(
            preview
                .sections()
                .any(|section| section.name == SECTIONS[0].0)
        );
        for FdKey {
            owner,
            name,
            instance,
        } in &self.wants
        {
            self.got.push(fds.take(owner, name, *instance)?);
        }
        Ok(())
    }

    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError> {
        self.act(Step::TargetLoad)?;
        for (name, expected) in SECTIONS {
            if !self.ignores.contains(&name) {
                assert_eq!(state.take(name, 0)?.decode::<String>()?, expected);
            }
        }
        state.take_if_present("ballast", 0);
        Ok(())
    }

    fn start(&mut self, claim: TargetClaim) -> Result<Started, StartError> {
        self.act(Step::TargetStart).map_err(StartError::Host)?;
        let started = claim.start()?;
        self.act(Step::TargetClaimed).map_err(StartError::Host)?;
        self.world.run(&self.world.target, &self.world.source);
        Ok(started)
    }

    fn abandon(&mut self, reason: &str) {
        assert!(self.abandoned.is_none(), "abandoned twice");
        self.abandoned = Some(reason.to_owned());
    }
}
