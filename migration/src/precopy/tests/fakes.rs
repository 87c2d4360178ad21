//! Two machines that can fail at any step, and a guest that writes into its memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::blockers::OwnedBlocker;
use crate::checkpoint::RamSink;
use crate::claim::Reclaimed;
use crate::fingerprint::{MachineFingerprint, RamRegion};
use crate::handover::{OutgoingFd, SourceHost};
use crate::precopy::{IncomingHost, Limits, LiveRam, PAGE, PageSet, PrecopyHost, StartFailure};
use crate::stream::{SectionWriter, StateImage};
use crate::{HostError, MigrationEvent, Mode};

pub(super) const RAM: u64 = 4 << 20;
/// What the guest's state says.
pub(super) const STATE: &str = "registers";

pub(super) fn fingerprint() -> MachineFingerprint {
    MachineFingerprint {
        machine_type: "baton-1.0".into(),
        vcpus: 1,
        ram: vec![RamRegion {
            guest_address: 0,
            size: RAM,
        }],
        cpu: BTreeMap::new(),
    }
}

/// Who runs the guest, as an observer of both processes sees it.
#[derive(Debug)]
pub(super) struct World {
    source: AtomicBool,
    target: AtomicBool,
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

    pub(super) fn stop_source(&self) {
        self.source.store(false, SeqCst);
    }

    /// (source runs it, target runs it); panics if it ever ran in both.
    pub(super) fn runs(&self) -> (bool, bool) {
        assert!(!self.twice.load(SeqCst), "the guest ran twice at once");
        (self.source.load(SeqCst), self.target.load(SeqCst))
    }
}

/// Who can go wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Setup,
    Prepare,
    Track,
    Read,
    Written,
    Stop,
    Save,
    Fingerprint,
    Build,
    Write,
    Load,
    /// Before the guest ran.
    Start,
    /// After it ran.
    Started,
}

impl Step {
    pub(super) const SOURCE: [Step; 6] = [
        Step::Prepare,
        Step::Track,
        Step::Read,
        Step::Written,
        Step::Stop,
        Step::Save,
    ];
    pub(super) const TARGET: [Step; 6] = [
        Step::Fingerprint,
        Step::Build,
        Step::Write,
        Step::Load,
        Step::Start,
        Step::Started,
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Fail,
    /// A mistake of ours.
    Panic,
    /// The process's death.
    Die,
}

pub(super) type Plan = Option<(Step, Trouble)>;

fn act(plan: Plan, step: Step) -> Result<(), HostError> {
    match plan {
        Some((at, Trouble::Fail)) if at == step => Err(format!("{step:?} went wrong").into()),
        Some((at, Trouble::Panic)) if at == step => resume_unwind(Box::new(step)),
        Some((at, Trouble::Die)) if at == step => resume_unwind(Box::new(crate::Died)),
        _ => Ok(()),
    }
}

/// Pages and what they are full of; the others are zero.
pub(super) type Pages = BTreeMap<u64, u8>;

/// A guest's memory in the source.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pages: Mutex<Pages>,
    written: Mutex<BTreeSet<u64>>,
    tracked: AtomicBool,
    /// How many bytes were read.
    pub(super) read: AtomicU64,
    plan: Plan,
}

impl Memory {
    fn write(&self, page: u64, byte: u8) {
        self.pages.lock().unwrap().insert(page, byte);
        if self.tracked.load(SeqCst) {
            self.written.lock().unwrap().insert(page);
        }
    }

    /// What is not zero.
    pub(super) fn pages(&self) -> Pages {
        let pages = self.pages.lock().unwrap();
        let filled = pages.iter().filter(|(_, byte)| **byte != 0);
        filled.map(|(page, byte)| (*page, *byte)).collect()
    }
}

impl LiveRam for Memory {
    fn size(&self) -> u64 {
        RAM
    }

