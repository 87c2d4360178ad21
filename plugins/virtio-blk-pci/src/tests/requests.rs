//! Reading, writing, flushing, identifying.

use baton_plugin_api::virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_SCSI_CMD,
};
use baton_plugin_api::virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;

fn bench(aio: &str, bytes: usize, said: &[(&str, Value)]) -> (Dir, PathBuf, Bench) {
    let dir = Dir::new();
    let image = dir.image(bytes);
    let drive = Drive {
        aio: Some(aio.into()),
        ..drive(&image)
    };
    let bench = Bench::new(drive, said);
    (dir, image, bench)
}

#[test]
fn a_write_lands_in_the_file_and_reads_back() {
    on_each_engine(|aio| {
        let (_dir, image, mut bench) = bench(aio, 64 << 10, &[]);
        let data = pattern(1, 4096);
        assert_eq!(bench.write(3, &data), OK);
        assert_eq!(file_bytes(&image, 3 * 512, 4096), data);
        assert_eq!(file_bytes(&image, 0, 3 * 512), [0x11; 3 * 512]);
        let read = bench.read(3, 4096);
        assert_eq!((read.status, read.written), (OK, 4097));
        assert_eq!(read.data, data);
        bench.quiesce();
    });
}

#[test]
fn a_request_may_be_split_up_in_any_way() {
    on_each_engine(|aio| {
        let (_dir, _image, mut bench) = bench(aio, 64 << 10, &[]);
        let data = pattern(2, 1536);
        let header = bench.header(VIRTIO_BLK_T_OUT, 1);
        let body = bench.readable(&data);
        let status = bench.status();
        // The header in two parts, the second of which has the first of the data behind it.
        bench
            .ram
            .write(body.address - 12, &bench.ram.read(header.address + 4, 12));
        let head = bench.queues[0].add(&[
            Buffer::readable(header.address, 4),
            Buffer::readable(body.address - 12, 112),
            Buffer::readable(body.address + 100, 0),
            Buffer::readable(body.address + 100, 1436),
            status,
        ]);
        bench.status_at.insert((0, head), status.address);
        bench.queues[0].kick();
        bench.queues[0].wait_used(1);
        assert_eq!(bench.status_of(0, head), OK);

        // The status right behind the data, in one descriptor.
        let header = bench.header(VIRTIO_BLK_T_IN, 1);
        let place = bench.writable(1537);
        let head = bench.queues[0].add(&[header, place]);
        bench.queues[0].kick();
        let used = bench.queues[0].wait_used(1);
        assert_eq!(
            used,
            [Used {
                head,
                written: 1537
            }]
        );
        let mut expected = data;
        expected.push(OK);
        assert_eq!(bench.ram.read(place.address, 1537), expected);
        bench.quiesce();
    });
}

#[test]
fn a_request_in_an_indirect_table_is_done() {
    on_each_engine(|aio| {
        let (_dir, _image, mut bench) = bench(aio, 512 << 10, &[]);
        let header = bench.header(VIRTIO_BLK_T_IN, 0);
        // As many segments as `seg_max` allows.
        let parts: Vec<Buffer> = (0..254).map(|_| bench.writable(512)).collect();
        let status = bench.status();
        let table = bench.allocate(256 * 16, 16);
        let chain: Vec<Buffer> = [header]
            .iter()
            .chain(&parts)
            .chain([&status])
            .copied()
            .collect();
        bench.queues[0].add_indirect(table, &chain);
        bench.queues[0].kick();
        bench.queues[0].wait_used(1);
        assert_eq!(bench.ram.read(status.address, 1), [OK]);
        assert_eq!(bench.ram.read(parts[253].address, 512), [0x11; 512]);
        bench.quiesce();
    });
}

#[test]
fn a_transfer_of_nothing_is_done() {
    on_each_engine(|aio| {
        let (_dir, _image, mut bench) = bench(aio, 4096, &[]);
        assert_eq!(bench.read(8, 0).status, OK);
        bench.quiesce();
    });
}

#[test]
fn a_flush_is_answered() {
    on_each_engine(|aio| {
        let (_dir, _image, mut bench) = bench(aio, 4096, &[]);
        let answer = bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!((answer.status, answer.written), (OK, 1));
        bench.quiesce();
    });
}

