//! What is on stable storage when a request is answered.
// What of a file the page cache still owes to the disk is told by a system call that no crate
// wraps, which is what needs `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use baton_plugin_api::virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_WRITE_ZEROES,
};
use nix::libc;

use super::*;

/// `cachestat`, linux/mman.h; the number is that of x86-64 and of the generic table.
const SYS_CACHESTAT: libc::c_long = 451;

/// Whether pages of `image` are dirty, if this kernel and file system tell.
fn is_dirty(image: &Path) -> Option<bool> {
    let file = File::open(image).unwrap();
    // Offset and length: all of it. Then the pages cached, dirty, in writeback, and two more.
    let (range, mut counts) = ([0u64; 2], [0u64; 5]);
    // SAFETY: both arrays are as long as the system call's structures and live through it.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    (result == 0).then_some(counts[1] + counts[2] > 0)
}

/// Whether `is_dirty` tells anything here.
fn can_tell(image: &Path) -> bool {
    File::open(image).unwrap().sync_all().unwrap();
    let clean = is_dirty(image);
    if clean != Some(false) {
        eprintln!("SKIPPED: the kernel does not tell which pages of the image are dirty");
    }
    clean == Some(false)
}

fn each_bench(change: impl Fn(&mut Drive), features: u64, test: impl Fn(&Path, &mut Bench)) {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(64 << 10);
        let mut drive = Drive {
            aio: Some(aio.into()),
            ..drive(&image)
        };
        change(&mut drive);
        if can_tell(&image) {
            let mut bench = Bench::with(drive, &[], features);
            test(&image, &mut bench);
            bench.quiesce();
        }
    });
}

#[test]
fn a_write_waits_for_a_flush_if_the_driver_can_flush() {
    each_bench(
        |_| {},
        FEATURES,
        |image, bench| {
            assert_eq!(bench.write(0, &[7; 4096]), OK);
            assert_eq!(is_dirty(image), Some(true));
            assert_eq!(bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[]).status, OK);
            assert_eq!(is_dirty(image), Some(false));
        },
    );
}

#[test]
fn a_write_is_durable_if_the_driver_cannot_flush() {
    each_bench(
        |_| {},
        0,
        |image, bench| {
            assert_eq!(bench.write(0, &[7; 4096]), OK);
            assert_eq!(is_dirty(image), Some(false));
            let range = bench.readable(&[0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(bench.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[range]).status, OK);
            assert_eq!(is_dirty(image), Some(false));
        },
    );
}

#[test]
fn the_drivers_choice_of_cache_holds_from_the_next_write_on() {
    let features = FEATURES | 1 << VIRTIO_BLK_F_CONFIG_WCE;
    each_bench(
        |_| {},
        features,
        |image, bench| {
            assert_eq!(bench.write(0, &[7; 4096]), OK);
            assert_eq!(is_dirty(image), Some(true));
            // What was written before is not left behind.
            bench.disk.write_config(32, &[0]);
            assert_eq!(is_dirty(image), Some(false));
            assert_eq!(bench.write(0, &[8; 4096]), OK);
            assert_eq!(is_dirty(image), Some(false));
            bench.disk.write_config(32, &[1]);
            assert_eq!(bench.write(0, &[9; 4096]), OK);
            assert_eq!(is_dirty(image), Some(true));
        },
    );
}

#[test]
fn no_flush_reaches_the_host_if_the_drive_says_so() {
    for features in [0, FEATURES] {
        each_bench(
            |drive| drive.no_flush = true,
            features,
            |image, bench| {
                assert_eq!(bench.write(0, &[7; 4096]), OK);
                assert_eq!(bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[]).status, OK);
                assert_eq!(is_dirty(image), Some(true));
            },
        );
    }
}