    fn filled(&self) -> Result<Vec<Range<u64>>, HostError> {
        assert!(self.tracked.load(SeqCst), "what is written now is lost");
        let pages = self.pages.lock().unwrap();
        let range = |page: &u64| page * PAGE..(page + 1) * PAGE;
        Ok(pages.keys().map(range).collect())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostError> {
        act(self.plan, Step::Read)?;
        self.read.fetch_add(into.len() as u64, SeqCst);
        let pages = self.pages.lock().unwrap();
        for (nth, page) in into.chunks_mut(PAGE as usize).enumerate() {
            let number = offset / PAGE + nth as u64;
            page.fill(pages.get(&number).copied().unwrap_or(0));
        }
        Ok(())
    }
}

pub(super) struct FakeSource {
    pub(super) world: Arc<World>,
    pub(super) plan: Plan,
    pub(super) memory: Arc<Memory>,
    /// What the guest writes between two questions; the last goes on for ever if it is `endless`.
    pub(super) writes: VecDeque<Vec<(u64, u8)>>,
    pub(super) endless: bool,
    pub(super) limits: Limits,
    pub(super) blockers: Vec<OwnedBlocker>,
    pub(super) events: Vec<MigrationEvent>,
    pub(super) postmigrate: bool,
    pub(super) ram_file: Option<String>,
    stopped: bool,
}

impl FakeSource {
    pub(super) fn new(world: &Arc<World>, plan: Plan) -> Self {
        let memory = Memory {
            plan,
            ..Memory::default()
        };
        for page in [0, 1, 2, 100, 101, 1023] {
            memory.write(page, (page % 200) as u8 + 1);
        }
        memory.write(50, 0);
        Self {
            world: Arc::clone(world),
            plan,
            memory: Arc::new(memory),
            writes: VecDeque::from([
                vec![(0, 7), (200, 8)],
                vec![(200, 9), (1, 0), (300, 0)],
                vec![(1023, 77)],
            ]),
            endless: false,
            limits: Limits {
                max_bandwidth: 0,
                downtime: Duration::ZERO,
            },
            blockers: Vec::new(),
            events: Vec::new(),
            postmigrate: false,
            ram_file: None,
            stopped: false,
        }
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
            MigrationEvent::Setup => act(self.plan, Step::Setup),
            _ => Ok(()),
        }
    }

    fn fds(&mut self) -> Result<Vec<OutgoingFd>, HostError> {
        unreachable!("nothing is handed over")
    }

    fn preview(&mut self, _: &mut SectionWriter<'_>) -> Result<(), HostError> {
        unreachable!("nothing is handed over")
    }

    fn settle(&mut self) {}

    fn stop_and_quiesce(&mut self) -> Result<(), HostError> {
        self.world.source.store(false, SeqCst);
        self.stopped = true;
        // The last thing it did.
        self.memory.write(2, 222);
        act(self.plan, Step::Stop)
    }

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        act(self.plan, Step::Save)?;
        Ok(out.put("cpu", 0, 1, STATE)?)
    }

    fn resume(&mut self, _: Reclaimed) {
        assert!(self.stopped, "it was never stopped");
        assert!(!self.memory.tracked.load(SeqCst), "writes are still noted");
        self.world.source.store(true, SeqCst);
        if self.world.target.load(SeqCst) {
            self.world.twice.store(true, SeqCst);
        }
    }

    fn postmigrate(&mut self) {
        self.postmigrate = true;
    }
}

impl PrecopyHost for FakeSource {
    fn limits(&mut self) -> Limits {
        self.limits
    }

    fn ram_file(&mut self) -> Option<String> {
        self.ram_file.clone()
    }

    fn prepare(&mut self) -> Result<(), HostError> {
        act(self.plan, Step::Prepare)
    }

    fn track(&mut self) -> Result<Arc<dyn LiveRam>, HostError> {
        self.memory.tracked.store(true, SeqCst);
        act(self.plan, Step::Track)?;
        Ok(Arc::clone(&self.memory) as _)
    }

