//! What the host calls.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use baton_plugin_api::virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use baton_plugin_api::{
    Config, Device, DeviceType, Drive, Error, Fd, Host, MigrationEvent, Mode, QueueProgress,
    Result, VirtioDevice, VirtioInfo, VirtioRun, Watched, Worker, config_bytes, no_such_section,
};

use crate::config_space::{self, CONFIG_LEN, WRITEBACK, bit};
use crate::engine::Engine;
use crate::fault_log::FaultLog;
use crate::image::Image;
use crate::properties::{self, IMAGE, Options, SECTION};
use crate::request::{DISCARD, Limits, SECTOR, WRITE_ZEROES};
use crate::service::{Disk, Service};
use crate::state::{self, InFlight};

/// The device number of VIRTIO 1.3 section 5.
const DEVICE_ID: u16 = 2;
/// PCI class "SCSI storage controller", as QEMU has it for this device.
const PCI_CLASS: u32 = 0x01_00_00;

/// A disk.
pub(crate) struct Block {
    options: Options,
    host: Host,
    /// Once it is realized.
    opened: Option<Opened>,
    /// As the driver sees it in config space.
    write_cache: bool,
    /// While the device does not run: what was taken and not done.
    in_flight: InFlight,
    worker: Option<Worker<Service>>,
}

struct Opened {
    image: Arc<Image>,
    /// Whether the lock is another process's business until this one runs.
    unlocked: bool,
    limits: Arc<Limits>,
    /// Away while the device runs.
    engine: Option<Engine>,
    /// Whether writes may wait for a flush, by what the driver negotiated.
    cached: Arc<AtomicBool>,
    /// Whether that follows config space.
    follows: bool,
}

impl Opened {
    /// Takes the image's lock back, if it was let go of.
    fn take_lock(&mut self, drive: &Drive) -> Result<()> {
        if self.unlocked {
            self.image.lock(drive)?;
            self.unlocked = false;
        }
        Ok(())
    }
}

