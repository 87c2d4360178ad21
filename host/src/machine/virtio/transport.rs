//! One virtio device on the PCI bus.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use baton_plugin_api::bus::{RegionKind, VirtioInfo};
use baton_plugin_api::pci::{BarKind, ConfigSpace, Identity, Msix};
use baton_plugin_api::protocol::{DeviceInfo, HostReply, HostRequest, StartArguments};
use baton_plugin_api::{Error, Result, Section};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::common::{self, CommonRegisters, Effect, VIRTIO_F_VERSION_1, status};
use super::layout;
use super::queue::{Queue, QueueRegisters, eventfd, signal};
use super::state::{QueueState, TransportState, section};
use crate::machine::bus::{AddressSpaces, BusDevice};
use crate::machine::interrupts::{Interrupts, Vector};
use crate::machine::memory_slots::MemorySlots;
use crate::machine::pci::{BarMap, PciFunction};
use crate::machine::vfio::VfioFiles;
use crate::memory::Ram;
use crate::plugin::{Bridge, DeviceBridge, Failures, PluggedDevice, Reports};

const VIRTIO_VENDOR: u16 = 0x1af4;
/// Modern devices: VIRTIO 1.3 section 4.1.2.1.
const FIRST_DEVICE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;

/// What the transport needs of the machine.
#[derive(Clone)]
pub struct Surroundings {
    /// For ioeventfds.
    pub vm: Arc<VmFd>,
    /// For BARs that are memory.
    pub memory_slots: Arc<MemorySlots>,
    /// For devices of the host.
    pub vfio: Arc<VfioFiles>,
    /// For MSI vectors.
    pub interrupts: Arc<Interrupts>,
    /// For BARs.
    pub spaces: Arc<AddressSpaces>,
    /// What the device works on.
    pub ram: Arc<Ram>,
    /// Where devices note what they report.
    pub reports: Reports,
}

/// What a backend's own threads may do to the transport. They must not wait for its lock: whoever
/// holds it may be waiting for them to end.
struct Signals {
    generation: AtomicU8,
    config_changed: EventFd,
    broken: AtomicBool,
}

impl DeviceBridge for Signals {
    fn call(&self, request: HostRequest) -> Result<HostReply> {
        match request {
            HostRequest::ConfigChanged => self.generation.fetch_add(1, Ordering::SeqCst),
            // The driver learns from the status register that the device needs a reset.
            HostRequest::Failed { .. } => {
                self.broken.store(true, Ordering::SeqCst);
                0
            }
            other => {
                return Err(Error::state(format!(
                    "A virtio device has no use for {other:?}"
                )));
            }
        };
        signal(&self.config_changed);
        Ok(HostReply::Done)
    }
}

/// A created virtio device whose services are in place; the next step is [`Self::realize`].
pub struct PreparedVirtio {
    device: PluggedDevice,
    signals: Arc<Signals>,
}

impl PreparedVirtio {
    /// Installs the services of the bus class.
    pub fn new(device: PluggedDevice, bridge: &Bridge) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("Cannot make an eventfd", &e);
        let signals = Arc::new(Signals {
            generation: AtomicU8::new(0),
            config_changed: eventfd().map_err(failed)?,
            broken: AtomicBool::new(false),
        });
        bridge.install(Arc::clone(&signals) as _);
        Ok(Self { device, signals })
    }

    /// Realizes the device and builds its transport.
    pub fn realize(self, machine: &Surroundings) -> Result<Arc<VirtioPci>> {
        let Self {
            mut device,
            signals,
        } = self;
        let DeviceInfo::Virtio(info) = device.realize()? else {
            return Err(device.not_of_its_class());
        };
        let id = device.id().to_owned();
        VirtioPci::build(device, info, signals, machine).map_err(|e| e.in_device(&id))
    }
}

/// The transport of one device.
pub struct VirtioPci {
    id: String,
    inner: Mutex<Inner>,
    signals: Arc<Signals>,
    /// For the BAR's mapping, which calls back.
    this: Weak<VirtioPci>,
}

struct Inner {
    device: PluggedDevice,
    info: VirtioInfo,
    features: u64,
    config: ConfigSpace,
    window: usize,
    msix: Msix,
    registers: CommonRegisters,
    queues: Vec<Queue>,
    config_call: Vector,
    bars: BarMap,
    /// Where the queues' ioeventfds are.
    notify: Option<u64>,
    machine: Surroundings,
    /// The guest runs.
    running: bool,
    /// The backend runs: the guest does, and the driver is ready.
    started: bool,
    /// How the backend stopped, before the guest did.
    settled: Result<()>,
}