    fn written(&mut self, pages: &mut PageSet) -> Result<(), HostError> {
        act(self.plan, Step::Written)?;
        if !self.stopped {
            let writes = match self.writes.len() {
                1 if self.endless => self.writes[0].clone(),
                _ => self.writes.pop_front().unwrap_or_default(),
            };
            for (page, byte) in writes {
                self.memory.write(page, byte);
            }
        }
        for page in std::mem::take(&mut *self.memory.written.lock().unwrap()) {
            pages.add(page * PAGE..(page + 1) * PAGE);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.memory.tracked.store(false, SeqCst);
    }
}

/// A target's memory.
#[derive(Debug, Default)]
pub(super) struct NewMemory {
    pages: Mutex<Pages>,
    plan: Plan,
}

impl NewMemory {
    pub(super) fn pages(&self) -> Pages {
        let pages = self.pages.lock().unwrap();
        let filled = pages.iter().filter(|(_, byte)| **byte != 0);
        filled.map(|(page, byte)| (*page, *byte)).collect()
    }
}

impl RamSink for NewMemory {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        act(self.plan, Step::Write)?;
        for (nth, page) in bytes.chunks(PAGE as usize).enumerate() {
            assert!(page.iter().all(|byte| *byte == page[0]), "a page is torn");
            let number = offset / PAGE + nth as u64;
            self.pages.lock().unwrap().insert(number, page[0]);
        }
        Ok(())
    }
}

pub(super) struct FakeTarget {
    pub(super) world: Arc<World>,
    pub(super) plan: Plan,
    pub(super) fingerprint: MachineFingerprint,
    pub(super) memory: Arc<NewMemory>,
    pub(super) ram_file: Option<String>,
    loaded: bool,
    pub(super) abandoned: Option<String>,
}

impl FakeTarget {
    pub(super) fn new(world: &Arc<World>, plan: Plan) -> Self {
        Self {
            world: Arc::clone(world),
            plan,
            fingerprint: fingerprint(),
            memory: Arc::new(NewMemory {
                plan,
                ..NewMemory::default()
            }),
            ram_file: None,
            loaded: false,
            abandoned: None,
        }
    }

    fn act(&self, step: Step) -> Result<(), HostError> {
        if matches!(self.plan, Some((at, Trouble::Panic | Trouble::Die)) if at == step) {
            // Nothing runs any more.
            self.world.target.store(false, SeqCst);
        }
        act(self.plan, step)
    }
}

impl IncomingHost for FakeTarget {
    fn fingerprint(&mut self, _: &MachineFingerprint) -> Result<MachineFingerprint, HostError> {
        self.act(Step::Fingerprint)?;
        Ok(self.fingerprint.clone())
    }

    fn build(
        &mut self,
        _: &MachineFingerprint,
        ram_file: Option<&str>,
    ) -> Result<Arc<dyn RamSink + Send>, HostError> {
        self.act(Step::Build)?;
        self.ram_file = ram_file.map(str::to_owned);
        Ok(Arc::clone(&self.memory) as _)
    }

    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError> {
        self.act(Step::Load)?;
        let said: String = state.take("cpu", 0)?.decode()?;
        assert_eq!(said, STATE);
        self.loaded = true;
        Ok(())
    }

    fn start(&mut self) -> Result<(), StartFailure> {
        assert!(self.loaded, "a guest without a state");
        let failed = |ran| move |error| StartFailure { ran, error };
        self.act(Step::Start).map_err(failed(false))?;
        self.world.target.store(true, SeqCst);
        if self.world.source.load(SeqCst) {
            self.world.twice.store(true, SeqCst);
        }
        self.act(Step::Started).map_err(|error| {
            self.world.target.store(false, SeqCst);
            failed(true)(error)
        })
    }

    fn abandon(&mut self, reason: &str) {
        assert!(
            !self.world.target.load(SeqCst),
            "a guest that runs is dropped"
        );
        self.abandoned = Some(reason.to_owned());
    }
}
