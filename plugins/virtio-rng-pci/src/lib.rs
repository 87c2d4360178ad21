//! Entropy for the guest: VIRTIO 1.3 section 5.4.

use std::fs::File;
use std::os::fd::AsRawFd;

use baton_plugin_api::vm_memory::{Bytes, GuestMemoryError};
use baton_plugin_api::{
    BusClass, Config, Device, DeviceType, Error, Fd, FdDeclaration, GuestRam, Host, Mode, Property,
    PropertyKind, QueueHandler, QueueProgress, Result, VirtQueue, VirtioDevice, VirtioInfo,
    VirtioRun, Worker,
};

baton_plugin_api::export_plugin! {
    description: "Entropy for the guest",
    devices: [virtio Rng],
}

/// The device number of VIRTIO 1.3 section 5.
const DEVICE_ID: u16 = 4;
const QUEUE_SIZE: u16 = 64;
/// PCI class "encryption controller, other", as QEMU has it for this device.
const PCI_CLASS: u32 = 0x00ff00;
/// What one request may ask for; the driver asks again for more.
const REQUEST_MAX: usize = 64 << 10;
const SOURCE: &str = "source";
/// The kernel's own entropy.
const KERNEL: &str = "/dev/urandom";

struct Rng {
    id: String,
    filename: String,
    host: Host,
    source: Option<File>,
    worker: Option<Worker<Filler>>,
}

impl Device for Rng {
    fn device_type() -> DeviceType {
        DeviceType {
            properties: vec![
                Property::new(
                    "filename",
                    PropertyKind::String { max_len: 4096 },
                    "Where the entropy comes from, if no rng= says so (default: /dev/urandom)",
                ),
                Property::new(
                    "rng",
                    PropertyKind::Object(vec!["rng-builtin".into(), "rng-random".into()]),
                    "Where the entropy comes from",
                ),
            ],
            fds: vec![FdDeclaration {
                name: SOURCE.into(),
                help: "The open entropy source".into(),
                modes: vec![Mode::CprTransfer, Mode::CprExec],
            }],
            ..DeviceType::new("virtio-rng-pci", BusClass::Virtio, "Virtio entropy device")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        let said = config.string_if_said("filename")?;
        let object = config.objects.get("rng");
        if said.is_some() && object.is_some() {
            return Err(Error::invalid(
                "Properties 'filename' and 'rng' both say where the entropy comes from; leave one out",
            ));
        }
        // An rng-builtin has none: the kernel's is what it means.
        let named = object.and_then(|object| object.options.get("filename"));
        let filename = said
            .or(named.map(String::as_str))
            .unwrap_or(KERNEL)
            .to_owned();
        Ok(Self {
            id: config.id,
            filename,
            host,
            source: None,
            worker: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let source = match self.host.preserved_fd(SOURCE, 0)? {
            Some(fd) => File::from(fd),
            None => match self.host.passed_file(&self.filename, false, false)? {
                Some(fd) => File::from(fd),
                None => File::open(&self.filename)
                    .map_err(|e| Error::io(format!("Cannot open '{}'", self.filename), &e))?,
            },
        };
        self.source = Some(source);
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn fds(&mut self, _mode: Mode) -> Vec<Fd> {
        let fd = |file: &File| Fd {
            name: SOURCE.into(),
            instance: 0,
            fd: file.as_raw_fd(),
        };
        self.source.iter().map(fd).collect()
    }
}

impl VirtioDevice for Rng {
    fn virtio(&self) -> VirtioInfo {
        VirtioInfo {
            device_id: DEVICE_ID,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: 0,
            pci_class: PCI_CLASS,
        }
    }

    fn start(&mut self, run: VirtioRun) -> Result<()> {
        let source = self
            .source
            .as_ref()
            .ok_or_else(|| Error::state("It is not realized"))?
            .try_clone()
            .map_err(|e| Error::io("Cannot duplicate the entropy source", &e))?;
        self.worker = Some(Worker::spawn(
            &self.id,
            self.host.clone(),
            run,
            Filler { source },
            &[],
        )?);
        Ok(())
    }

    fn quiesce(&mut self) -> Result<Vec<QueueProgress>> {
        Worker::quiesce(&mut self.worker)
    }
}

/// Fills the driver's buffers, on the worker's thread. Nothing is ever in flight between two kicks.
struct Filler {
    source: File,
}

impl QueueHandler for Filler {
    fn kicked(&mut self, queues: &mut [VirtQueue], at: usize, memory: &GuestRam) -> Result<()> {
        let queue = &mut queues[at];
        while let Some(chain) = queue.pop(memory)? {
            let head = chain.head_index();
            let mut written = 0;
            for buffer in chain.writable() {
                let wanted = (buffer.len() as usize).min(REQUEST_MAX - written);
                match memory.read_volatile_from(buffer.addr(), &mut self.source, wanted) {
                    Ok(n) => written += n,
                    Err(GuestMemoryError::IOError(e)) => {
                        return Err(Error::io("Cannot read the entropy source", &e));
                    }
                    // The driver named an address that is no memory: it gets what came before.
                    Err(_) => break,
                }
            }
            queue.complete(memory, head, written as u32)?;
        }
        queue.notify(memory)
    }
}