/// What the guest finds in config space and the BAR.
pub(super) struct Shape {
    pub(super) config: ConfigSpace,
    /// Where in config space the window to the BAR is.
    window: usize,
    pub(super) msix: Msix,
}

impl Shape {
    /// That of a device with this description, which is checked.
    pub(super) fn of(info: &VirtioInfo) -> Result<Self> {
        check(info)?;
        let mut config = ConfigSpace::new(Identity {
            vendor: VIRTIO_VENDOR,
            device: FIRST_DEVICE + info.device_id,
            subsystem_vendor: VIRTIO_VENDOR,
            subsystem: SUBSYSTEM,
            class: info.pci_class,
            revision: 1,
        });
        config.add_bar(layout::BAR as usize, BarKind::Memory64, layout::BAR_SIZE)?;
        let window = layout::add_capabilities(&mut config, info.config_len)?;
        let vectors = info.queue_sizes.len() as u16 + 1;
        let (table, pending) = (layout::MSIX_TABLE as u32, layout::MSIX_PENDING as u32);
        let msix = Msix::new(&mut config, layout::BAR as u8, vectors, table, pending)?;
        Ok(Self {
            config,
            window,
            msix,
        })
    }
}

impl VirtioPci {
    fn build(
        device: PluggedDevice,
        info: VirtioInfo,
        signals: Arc<Signals>,
        machine: &Surroundings,
    ) -> Result<Arc<Self>> {
        let Shape {
            config,
            window,
            msix,
        } = Shape::of(&info)?;
        let failed = |e: std::io::Error| Error::io("Cannot make an eventfd", &e);
        let queues = info
            .queue_sizes
            .iter()
            .map(|&size| Queue::new(size, &machine.interrupts))
            .collect::<std::io::Result<_>>()
            .map_err(failed)?;
        let config_event = signals.config_changed.try_clone().map_err(failed)?;
        let inner = Inner {
            features: info.features | VIRTIO_F_VERSION_1,
            config,
            window,
            msix,
            registers: CommonRegisters::reset(),
            queues,
            config_call: machine.interrupts.vector(config_event),
            bars: BarMap::new(Arc::clone(&machine.spaces)),
            notify: None,
            machine: machine.clone(),
            running: false,
            started: false,
            settled: Ok(()),
            info,
            device,
        };
        Ok(Arc::new_cyclic(|this| Self {
            id: inner.device.id().to_owned(),
            inner: Mutex::new(inner),
            signals,
            this: this.clone(),
        }))
    }

    /// The guest runs from now on. Queues are kicked and their interrupts raised once, so that none
    /// from before is missed: the other process may have taken a kick without acting on it, or the
    /// guest may have masked what was sent.
    pub fn start(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.running = true;
        inner.start_backend().map_err(|e| e.in_device(&self.id))
    }

    /// The guest is about to stop: the backend stops now, and is not started again if the driver
    /// wants it. An error is kept for [`Self::quiesce`].
    pub fn settle(&self) {
        let mut inner = self.lock();
        inner.running = false;
        let stopped = inner.stop_backend();
        inner.settled = stopped;
    }

    /// The guest has stopped.
    pub fn quiesce(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.running = false;
        let settled = std::mem::replace(&mut inner.settled, Ok(()));
        match settled.and_then(|()| inner.stop_backend()) {
            // It is known to be broken; that it does not stop well is nothing new.
            Err(e) if self.signals.broken.load(Ordering::SeqCst) => {
                tracing::warn!(device = self.id, "while it was stopped: {e}");
                Ok(())
            }
            other => other.map_err(|e| e.in_device(&self.id)),
        }
    }

    /// The services of its place, for another instance.
    pub fn bridge(&self) -> Arc<dyn DeviceBridge> {
        Arc::clone(&self.signals) as _
    }

    /// Whether an instance that describes itself so can take this place: what the driver sees of it
    /// is the same, but for features that the driver does not use.
    pub fn fits(&self, info: &VirtioInfo) -> bool {
        let inner = self.lock();
        let used = inner.registers.driver_features & !VIRTIO_F_VERSION_1;
        check(info).is_ok()
            && used & !info.features == 0
            && *info
                == VirtioInfo {
                    features: info.features,
                    ..inner.info.clone()
                }
    }

