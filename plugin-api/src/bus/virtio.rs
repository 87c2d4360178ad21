//! Virtio backends. The host is their virtio-pci transport; their data path is their own.

use serde::{Deserialize, Serialize};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::Chain;
use crate::abi::Adapter;
use crate::config::Config;
use crate::descriptor::DeviceType;
use crate::device::{Device, common_call};
use crate::error::{Error, Result};
use crate::fd::{duplicate, eventfd_from};
use crate::host::Host;
use crate::memory::{GuestRam, guest_memory};
use crate::protocol::{DeviceInfo, Reply, Request};

/// What a virtio device offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioInfo {
    /// The device's number, VIRTIO 1.3 section 5.
    pub device_id: u16,
    /// The feature bits it offers, of the device and of the rings (section 6). The transport adds
    /// its own, `VIRTIO_F_VERSION_1` among them.
    pub features: u64,
    /// The largest size of each queue, powers of two.
    pub queue_sizes: Vec<u16>,
    /// Bytes of device config space.
    pub config_len: u32,
    /// The PCI class code (24 bits: class, subclass, interface).
    pub pci_class: u32,
}

/// A queue that the driver has enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Which one.
    pub index: u16,
    /// How large the driver made it.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// The index in the available ring of the next buffer to take.
    pub next_avail: u16,
    /// The index in the used ring of the next buffer to give back.
    pub next_used: u16,
    /// An eventfd the driver's notification signals; the host's own until `Quiesce`.
    pub kick: i32,
    /// An eventfd that interrupts the driver; the host's own until `Quiesce`.
    pub call: i32,
}

/// How far a queue has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueProgress {
    /// Which one.
    pub index: u16,
    /// As in [`QueueSetup`].
    pub next_avail: u16,
    /// As in [`QueueSetup`].
    pub next_used: u16,
}

/// What a virtio device runs with.
pub struct VirtioRun {
    /// Guest memory.
    pub memory: GuestRam,
    /// The feature bits the driver accepted.
    pub features: u64,
    /// The queues the driver enabled, in order of their index.
    pub queues: Vec<VirtQueue>,
}

/// A virtio backend.
pub trait VirtioDevice: Device {
    /// What it offers; asked once, after `realize`.
    fn virtio(&self) -> VirtioInfo;

    /// Reads device config space (see [`config_bytes`]).
    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Writes device config space.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The guest runs and the driver is ready. Every queue has been kicked once, so that nothing
    /// from before is missed.
    fn start(&mut self, run: VirtioRun) -> Result<()>;

    /// The guest has stopped, or the driver resets the device. What has been taken from a queue is
    /// finished, or kept for [`Device::save`].
    fn quiesce(&mut self) -> Result<Vec<QueueProgress>>;
}

/// Reads `data` from `offset` of the config space `config`; what lies behind its end reads as 0.
pub fn config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    if let Some(from) = usize::try_from(offset).ok().and_then(|at| config.get(at..)) {
        let n = from.len().min(data.len());
        data[..n].copy_from_slice(&from[..n]);
    }
}

/// A queue and its two eventfds.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    kick: EventFd,
    call: EventFd,
}

impl VirtQueue {
    /// Takes duplicates of the eventfds; the queue's geometry is checked.
    pub fn new(setup: &QueueSetup, event_idx: bool) -> Result<Self> {
        let queue = Queue::try_from(QueueState {
            max_size: setup.size,
            next_avail: setup.next_avail,
            next_used: setup.next_used,
            event_idx_enabled: event_idx,
            size: setup.size,
            ready: true,
            desc_table: setup.desc_table,
            avail_ring: setup.avail_ring,
            used_ring: setup.used_ring,
        })
        .map_err(|e| Error::state(format!("Queue {}: {e}", setup.index)))?;
        Ok(Self {
            index: setup.index,
            queue,
            kick: eventfd_from(duplicate(setup.kick)?),
            call: eventfd_from(duplicate(setup.call)?),
        })
    }

