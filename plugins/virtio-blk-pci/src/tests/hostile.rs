//! Drivers that break the rules.

use super::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn bench() -> (Dir, PathBuf, Bench) {
    let dir = Dir::new();
    let image = dir.image(64 << 10);
    let bench = Bench::new(drive(&image), &[]);
    (dir, image, bench)
}

/// Waits until the device says that it is broken; gives why.
fn failure(bench: &mut Bench) -> String {
    bench.queues[0].kick();
    let failures = bench.host.wait_for_failure();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(bench.disk.quiesce(&mut bench.queues).is_err());
    failures[0].clone()
}

#[test]
fn a_chain_that_cannot_be_answered_breaks_the_device() {
    // Address, length, flags and next of each descriptor; the header is at 0x100000.
    type Chain = &'static [(u64, u32, u16, u16)];
    let cases: [(&str, Chain, &str); 7] = [
        (
            "nothing to write",
            &[(0x10_0000, 16, 0, 0)],
            "Queue 0: A request has no place for its status; reset the device",
        ),
        (
            "a status of no bytes",
            &[(0x10_0000, 16, NEXT, 1), (0x10_1000, 0, WRITE, 0)],
            "Queue 0: A request has no place for its status; reset the device",
        ),
        (
            "a loop",
            &[(0x10_0000, 16, NEXT, 1), (0x10_1000, 1, WRITE | NEXT, 0)],
            "Queue 0: A request's chain of descriptors is broken; reset the device",
        ),
        (
            "a next that is no descriptor",
            &[(0x10_0000, 16, NEXT, 1), (0x10_1000, 1, WRITE | NEXT, 999)],
            "Queue 0: A request's chain of descriptors is broken; reset the device",
        ),
        (
            "a table that is no memory",
            &[(1 << 40, 64, 4, 0)],
            "Queue 0: A request's chain of descriptors is broken; reset the device",
        ),
        (
            "a status that is no memory",
            &[(0x10_0000, 16, NEXT, 1), (1 << 40, 1, WRITE, 0)],
            "Queue 0: the status of a request is at 0x10000000000, which is no memory; reset the \
             device",
        ),
        (
            "a status behind the last address",
            &[(0x10_0000, 16, NEXT, 1), (u64::MAX, 2, WRITE, 0)],
            "Queue 0: A request has no place for its status; reset the device",
        ),
    ];
    for (what, chain, why) in cases {
        let (_dir, _image, mut bench) = bench();
        for (at, &(address, len, flags, next)) in chain.iter().enumerate() {
            bench.queues[0].write_descriptor(at as u16, address, len, flags, next);
        }
        bench.queues[0].make_available(0);
        assert_eq!(failure(&mut bench), why, "{what}");
    }
}

#[test]
fn an_indirect_chain_longer_than_the_queue_breaks_the_device() {
    let (_dir, _image, mut bench) = bench();
    let header = bench.header(VIRTIO_BLK_T_IN, 0);
    let part = bench.writable(512);
    let mut chain = vec![part; 300];
    chain[0] = header;
    let table = bench.allocate(300 * 16, 16);
    bench.queues[0].add_indirect(table, &chain);
    assert_eq!(
        failure(&mut bench),
        "Queue 0: A request has more descriptors than the queue; reset the device"
    );
}

#[test]
fn a_head_that_is_no_descriptor_breaks_the_device() {
    let (_dir, _image, mut bench) = bench();
    bench.queues[0].make_available(256);
    assert!(failure(&mut bench).contains("is broken"));
}

#[test]
fn a_descriptor_made_available_twice_breaks_the_device() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(8 << 20);
        let drive = Drive {
            aio: Some(aio.into()),
            ..drive(&image)
        };
        let mut bench = Bench::stopped(drive, &[], FEATURES);
        let data = bench.writable(8 << 20);
        let head = bench.add(0, VIRTIO_BLK_T_IN, 0, &[data]);
        bench.queues[0].make_available(head);
        bench.start();
        assert_eq!(
            failure(&mut bench),
            format!(
                "Queue 0: the driver made descriptor {head} available while it was in use; reset \
                 the device"
            )
        );
    });
}

#[test]
fn data_that_is_no_memory_is_an_error_and_nothing_worse() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(64 << 10);
        let drive = Drive {
            aio: Some(aio.into()),
            ..drive(&image)
        };
        let mut bench = Bench::new(drive, &[]);
        for address in [1 << 40, u64::MAX - 100, RAM_BYTES as u64 - 512] {
            for (kind, data) in [
                (VIRTIO_BLK_T_IN, Buffer::writable(address, 1024)),
                (VIRTIO_BLK_T_OUT, Buffer::readable(address, 1024)),
                (11, Buffer::readable(address, 1024)),
                (8, Buffer::writable(address, 1024)),
            ] {
                let head = bench.add(0, kind, 0, &[data]);
                bench.queues[0].kick();
                let used = bench.queues[0].wait_used(1);
                assert_eq!(
                    used,
                    [Used { head, written: 0 }].map(|u| Used {
                        // Only the status could be written when there is no data to write.
                        written: u32::from(!data.writable),
                        ..u
                    })
                );
                assert_eq!(bench.status_of(0, head), IOERR, "{kind} {address:#x}");
            }
        }
        assert_eq!(file_bytes(&image, 0, 4096), [0x11; 4096]);
        bench.quiesce();
    });
}

#[test]
fn a_header_that_is_short_or_no_memory_is_an_error() {
    let (_dir, _image, mut bench) = bench();
    for header in [
        Buffer::readable(1 << 40, 16),
        Buffer::readable(FIRST_PLACE, 15),
        Buffer::readable(u64::MAX, 16),
    ] {
        let status = bench.status();
        bench.queues[0].add(&[header, status]);
        bench.queues[0].kick();
        bench.queues[0].wait_used(1);
        assert_eq!(bench.ram.read(status.address, 1), [IOERR]);
    }
    bench.quiesce();
}

#[test]
fn a_request_larger_than_any_memory_holds_nothing_up() {
    let (_dir, _image, mut bench) = bench();
    let status = bench.status();
    let header = bench.header(VIRTIO_BLK_T_IN, 0);
    // The same memory again and again: almost 4 GiB, on a disk of 64 KiB.
    let large = Buffer::writable(0, RAM_BYTES as u32);
    let mut chain = vec![large; 170];
    chain.insert(0, header);
    chain.push(status);
    bench.queues[0].add(&chain);
    bench.queues[0].kick();
    bench.queues[0].wait_used(1);
    assert_eq!(bench.ram.read(status.address, 1), [IOERR]);
    bench.quiesce();
}

#[test]
fn a_broken_device_works_again_after_a_reset() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(64 << 10);
        let drive = Drive {
            aio: Some(aio.into()),
            ..drive(&image)
        };
        let mut bench = Bench::new(drive, &[]);
        bench.queues[0].make_available(999);
        failure(&mut bench);
        bench.disk.reset().unwrap();
        bench.queues = vec![GuestQueue::new(&bench.ram, 0, 256, FIRST_QUEUE)];
        bench.ram.write(FIRST_QUEUE, &[0; 0x3000]);
        bench.start();
        assert_eq!(bench.read(0, 512).data, [0x11; 512]);
        bench.quiesce();
    });
}