    /// Puts another instance in its place; gives the one that was there, as it described itself.
    pub fn put(&self, new: PluggedDevice, info: DeviceInfo) -> (PluggedDevice, DeviceInfo) {
        let mut inner = self.lock();
        let mut was = info;
        // Only a sound device is replaced; that the other one may have failed is not the driver's matter.
        self.signals.broken.store(false, Ordering::SeqCst);
        // What fits is of this kind.
        if let DeviceInfo::Virtio(info) = &mut was {
            inner.features = info.features | VIRTIO_F_VERSION_1;
            std::mem::swap(&mut inner.info, info);
        }
        (std::mem::replace(&mut inner.device, new), was)
    }

    /// The device goes, while the guest may run: nothing of it is left on any bus, and its plugin's
    /// device has ended.
    pub fn unplug(&self) {
        let mut inner = self.lock();
        inner.running = false;
        if let Err(e) = inner.stop_backend() {
            tracing::warn!(device = self.id, "while it was unplugged: {e}");
        }
        // Without decoding and without vectors.
        inner.config.reset();
        inner.msix.reset();
        inner.registers = CommonRegisters::reset();
        self.after_config_write(&mut inner);
        inner.device.end();
    }

    /// Back to power-on; the guest does not run.
    pub fn reset(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.config.reset();
        inner.msix.reset();
        let reset = self.reset_device(&mut inner);
        self.after_config_write(&mut inner);
        reset.map_err(|e| e.in_device(&self.id))
    }

    /// The transport's own section; the backend's are its plugin's.
    pub fn section() -> Section {
        section()
    }

    /// The state of the transport. While the guest runs it is a preview: how far the queues have
    /// come is known once they are quiesced.
    pub fn save(&self) -> Result<Vec<u8>> {
        let inner = self.lock();
        let r = &inner.registers;
        baton_plugin_api::wire::encode(&TransportState {
            config: inner.config.state(),
            msix: inner.msix.state(),
            device_feature_select: r.device_feature_select,
            driver_feature_select: r.driver_feature_select,
            driver_features: r.driver_features,
            config_vector: r.config_vector,
            status: r.status | self.broken(),
            generation: self.signals.generation.load(Ordering::SeqCst),
            queue_select: r.queue_select,
            queues: inner
                .queues
                .iter()
                .map(|q| QueueState::from(&q.registers))
                .collect(),
        })
        .map_err(|e| e.in_device(&self.id))
    }

    /// Takes a state: all of it, or nothing. A second load changes only what differs, which is what
    /// makes loading a preview early worth it.
    pub fn load(&self, data: &[u8]) -> Result<()> {
        self.load_inner(data).map_err(|e| e.in_device(&self.id))
    }

    fn load_inner(&self, data: &[u8]) -> Result<()> {
        let mut inner = self.lock();
        let sizes: Vec<_> = inner.queues.iter().map(|queue| queue.max_size).collect();
        let shape = (&inner.config, &inner.msix);
        let loaded = TransportState::load(data, shape, &sizes, inner.features)?;
        inner.config = loaded.config;
        inner.msix = loaded.msix;
        inner.registers = loaded.registers;
        for (queue, registers) in inner.queues.iter_mut().zip(loaded.queues) {
            queue.registers = registers;
        }
        self.signals
            .generation
            .store(loaded.generation, Ordering::SeqCst);
        let broken = loaded.registers.status & status::NEEDS_RESET != 0;
        self.signals.broken.store(broken, Ordering::SeqCst);
        self.after_config_write(&mut inner);
        Ok(())
    }

    /// Runs `f` on the backend, whose register calls wait meanwhile.
    pub fn with_device<T>(&self, f: impl FnOnce(&mut PluggedDevice) -> T) -> T {
        f(&mut self.lock().device)
    }

    fn reset_device(&self, inner: &mut Inner) -> Result<()> {
        let stopped = inner.stop_backend();
        inner.registers = CommonRegisters::reset();
        for queue in &mut inner.queues {
            queue.registers = QueueRegisters::reset(queue.max_size);
        }
        inner.update_vectors();
        let reset = inner.device.reset();
        if let Err(e) = stopped {
            tracing::warn!(device = self.id, "while it was reset: {e}");
        }
        if reset.is_ok() {
            inner.settled = Ok(());
            self.signals.broken.store(false, Ordering::SeqCst);
            inner.machine.reports.failures.remove(&self.id);
        }
        reset
    }

