//! A virtio device under test, called as the host's transport calls it.

use std::sync::Arc;

use super::{GuestQueue, TestHost, TestRam};
use crate::abi::Adapter;
use crate::bus::{VirtioAdapter, VirtioDevice, VirtioInfo};
use crate::config::{Child, Config};
use crate::error::Result;
use crate::migration::{Fd, MigrationEvent, Mode};
use crate::protocol::{DeviceInfo, Reply, Request, StartArguments};

/// VIRTIO 1.3 section 6.
const EVENT_IDX: u64 = 1 << 29;

/// A realized device of type `D`.
pub struct TestVirtio<D> {
    adapter: VirtioAdapter<D>,
    info: VirtioInfo,
    /// What the device may touch, between `start` and `quiesce`.
    ram: Option<Arc<TestRam>>,
}

impl<D: VirtioDevice> TestVirtio<D> {
    /// Creates and realizes a device.
    pub fn new(config: Config, host: &Arc<TestHost>) -> Result<Self> {
        let mut adapter = VirtioAdapter::<D>::create(config, host.host())?;
        match adapter.call(Request::Realize)? {
            Reply::Info(DeviceInfo::Virtio(info)) => Ok(Self {
                adapter,
                info,
                ram: None,
            }),
            other => panic!("{other:?} is no answer to Realize"),
        }
    }

    /// What it offers.
    pub fn info(&self) -> &VirtioInfo {
        &self.info
    }

    /// Starts it with these features accepted and these queues enabled, each kicked once.
    pub fn start(
        &mut self,
        ram: &Arc<TestRam>,
        features: u64,
        queues: &mut [GuestQueue],
    ) -> Result<()> {
        self.ram = Some(ram.clone());
        for queue in queues.iter_mut() {
            queue.set_event_idx(features & EVENT_IDX != 0);
        }
        self.done(Request::Start(StartArguments {
            memory: ram.table(),
            features,
            queues: queues.iter().map(|q| q.setup()).collect(),
        }))?;
        for queue in queues.iter() {
            queue.kick_anyway();
        }
        Ok(())
    }

    /// Stops it; the queues take over how far it has come.
    pub fn quiesce(&mut self, queues: &mut [GuestQueue]) -> Result<()> {
        match self.adapter.call(Request::Quiesce)? {
            Reply::Quiesced { queues: progress } => {
                for progress in &progress {
                    queues
                        .iter_mut()
                        .find(|q| q.index() == progress.index)
                        .expect("the device speaks of queues it has")
                        .set_progress(progress);
                }
            }
            other => panic!("{other:?} is no answer to Quiesce"),
        }
        self.ram = None;
        Ok(())
    }

    /// Something comes to sit on its bus.
    pub fn attach(&mut self, child: Child) -> Result<()> {
        let child = Box::new(child);
        self.done(Request::Attach { child })
    }

    /// A child leaves.
    pub fn detach(&mut self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.done(Request::Detach { id })
    }

    /// The driver resets it.
    pub fn reset(&mut self) -> Result<()> {
        self.done(Request::Reset)
    }

    /// Saves a section.
    pub fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        let section = section.to_owned();
        match self.adapter.call(Request::Save { section })? {
            Reply::Saved { data } => Ok(data),
            other => panic!("{other:?} is no answer to Save"),
        }
    }

    /// Loads a section.
    pub fn load(&mut self, section: &str, version: u32, data: &[u8]) -> Result<()> {
        self.done(Request::Load {
            section: section.to_owned(),
            version,
            data: data.to_owned(),
        })
    }

    /// What it hands over in `mode`.
    pub fn fds(&mut self, mode: Mode) -> Vec<Fd> {
        match self.adapter.call(Request::Fds { mode }) {
            Ok(Reply::Fds(fds)) => fds,
            other => panic!("{other:?} is no answer to Fds"),
        }
    }

    /// A migration went on.
    pub fn notify(&mut self, event: MigrationEvent) {
        if let Err(error) = self.done(Request::Notify { event }) {
            panic!("{error} is no answer to Notify");
        }
    }

    /// Reads device config space.
    pub fn read_config(&mut self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.adapter.read(0, at, &mut data);
        data
    }

    /// Writes device config space.
    pub fn write_config(&mut self, at: u64, data: &[u8]) {
        self.adapter.write(0, at, data);
    }

    fn done(&mut self, request: Request) -> Result<()> {
        match self.adapter.call(request)? {
            Reply::Done => Ok(()),
            other => panic!("{other:?} is no plain answer"),
        }
    }
}

impl<D> Drop for TestVirtio<D> {
    fn drop(&mut self) {
        // A test that fails in between must not leave a thread at memory that is gone.
        if let Some(ram) = self.ram.take() {
            std::mem::forget(ram);
        }
    }
}