impl Device for Block {
    fn device_type() -> DeviceType {
        properties::device_type()
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        let options = Options::new(config)?;
        Ok(Self {
            write_cache: options.write_cache,
            options,
            host,
            opened: None,
            in_flight: InFlight::new(),
            worker: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let options = &self.options;
        let image = match self.host.preserved_fd(IMAGE, 0)? {
            Some(fd) => Image::adopt(fd, options)?,
            None if options.restoring.is_some_and(Mode::preserves_fds) => {
                return Err(Error::state(format!(
                    "The other process did not hand over image '{}'; start both with the same \
                     -drive and -device",
                    options.drive.file
                )));
            }
            None => Image::open(options, &self.host)?,
        };
        let image = Arc::new(image);
        let writable = !options.drive.read_only;
        self.opened = Some(Opened {
            limits: Arc::new(Limits {
                sectors: image.bytes / SECTOR,
                block: options.logical_block,
                read_only: options.drive.read_only,
                queue_size: options.queue_size,
                discard: (options.discard && writable).then_some(DISCARD),
                write_zeroes: (options.write_zeroes && writable).then_some(WRITE_ZEROES),
            }),
            engine: Some(Engine::new(image.clone(), options)?),
            image,
            unlocked: options.restoring == Some(Mode::Normal),
            cached: Arc::default(),
            follows: false,
        });
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.in_flight.clear();
        self.write_cache = self.options.write_cache;
        Ok(())
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        match section {
            SECTION => state::save(
                &opened(&self.opened)?.limits,
                self.write_cache,
                &self.in_flight,
            ),
            other => Err(no_such_section(other)),
        }
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let loaded = state::load(data, &self.options, &opened(&self.opened)?.limits)?;
        self.write_cache = loaded.write_cache;
        self.in_flight = loaded.in_flight;
        Ok(())
    }

    fn notify(&mut self, event: MigrationEvent) {
        let Some(opened) = &mut self.opened else {
            return;
        };
        let drive = &self.options.drive;
        let outcome = match event {
            MigrationEvent::Switchover => {
                opened.unlocked = true;
                opened.image.unlock(drive)
            }
            // A guest that stands still goes on later.
            MigrationEvent::Cancelled | MigrationEvent::Failed => opened.take_lock(drive),
            MigrationEvent::Setup | MigrationEvent::Done => Ok(()),
        };
        if let Err(error) = outcome {
            const WARNING: u32 = 2;
            self.host.log(WARNING, "virtio-blk-pci", &error.message);
        }
    }

    fn fds(&mut self, mode: Mode) -> Vec<Fd> {
        let image = self.opened.iter().filter(|_| mode.preserves_fds());
        let fd = |opened: &Opened| Fd {
            name: IMAGE.into(),
            instance: 0,
            fd: opened.image.file.as_raw_fd(),
        };
        image.map(fd).collect()
    }
}

impl VirtioDevice for Block {
    fn virtio(&self) -> VirtioInfo {
        let features = opened(&self.opened).map_or(0, |opened| {
            config_space::features(&self.options, &opened.limits)
        });
        VirtioInfo {
            device_id: DEVICE_ID,
            features,
            queue_sizes: vec![self.options.queue_size; self.options.queues.into()],
            config_len: CONFIG_LEN,
            pci_class: PCI_CLASS,
        }
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        match &self.opened {
            Some(opened) => config_bytes(
                &config_space::bytes(&self.options, &opened.limits, self.write_cache),
                offset,
                data,
            ),
            None => data.fill(0),
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Some(byte) = WRITEBACK
            .checked_sub(offset)
            .and_then(|at| data.get(usize::try_from(at).ok()?))
            .filter(|_| self.options.config_wce)
        else {
            return;
        };
        self.write_cache = *byte != 0;
        let Some(opened) = self.opened.as_ref().filter(|opened| opened.follows) else {
            return;
        };
        let was = opened.cached.swap(self.write_cache, Ordering::Relaxed);
        // What the cache holds is never flushed by a driver that has turned it off.
        if was
            && !self.write_cache
            && !self.options.drive.no_flush
            && let Err(e) = opened.image.file.sync_data()
        {
            let error = Error::io(format!("Cannot flush '{}'", opened.image.name), &e);
            self.host.failed(&error.message);
        }
    }

    fn start(&mut self, run: VirtioRun) -> Result<()> {
        for (index, head) in &self.in_flight {
            let queue = run.queues.iter().find(|queue| queue.index() == *index);
            if queue.is_none_or(|queue| *head >= queue.size()) {
                return Err(Error::state(format!(
                    "Request {head} of queue {index} is in flight, which the driver has not \
                     enabled or made smaller; the state is not of this guest"
                )));
            }
        }
        let Some(opened) = &mut self.opened else {
            return Err(not_realized());
        };
        opened.take_lock(&self.options.drive)?;
        opened.follows = run.features & bit(VIRTIO_BLK_F_CONFIG_WCE) != 0;
        // Section 5.2.5.2: a driver that knows neither cannot flush, so that nothing may wait for it.
        let cached = if opened.follows {
            self.write_cache
        } else {
            run.features & bit(VIRTIO_BLK_F_FLUSH) != 0
        };
        opened.cached.store(cached, Ordering::Relaxed);
        let engine = match opened.engine.take() {
            Some(engine) => engine,
            // The last one went down with its thread.
            None => Engine::new(opened.image.clone(), &self.options)?,
        };
        let events = engine.events();
        let events: Vec<_> = events.into_iter().map(Watched::Readable).collect();
        let service = Service::new(
            Disk {
                limits: opened.limits.clone(),
                serial: self.options.serial,
                flushes: !self.options.drive.no_flush,
                write_cache: opened.cached.clone(),
            },
            engine,
            self.in_flight.clone(),
            FaultLog::new(self.host.clone(), &self.options.id, &opened.image.name),
        );
        self.worker = Some(Worker::spawn(
            &self.options.id,
            self.host.clone(),
            run,
            service,
            &events,
        )?);
        Ok(())
    }

    fn quiesce(&mut self) -> Result<Vec<QueueProgress>> {
        let Some(worker) = self.worker.take() else {
            return Ok(Vec::new());
        };
        let (service, progress, outcome) = worker.stop()?;
        let (engine, in_flight) = service.into_parts();
        self.in_flight = in_flight;
        if let Some(opened) = &mut self.opened {
            opened.engine = Some(engine);
        }
        outcome.map(|()| progress)
    }
}

impl Drop for Block {
    /// A host that drops a running device still has guest memory mapped; it may not for long.
    fn drop(&mut self) {
        if self.worker.is_some() {
            // There is nobody left to tell.
            let _ = self.quiesce();
        }
    }
}

fn opened(opened: &Option<Opened>) -> Result<&Opened> {
    opened.as_ref().ok_or_else(not_realized)
}

fn not_realized() -> Error {
    Error::state("It is not realized; realize it first")
}