    fn write_status(&self, inner: &mut Inner, value: u8) {
        if value == 0 {
            if let Err(e) = self.reset_device(inner) {
                self.fail(&inner.machine.reports.failures, &e);
            }
            return;
        }
        let before = inner.registers.status;
        // A driver only ever adds bits; the device takes FEATURES_OK back if it cannot agree.
        let mut now = before | (value & status::DRIVER);
        let agreed = inner.registers.driver_features & !inner.features == 0
            && inner.registers.driver_features & VIRTIO_F_VERSION_1 != 0;
        if now & !before & status::FEATURES_OK != 0 && !agreed {
            now &= !status::FEATURES_OK;
        }
        inner.registers.status = now;
        if now & !before & status::DRIVER_OK != 0
            && let Err(e) = inner.start_backend()
        {
            self.fail(&inner.machine.reports.failures, &e);
        }
    }

    /// The device is broken: the driver sees that it needs a reset.
    fn fail(&self, failures: &Failures, error: &Error) {
        failures.add(&self.id, &error.message);
        self.signals.broken.store(true, Ordering::SeqCst);
        signal(&self.signals.config_changed);
    }

    fn broken(&self) -> u8 {
        if self.signals.broken.load(Ordering::SeqCst) {
            status::NEEDS_RESET
        } else {
            0
        }
    }

