//! Discard and write zeroes.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use baton_plugin_api::virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;

const UNMAP: u32 = 1;

impl Bench {
    /// A discard or write zeroes of ranges of sectors.
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, sectors, flags)| {
                let mut raw = sector.to_le_bytes().to_vec();
                raw.extend(sectors.to_le_bytes());
                raw.extend(flags.to_le_bytes());
                raw
            })
            .collect();
        let data = self.readable(&bytes);
        self.ask(kind, 0, &[data]).status
    }
}

fn bench(dir: &Dir, aio: &str, unmap: bool) -> (PathBuf, Bench) {
    let image = dir.image(4 << 20);
    let drive = Drive {
        aio: Some(aio.into()),
        discard: unmap,
        ..drive(&image)
    };
    let bench = Bench::new(drive, &[]);
    (image, bench)
}

/// Blocks on the host's disk, once what was written has some.
fn blocks(image: &Path) -> u64 {
    File::open(image).unwrap().sync_all().unwrap();
    fs::metadata(image).unwrap().blocks()
}

#[test]
fn a_discard_frees_blocks_if_the_drive_says_unmap() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let (image, mut bench) = bench(&dir, aio, true);
        let before = blocks(&image);
        let ranges = [(1024, 1024, 0), (4096, 2048, 0)];
        assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &ranges), OK);
        assert!(blocks(&image) < before);
        assert_eq!(file_bytes(&image, 1024 * 512, 512), [0; 512]);
        assert_eq!(file_bytes(&image, 6143 * 512, 512), [0; 512]);
        assert_eq!(file_bytes(&image, 2048 * 512, 512), [0x11; 512]);
        assert_eq!(fs::metadata(&image).unwrap().len(), 4 << 20);
        bench.quiesce();
    });
}

#[test]
fn a_discard_does_nothing_if_the_drive_does_not_say_unmap() {
    let dir = Dir::new();
    let (image, mut bench) = bench(&dir, "threads", false);
    assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8192, 0)]), OK);
    assert_eq!(file_bytes(&image, 0, 512), [0x11; 512]);
    bench.quiesce();
}

#[test]
fn zeroes_are_written_and_free_blocks_only_if_both_sides_want_it() {
    on_each_engine(|aio| {
        for (drive_unmaps, flags, frees) in
            [(true, UNMAP, true), (true, 0, false), (false, UNMAP, false)]
        {
            let dir = Dir::new();
            let (image, mut bench) = bench(&dir, aio, drive_unmaps);
            let before = blocks(&image);
            let ranges = [(1024, 2048, flags)];
            assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &ranges), OK);
            assert_eq!(
                file_bytes(&image, 1024 * 512, 2048 * 512),
                vec![0; 2048 * 512]
            );
            assert_eq!(file_bytes(&image, 1023 * 512, 512), [0x11; 512]);
            assert_eq!(file_bytes(&image, 3072 * 512, 512), [0x11; 512]);
            assert_eq!(blocks(&image) < before, frees, "{drive_unmaps} {flags}");
            bench.quiesce();
        }
    });
}

#[test]
fn zeroes_are_written_one_by_one_where_the_file_system_cannot_make_them() {
    // tmpfs is such a one.
    let tmpfs = Path::new("/dev/shm");
    if !tmpfs.is_dir() {
        eprintln!("SKIPPED: there is no /dev/shm");
        return;
    }
    let dir = Dir::under(tmpfs);
    let (image, mut bench) = bench(&dir, "threads", false);
    // More than one bounce buffer, and no multiple of it.
    let status = bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(1, 1537, 0)]);
    assert_eq!(status, OK);
    assert_eq!(file_bytes(&image, 512, 1537 * 512), vec![0; 1537 * 512]);
    assert_eq!(file_bytes(&image, 0, 512), [0x11; 512]);
    assert_eq!(file_bytes(&image, 1538 * 512, 512), [0x11; 512]);
    bench.quiesce();
}

#[test]
fn ranges_that_break_a_limit_are_refused() {
    let dir = Dir::new();
    let (image, mut bench) = bench(&dir, "threads", true);
    let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    for (what, kind, ranges, status) in [
        ("unmap in a discard", discard, vec![(0, 8, UNMAP)], UNSUPP),
        ("an unknown flag", discard, vec![(0, 8, 2)], UNSUPP),
        ("an unknown flag", zeroes, vec![(0, 8, 3)], UNSUPP),
        ("behind the end", discard, vec![(8191, 2, 0)], IOERR),
        ("behind the end", zeroes, vec![(8192, 1, 0)], IOERR),
        ("an overflow", discard, vec![(u64::MAX, 8, 0)], IOERR),
        (
            "one bad range of two",
            discard,
            vec![(0, 8, 0), (9000, 8, 0)],
            IOERR,
        ),
        ("too many ranges", discard, vec![(0, 8, 0); 33], IOERR),
        ("too many ranges", zeroes, vec![(0, 8, 0); 2], IOERR),
        ("no range", discard, vec![], IOERR),
    ] {
        assert_eq!(bench.ranges(kind, &ranges), status, "{what}");
    }
    let half = bench.readable(&[0; 24]);
    assert_eq!(bench.ask(discard, 0, &[half]).status, IOERR);
    assert_eq!(file_bytes(&image, 0, 4096), [0x11; 4096]);
    assert_eq!(bench.ranges(discard, &[(0, 8, 0); 32]), OK);
    bench.quiesce();
}

#[test]
fn a_range_has_so_many_sectors_at_most() {
    let dir = Dir::new();
    let image = dir.image(0);
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(4 << 30).unwrap();
    let mut bench = Bench::new(drive(&image), &[]);
    for (kind, most) in [
        (VIRTIO_BLK_T_WRITE_ZEROES, 1 << 17),
        (VIRTIO_BLK_T_DISCARD, 1 << 22),
    ] {
        assert_eq!(bench.ranges(kind, &[(0, most, 0)]), OK);
        assert_eq!(bench.ranges(kind, &[(0, most + 1, 0)]), IOERR);
    }
    bench.quiesce();
}

#[test]
fn what_is_not_offered_is_unsupported() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let off = || Value::Bool(false);
    let said = [("discard", off()), ("write-zeroes", off())];
    let mut bench = Bench::new(drive(&image), &said);
    assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(
        bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]),
        UNSUPP
    );
    bench.quiesce();
}

/// A block device of the host, on a file.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let name = String::from_utf8(made.stdout).ok()?;
        made.status.success().then(|| Self(name.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_is_a_disk_too() {
    on_each_engine(|aio| {
        let dir = Dir::alone();
        let image = dir.image(4 << 20);
        let Some(device) = Loop::new(&image) else {
            eprintln!("SKIPPED: this test may not make loop devices");
            return;
        };
        let drive = Drive {
            aio: Some(aio.into()),
            discard: true,
            ..drive(&device.0)
        };
        let mut bench = Bench::new(drive, &[]);
        assert_eq!(bench.disk.read_config(0, 8), 8192u64.to_le_bytes());
        let data = pattern(3, 4096);
        assert_eq!(bench.write(64, &data), OK);
        assert_eq!(bench.read(64, 4096).data, data);
        assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[(1024, 1024, 0)]), OK);
        assert_eq!(bench.read(1024, 4096).data, [0; 4096]);
        for flags in [0, UNMAP] {
            assert_eq!(
                bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(64, 8, flags)]),
                OK
            );
            assert_eq!(bench.read(64, 4096).data, [0; 4096]);
            assert_eq!(bench.write(64, &data), OK);
        }
        assert_eq!(bench.read(72, 512).data, [0x11; 512]);
        bench.quiesce();
    });
}
