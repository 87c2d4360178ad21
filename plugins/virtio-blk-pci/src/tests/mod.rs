//! The device as its host and a guest's driver see it, on real files.

mod config_space;
mod direct;
mod durability;
mod engine;
mod handover;
mod hostile;
mod image;
mod requests;
mod state;
mod zeroes;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use baton_plugin_api::testing::{
    Buffer, GuestQueue, TestHost, TestRam, TestVirtio, Used, config_of,
};
use baton_plugin_api::virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use baton_plugin_api::{Config, Drive, Result, Value};

use crate::device::Block;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What most drivers negotiate.
const FEATURES: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const SECTION: &str = "virtio-blk";
/// What a status byte holds before the device has written it.
const UNWRITTEN: u8 = 0xaa;

/// Runs a test with either engine, so that both do the same.
fn on_each_engine(test: impl Fn(&str)) {
    test("threads");
    if io_uring::IoUring::new(1).is_err() {
        eprintln!("SKIPPED with aio=io_uring: this kernel does not let us");
        return;
    }
    test("io_uring");
}

/// A directory that goes away.
struct Dir(PathBuf, #[expect(dead_code)] Company);

/// Whether tests run beside this one. A process that a test starts has, before it executes its
/// program, all that is open here, locks among it: such a test is alone.
enum Company {
    Any(#[expect(dead_code)] RwLockReadGuard<'static, ()>),
    None(#[expect(dead_code)] RwLockWriteGuard<'static, ()>),
}

static COMPANY: RwLock<()> = RwLock::new(());

impl Dir {
    fn new() -> Self {
        Self::under(&std::env::temp_dir())
    }

    fn under(parent: &Path) -> Self {
        let company = COMPANY.read().unwrap_or_else(PoisonError::into_inner);
        Self(make_dir(parent), Company::Any(company))
    }

    /// For a test that starts processes.
    fn alone() -> Self {
        let company = COMPANY.write().unwrap_or_else(PoisonError::into_inner);
        Self(make_dir(&std::env::temp_dir()), Company::None(company))
    }

    /// An image of `bytes` that all are 0x11, so that zeroes are seen.
    fn image(&self, bytes: usize) -> PathBuf {
        let path = self.0.join("disk.img");
        fs::write(&path, vec![0x11; bytes]).unwrap();
        path
    }
}

fn make_dir(parent: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "baton-virtio-blk-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let path = parent.join(name);
    fs::create_dir(&path).unwrap();
    path
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The drive that a plain `-drive file=...` makes.
fn drive(image: &Path) -> Drive {
    Drive {
        id: "d0".into(),
        file: image.to_str().unwrap().into(),
        format: "raw".into(),
        locking: true,
        ..Drive::default()
    }
}

fn config(drive: Drive, said: &[(&str, Value)]) -> Config {
    let mut config = config_of::<Block>("disk0", said);
    config
        .properties
        .insert("drive".into(), Value::String(drive.id.clone()));
    config.drives = BTreeMap::from([("drive".into(), drive)]);
    config
}

/// Creates and realizes; for tests of what is refused.
fn realize(drive: Drive, said: &[(&str, Value)]) -> Result<TestVirtio<Block>> {
    TestVirtio::new(config(drive, said), &TestHost::new())
}

fn refusal(drive: Drive, said: &[(&str, Value)]) -> String {
    let error = realize(drive, said).err().expect("it is refused");
    assert!(!error.message.contains('\n'), "{}", error.message);
    error.message
}

fn uint(value: u64) -> Value {
    Value::Uint(value)
}

/// A running disk with a driver.
struct Bench {
    host: Arc<TestHost>,
    ram: Arc<TestRam>,
    queues: Vec<GuestQueue>,
    disk: TestVirtio<Block>,
    features: u64,
    /// Where the next request's header and data go.
    place: u64,
    status_at: BTreeMap<(usize, u16), u64>,
}

/// What came back of a request.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u8,
    data: Vec<u8>,
    written: u32,
}

const RAM_BYTES: usize = 24 << 20;
const FIRST_QUEUE: u64 = 0x1000;
const FIRST_PLACE: u64 = 0x40_0000;

impl Bench {
    fn new(drive: Drive, said: &[(&str, Value)]) -> Self {
        Self::with(drive, said, FEATURES)
    }

    fn with(drive: Drive, said: &[(&str, Value)], features: u64) -> Self {
        let mut bench = Self::stopped(drive, said, features);
        bench.start();
        bench
    }

    fn stopped(drive: Drive, said: &[(&str, Value)], features: u64) -> Self {
        let host = TestHost::new();
        let disk = TestVirtio::new(config(drive, said), &host).unwrap();
        let ram = TestRam::new(RAM_BYTES);
        let sizes = disk.info().queue_sizes.clone();
        let queue = |(at, size): (usize, &u16)| {
            GuestQueue::new(&ram, at as u16, *size, FIRST_QUEUE + at as u64 * 0xa000)
        };
        Self {
            queues: sizes.iter().enumerate().map(queue).collect(),
            host,
            ram,
            disk,
            features,
            place: FIRST_PLACE,
            status_at: BTreeMap::new(),
        }
    }

    fn start(&mut self) {
        self.disk
            .start(&self.ram, self.features, &mut self.queues)
            .unwrap();
    }

    fn quiesce(&mut self) {
        self.disk.quiesce(&mut self.queues).unwrap();
    }

    /// Memory for something, which is then never used again.
    fn allocate(&mut self, bytes: u64, alignment: u64) -> u64 {
        let at = self.place.next_multiple_of(alignment);
        self.place = at + bytes;
        assert!(self.place <= RAM_BYTES as u64, "the test uses too much RAM");
        at
    }

    fn header(&mut self, kind: u32, sector: u64) -> Buffer {
        let at = self.allocate(16, 16);
        self.ram.write(at, &kind.to_le_bytes());
        self.ram.write(at + 8, &sector.to_le_bytes());
        Buffer::readable(at, 16)
    }

    fn status(&mut self) -> Buffer {
        let at = self.allocate(1, 1);
        self.ram.write(at, &[UNWRITTEN]);
        Buffer::writable(at, 1)
    }

    fn readable(&mut self, data: &[u8]) -> Buffer {
        let at = self.allocate(data.len() as u64, 512);
        self.ram.write(at, data);
        Buffer::readable(at, data.len() as u32)
    }

    fn writable(&mut self, len: u32) -> Buffer {
        let at = self.allocate(len.into(), 512);
        Buffer::writable(at, len)
    }

    /// Makes a request available on queue `at`.
    fn add(&mut self, at: usize, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
        let header = self.header(kind, sector);
        let status = self.status();
        let chain: Vec<Buffer> = [header]
            .iter()
            .chain(data)
            .chain([&status])
            .copied()
            .collect();
        let head = self.queues[at].add(&chain);
        self.status_at.insert((at, head), status.address);
        head
    }

    fn status_of(&self, at: usize, head: u16) -> u8 {
        self.ram.read(self.status_at[&(at, head)], 1)[0]
    }

    /// Has a request done on the first queue.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Answer {
        let head = self.add(0, kind, sector, data);
        self.queues[0].kick();
        let used = self.queues[0].wait_used(1);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].head, head);
        let filled = data.iter().filter(|buffer| buffer.writable);
        Answer {
            status: self.status_of(0, head),
            data: filled
                .flat_map(|buffer| self.ram.read(buffer.address, buffer.len as usize))
                .collect(),
            written: used[0].written,
        }
    }

    fn read(&mut self, sector: u64, len: u32) -> Answer {
        let data = self.writable(len);
        self.ask(VIRTIO_BLK_T_IN, sector, &[data])
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let data = self.readable(data);
        self.ask(VIRTIO_BLK_T_OUT, sector, &[data]).status
    }
}

/// A request as a driver that has nothing but its rings sees it.
fn heads(used: &[Used]) -> Vec<u16> {
    let mut heads: Vec<u16> = used.iter().map(|used| used.head).collect();
    heads.sort_unstable();
    heads
}

/// Bytes that tell every place and every `seed` apart.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| {
            let mixed = (at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 17 | seed);
            (mixed.rotate_left((at % 8) as u32 * 8) >> 24) as u8
        })
        .collect()
}

fn file_bytes(path: &Path, from: usize, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut data = vec![0; len];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut data, from as u64)
        .unwrap();
    data
}