    /// Follows what a change of config space or the MSI-X table means.
    fn after_config_write(&self, inner: &mut Inner) {
        let address = inner.config.bar_address(layout::BAR as usize);
        let this = self.this.clone();
        let device = move || Arc::new(Bar(this)) as Arc<dyn BusDevice>;
        let kind = RegionKind::Mmio;
        if inner
            .bars
            .set(layout::BAR, kind, address, layout::BAR_SIZE, device)
        {
            inner.move_notifications(address.map(|base| base + layout::NOTIFY));
        }
        inner.update_vectors();
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let within = offset % layout::AREA;
        match offset - within {
            layout::COMMON => {
                let generation = self.signals.generation.load(Ordering::SeqCst);
                let mut registers = inner.registers;
                registers.status |= self.broken();
                common::read(
                    &registers,
                    &inner.queues,
                    inner.features,
                    generation,
                    within,
                    data,
                );
            }
            // Interrupts come by MSI-X alone, which leaves this register at 0.
            layout::ISR => data.fill(0),
            layout::DEVICE => {
                data.fill(0);
                let len = data.len();
                if within + len as u64 <= u64::from(inner.info.config_len) {
                    inner.device.read(0, within, data);
                }
            }
            layout::NOTIFY => data.fill(0),
            layout::MSIX_PENDING => {
                let (queues, config) = (&inner.queues, &inner.config_call);
                let config_vector = inner.registers.config_vector;
                inner.msix.read_pending(within, data, |vector| {
                    (vector == config_vector && config.pending())
                        || queues
                            .iter()
                            .any(|q| q.registers.vector == vector && q.call.pending())
                });
            }
            _ => inner.msix.read_table(offset - layout::MSIX_TABLE, data),
        }
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let within = offset % layout::AREA;
        match offset - within {
            layout::COMMON => {
                let vectors = inner.msix.vectors();
                let (registers, queues) = (&mut inner.registers, &mut inner.queues);
                match common::write(registers, queues, vectors, within, data) {
                    Effect::None => {}
                    Effect::Vectors => inner.update_vectors(),
                    Effect::Status(value) => self.write_status(inner, value),
                }
            }
            layout::DEVICE if within + data.len() as u64 <= u64::from(inner.info.config_len) => {
                inner.device.write(0, within, data);
            }
            // Only a notification that no ioeventfd took comes here.
            layout::NOTIFY => {
                let index = within / u64::from(layout::NOTIFY_MULTIPLIER);
                if let Some(queue) = inner.queues.get(index as usize) {
                    signal(&queue.kick);
                }
            }
            layout::ISR | layout::DEVICE | layout::MSIX_PENDING => {}
            _ => {
                inner.msix.write_table(offset - layout::MSIX_TABLE, data);
                inner.update_vectors();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// BAR 0 in the machine's address space.
struct Bar(Weak<VirtioPci>);

impl BusDevice for Bar {
    fn name(&self) -> String {
        let transport = self.0.upgrade();
        transport
            .map(|transport| transport.id.clone())
            .unwrap_or_default()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.upgrade() {
            Some(transport) => transport.bar_read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(transport) = self.0.upgrade() {
            transport.bar_write(offset, data);
        }
    }
}

impl PciFunction for VirtioPci {
    fn bar_sizes(&self) -> [u64; 6] {
        let mut sizes = [0; 6];
        sizes[layout::BAR as usize] = layout::BAR_SIZE;
        sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let (at, access) = {
            let inner = self.lock();
            inner.config.read(offset, data);
            (
                layout::window_data(inner.window),
                layout::window(&inner.config, inner.window),
            )
        };
        if let Some((in_bar, len)) = access
            && offset == at
            && data.len() == len
        {
            self.bar_read(in_bar, data);
        }
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let (at, access) = {
            let mut inner = self.lock();
            inner.config.write(offset, data);
            self.after_config_write(&mut inner);
            (
                layout::window_data(inner.window),
                layout::window(&inner.config, inner.window),
            )
        };
        if let Some((in_bar, len)) = access
            && offset == at
            && data.len() == len
        {
            self.bar_write(in_bar, data);
        }
    }
}

impl Inner {
    fn start_backend(&mut self) -> Result<()> {
        let ready = self.registers.status & status::DRIVER_OK != 0;
        if self.started || !self.running || !ready {
            return Ok(());
        }
        let enabled = || {
            self.queues
                .iter()
                .enumerate()
                .filter(|(_, q)| q.registers.enabled)
        };
        self.device.start(StartArguments {
            memory: self.machine.ram.table(),
            features: self.registers.driver_features,
            queues: enabled().map(|(index, queue)| queue.setup(index)).collect(),
        })?;
        for (_, queue) in enabled() {
            signal(&queue.kick);
            signal(queue.call.event());
        }
        self.started = true;
        Ok(())
    }

    fn stop_backend(&mut self) -> Result<()> {
        if !self.started {
            return Ok(());
        }
        self.started = false;
        for progress in self.device.quiesce()? {
            if let Some(queue) = self.queues.get_mut(usize::from(progress.index)) {
                queue.came_to(progress);
            }
        }
        Ok(())
    }

    /// Sends every interrupt as the driver has set it up now.
    fn update_vectors(&mut self) {
        let (msix, config) = (&self.msix, &self.config);
        let calls = self
            .queues
            .iter_mut()
            .map(|q| (q.registers.vector, &mut q.call))
            .chain([(self.registers.config_vector, &mut self.config_call)]);
        for (vector, call) in calls {
            if let Err(e) = call.set(msix.message(config, vector)) {
                tracing::error!("cannot route an interrupt: {e}");
            }
        }
    }

    /// Moves the queues' ioeventfds to where the notification addresses are now.
    fn move_notifications(&mut self, base: Option<u64>) {
        let at = |base: u64, index: usize| {
            IoEventAddress::Mmio(base + index as u64 * u64::from(layout::NOTIFY_MULTIPLIER))
        };
        for (index, queue) in self.queues.iter().enumerate() {
            if let Some(old) = self.notify
                && let Err(e) =
                    self.machine
                        .vm
                        .unregister_ioevent(&queue.kick, &at(old, index), NoDatamatch)
            {
                tracing::error!("cannot unregister an ioeventfd: {e}");
            }
            // Without it, notifications take the slow way through `bar_write`.
            if let Some(new) = base
                && let Err(e) =
                    self.machine
                        .vm
                        .register_ioevent(&queue.kick, &at(new, index), NoDatamatch)
            {
                tracing::warn!("cannot register an ioeventfd: {e}");
            }
        }
        self.notify = base;
    }
}

fn check(info: &VirtioInfo) -> Result<()> {
    let sizes = &info.queue_sizes;
    if sizes.is_empty() || sizes.len() > layout::QUEUES_MAX {
        return Err(Error::invalid(format!(
            "Its plugin offers {} queues, 1 to {} are possible",
            sizes.len(),
            layout::QUEUES_MAX
        )));
    }
    if let Some(size) = sizes.iter().find(|s| !s.is_power_of_two() || **s > 32768) {
        return Err(Error::invalid(format!(
            "Its plugin offers a queue of {size}, which is no power of two up to 32768"
        )));
    }
    if u64::from(info.config_len) > layout::AREA
        || info.device_id > 0x3f
        || info.pci_class >> 24 != 0
    {
        return Err(Error::invalid(
            "Its plugin describes a virtio device that cannot be",
        ));
    }
    Ok(())
}