    /// The queue's number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The eventfd that the driver's notification signals.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The next buffer the driver has made available. An error means that the driver has broken
    /// the ring, which no backend can mend.
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestRam,
    ) -> Result<Option<DescriptorChain<&'m GuestRam>>> {
        let index = self.index;
        let mut available = self
            .queue
            .iter(memory)
            .map_err(|e| Error::state(format!("Queue {index}: {e}")))?;
        Ok(available.next())
    }

    /// The chain of a buffer that was taken earlier, maybe in another process, and not given back.
    pub fn chain_at<'m>(&self, memory: &'m GuestRam, head: u16) -> Result<Chain<'m>> {
        let (index, size) = (self.index, self.queue.size());
        if head >= size {
            return Err(Error::state(format!(
                "Queue {index}: descriptor {head} is beyond its {size}; the state is not of this \
                 queue"
            )));
        }
        Ok(Chain::new(memory, self.queue.desc_table(), size, head))
    }

    /// Gives a buffer back, `written` bytes of it filled. The driver is told by [`Self::notify`].
    pub fn complete(&mut self, memory: &GuestRam, head: u16, written: u32) -> Result<()> {
        self.queue
            .add_used(memory, head, written)
            .map_err(|e| Error::state(format!("Queue {}: {e}", self.index)))
    }

    /// Interrupts the driver if it wants to hear of the buffers given back since the last call.
    pub fn notify(&mut self, memory: &GuestRam) -> Result<()> {
        let wanted = self
            .queue
            .needs_notification(memory)
            .map_err(|e| Error::state(format!("Queue {}: {e}", self.index)))?;
        if wanted {
            self.call
                .write(1)
                .map_err(|e| Error::io(format!("Cannot interrupt for queue {}", self.index), &e))?;
        }
        Ok(())
    }

    /// With event index negotiated: asks to be kicked for the next buffer. True when buffers came
    /// in meanwhile, so that the queue must be looked at once more.
    pub fn rearm(&mut self, memory: &GuestRam) -> Result<bool> {
        self.queue
            .enable_notification(memory)
            .map_err(|e| Error::state(format!("Queue {}: {e}", self.index)))
    }

    /// How far the queue has come.
    pub fn progress(&self) -> QueueProgress {
        QueueProgress {
            index: self.index,
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Puts the last buffer taken back, so that it is the next one again.
    pub fn undo_pop(&mut self) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }
}

/// Makes an ABI device of a virtio device.
pub struct VirtioAdapter<D>(D);

/// VIRTIO 1.3 section 6.
const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;

impl<D: VirtioDevice> Adapter for VirtioAdapter<D> {
    fn device_type() -> DeviceType {
        D::device_type()
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        D::create(config, host).map(Self)
    }

    fn call(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::Realize => {
                self.0.realize()?;
                Ok(Reply::Info(DeviceInfo::Virtio(self.0.virtio())))
            }
            Request::Start(arguments) => {
                #[allow(unsafe_code)]
                // SAFETY: the host keeps the regions mapped until `Quiesce`, by contract.
                let memory = unsafe { guest_memory(&arguments.memory) }?;
                let event_idx = arguments.features & VIRTIO_F_EVENT_IDX != 0;
                let queues = arguments
                    .queues
                    .iter()
                    .map(|setup| VirtQueue::new(setup, event_idx))
                    .collect::<Result<_>>()?;
                let run = VirtioRun {
                    memory,
                    features: arguments.features,
                    queues,
                };
                self.0.start(run).map(|()| Reply::Done)
            }
            Request::Quiesce => self.0.quiesce().map(|queues| Reply::Quiesced { queues }),
            other => common_call(&mut self.0, other).unwrap_or_else(|r| Err(r.unsupported())),
        }
    }

    fn read(&mut self, _region: u32, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn write(&mut self, _region: u32, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }
}