#[test]
fn the_serial_number_is_told_in_as_many_bytes_as_there_is_room_for() {
    let said = [("serial", Value::String("S-0123456789".into()))];
    let (_dir, _image, mut bench) = bench("threads", 4096, &said);
    let mut expected = b"S-0123456789".to_vec();
    expected.resize(20, 0);
    for (room, written) in [(20, 21), (7, 8), (40, 20), (0, 1)] {
        let place = bench.writable(room);
        let answer = bench.ask(VIRTIO_BLK_T_GET_ID, 0, &[place]);
        let told = 20.min(room as usize);
        assert_eq!((answer.status, answer.written), (OK, written));
        assert_eq!(answer.data[..told], expected[..told]);
        assert!(answer.data[told..].iter().all(|byte| *byte == 0));
    }
    bench.quiesce();
}

#[test]
fn an_unknown_request_is_unsupported() {
    let (_dir, _image, mut bench) = bench("threads", 4096, &[]);
    for kind in [VIRTIO_BLK_T_SCSI_CMD, 14, 15, 0x8000_0000] {
        assert_eq!(bench.ask(kind, 0, &[]).status, UNSUPP, "request {kind:#x}");
    }
    bench.quiesce();
}

#[test]
fn what_is_not_on_the_disk_is_an_error() {
    on_each_engine(|aio| {
        let (_dir, image, mut bench) = bench(aio, 8192, &[]);
        for sector in [16, 15, u64::MAX, u64::MAX / 512, 1 << 63] {
            let read = bench.read(sector, 1024);
            assert_eq!((read.status, read.written), (IOERR, 0), "sector {sector}");
            assert_eq!(bench.write(sector, &[7; 1024]), IOERR, "sector {sector}");
        }
        assert_eq!(bench.read(0, 1000).status, IOERR);
        assert_eq!(bench.write(0, &[7; 511]), IOERR);
        assert_eq!(fs::metadata(&image).unwrap().len(), 8192);
        assert_eq!(file_bytes(&image, 0, 8192), [0x11; 8192]);
        bench.quiesce();
    });
}

#[test]
fn a_transfer_is_of_whole_logical_blocks() {
    let said = [
        ("logical_block_size", uint(4096)),
        ("physical_block_size", uint(4096)),
    ];
    let (_dir, _image, mut bench) = bench("threads", 16384, &said);
    assert_eq!(bench.read(8, 4096).status, OK);
    assert_eq!(bench.read(1, 4096).status, IOERR);
    assert_eq!(bench.read(8, 512).status, IOERR);
    bench.quiesce();
}

#[test]
fn data_in_the_wrong_direction_is_an_error() {
    let (_dir, image, mut bench) = bench("threads", 4096, &[]);
    let (given, taken) = (bench.readable(&[7; 512]), bench.writable(512));
    for (kind, data) in [
        (VIRTIO_BLK_T_OUT, taken),
        (VIRTIO_BLK_T_IN, given),
        (VIRTIO_BLK_T_FLUSH, taken),
        (VIRTIO_BLK_T_GET_ID, given),
    ] {
        assert_eq!(bench.ask(kind, 0, &[data]).status, IOERR, "request {kind}");
    }
    // The device's part before the driver's.
    let (header, status) = (bench.header(VIRTIO_BLK_T_IN, 0), bench.status());
    bench.queues[0].add(&[taken, header, status]);
    bench.queues[0].kick();
    bench.queues[0].wait_used(1);
    assert_eq!(bench.ram.read(status.address, 1), [IOERR]);
    assert_eq!(file_bytes(&image, 0, 4096), [0x11; 4096]);
    bench.quiesce();
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(4096);
        let drive = Drive {
            aio: Some(aio.into()),
            read_only: true,
            ..drive(&image)
        };
        let mut bench = Bench::new(drive, &[]);
        assert_eq!(bench.write(0, &[7; 512]), IOERR);
        assert_eq!(bench.read(0, 512).data, [0x11; 512]);
        assert_eq!(bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[]).status, OK);
        // It is not the host that refuses.
        assert!(bench.host.logged().is_empty());
        assert!(bench.host.failures().is_empty());
        bench.quiesce();
    });
}

#[test]
fn what_the_host_refuses_is_an_error_for_the_guest_and_little_in_the_log() {
    on_each_engine(|aio| {
        let (_dir, image, mut bench) = bench(aio, 64 << 10, &[]);
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(4096)
            .unwrap();
        for _ in 0..100 {
            let read = bench.read(8, 512);
            assert_eq!((read.status, read.written), (IOERR, 0));
            assert_eq!(bench.read(4, 4096).status, IOERR);
        }
        assert_eq!(bench.read(0, 4096).data, [0x11; 4096]);
        bench.quiesce();
        let log = bench.host.logged();
        assert!(log.len() < 100, "{} lines", log.len());
        assert_eq!(
            log[0].1,
            format!(
                "Device 'disk0': Cannot read '{}': The image is shorter than it was when it was \
                 opened; the guest got an I/O error",
                image.display()
            )
        );
        assert!(bench.host.failures().is_empty());
    });
}

#[test]
fn pages_that_a_read_fills_are_marked_dirty() {
    on_each_engine(|aio| {
        let (_dir, _image, mut bench) = bench(aio, 64 << 10, &[]);
        let place = bench.allocate(3 * 4096, 4096);
        bench.ram.take_dirty();
        let data = Buffer::writable(place + 4096 - 512, 1024);
        assert_eq!(bench.ask(VIRTIO_BLK_T_IN, 0, &[data]).status, OK);
        let dirty = bench.ram.take_dirty();
        let first = place / 4096;
        assert!(
            dirty.contains(&first) && dirty.contains(&(first + 1)),
            "{dirty:?}"
        );
        assert!(!dirty.contains(&(first + 2)), "{dirty:?}");
        bench.quiesce();
    });
}

#[test]
fn more_requests_than_are_taken_at_once_are_all_answered_on_every_queue() {
    on_each_engine(|aio| {
        let said = [("num-queues", uint(4)), ("queue-size", uint(512))];
        let (_dir, image, mut bench) = bench(aio, 1 << 20, &said);
        let mut expected = vec![Vec::new(); 4];
        for round in 0..160 {
            for (at, heads) in expected.iter_mut().enumerate() {
                let sector = round * 4 + at as u64;
                let data = bench.readable(&pattern(sector, 512));
                heads.push(bench.add(at, VIRTIO_BLK_T_OUT, sector, &[data]));
            }
        }
        for queue in &mut bench.queues {
            queue.kick();
        }
        for (at, mut expected) in expected.into_iter().enumerate() {
            let used = bench.queues[at].wait_used(160);
            expected.sort_unstable();
            assert_eq!(heads(&used), expected);
            assert!(expected.iter().all(|head| bench.status_of(at, *head) == OK));
        }
        for sector in 0..640 {
            assert_eq!(
                file_bytes(&image, sector * 512, 512),
                pattern(sector as u64, 512)
            );
        }
        bench.quiesce();
    });
}

#[test]
fn a_queue_full_to_the_brim_is_looked_at_again() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let event_idx = FEATURES | 1 << VIRTIO_RING_F_EVENT_IDX;
    let mut bench = Bench::with(drive(&image), &[("queue-size", uint(16))], event_idx);
    for _ in 0..100 {
        bench.place = FIRST_PLACE;
        let header = bench.header(VIRTIO_BLK_T_GET_ID, 0);
        for _ in 0..16 {
            let (table, status) = (bench.allocate(32, 16), bench.status());
            bench.queues[0].add_indirect(table, &[header, status]);
        }
        // The device hears of it only if it had asked to after the last time.
        bench.queues[0].kick();
        assert_eq!(bench.queues[0].wait_used(16).len(), 16);
    }
    bench.quiesce();
}

#[test]
fn with_event_index_no_kick_and_no_interrupt_is_missed() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(1 << 20);
        let drive = Drive {
            aio: Some(aio.into()),
            ..drive(&image)
        };
        let mut bench = Bench::with(drive, &[], FEATURES | 1 << VIRTIO_RING_F_EVENT_IDX);
        let data = bench.writable(512);
        // More than the indices count, in batches of every size.
        let mut asked = 0u32;
        while asked < 70_000 {
            let batch = asked % 83 + 1;
            for _ in 0..batch {
                bench.add(0, VIRTIO_BLK_T_IN, 0, &[data]);
            }
            bench.queues[0].kick();
            assert_eq!(
                bench.queues[0].wait_used(batch as usize).len(),
                batch as usize
            );
            bench.place = FIRST_PLACE + 4096;
            asked += batch;
        }
        bench.quiesce();
    });
}
