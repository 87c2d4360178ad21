//! Stopping with requests in flight, and going on here or elsewhere.

use baton_plugin_api::Mode;
use baton_plugin_api::fd::duplicate;

use super::*;

const REQUESTS: u64 = 250;
const BYTES: usize = 32 << 10;
const SECTORS: u64 = BYTES as u64 / 512;

fn drive_of(image: &Path, aio: &str) -> Drive {
    Drive {
        aio: Some(aio.into()),
        ..drive(image)
    }
}

fn said() -> [(&'static str, Value); 1] {
    [("queue-size", uint(1024))]
}

impl Bench {
    /// The same guest on another process's device: state and image go over, the rest stays.
    fn hand_over(&mut self, drive: Drive, said: &[(&str, Value)]) {
        let state = self.disk.save(SECTION).unwrap();
        let host = TestHost::new();
        for fd in self.disk.fds(Mode::CprTransfer) {
            host.preserve(&fd.name, fd.instance, duplicate(fd.fd).unwrap());
        }
        let mut config = config(drive, said);
        config.restoring = Some(Mode::CprTransfer);
        let mut target = TestVirtio::new(config, &host).unwrap();
        assert!(host.unclaimed().is_empty());
        target.load(SECTION, 1, &state).unwrap();
        self.disk = target;
        self.host = host;
    }

    /// How many requests the state says are in flight.
    fn in_flight(&mut self) -> usize {
        let state = self.disk.save(SECTION).unwrap();
        // MessagePack of the text "queue", the first field of each.
        state.windows(6).filter(|w| *w == b"\xa5queue").count()
    }
}

/// Requests are added, half of them writes; the device is stopped at once again and again, and goes
/// on in `go_on`'s way. Gives how many were ever in flight while it was stopped.
fn stop_and_go(aio: &str, go_on: impl Fn(&mut Bench, &Path)) -> usize {
    let dir = Dir::new();
    let image = dir.image(REQUESTS as usize * BYTES);
    stop_and_go_with(drive_of(&image, aio), go_on)
}

fn stop_and_go_with(drive: Drive, go_on: impl Fn(&mut Bench, &Path)) -> usize {
    let image = PathBuf::from(&drive.file);
    let mut bench = Bench::stopped(drive, &said(), FEATURES);
    let mut asked = Vec::new();
    for at in 0..REQUESTS {
        let data = pattern(at, BYTES);
        let (kind, buffer) = if at % 2 == 0 {
            (VIRTIO_BLK_T_OUT, bench.readable(&data))
        } else {
            (VIRTIO_BLK_T_IN, bench.writable(BYTES as u32))
        };
        asked.push((bench.add(0, kind, at * SECTORS, &[buffer]), buffer));
    }
    let (mut used, mut kept) = (Vec::new(), 0);
    for _ in 0..6 {
        bench.start();
        // Some are done here.
        used.extend(bench.queues[0].wait_used(1));
        bench.quiesce();
        used.extend(bench.queues[0].take_used());
        kept += bench.in_flight();
        go_on(&mut bench, &image);
        if used.len() + 7 > REQUESTS as usize {
            break;
        }
    }
    bench.start();
    let left = REQUESTS as usize - used.len();
    used.extend(bench.queues[0].wait_used(left));
    bench.quiesce();
    assert_eq!(bench.in_flight(), 0);
    assert!(
        bench.queues[0].take_used().is_empty(),
        "one came back twice"
    );

    let mut expected: Vec<u16> = asked.iter().map(|(head, _)| *head).collect();
    expected.sort_unstable();
    assert_eq!(heads(&used), expected);
    for (at, (head, buffer)) in asked.iter().enumerate() {
        assert_eq!(bench.status_of(0, *head), OK, "request {at}");
        if at % 2 == 0 {
            let data = pattern(at as u64, BYTES);
            assert!(
                file_bytes(&image, at * BYTES, BYTES) == data,
                "request {at}"
            );
        } else {
            let data = bench.ram.read(buffer.address, BYTES);
            assert!(data == vec![0x11; BYTES], "request {at}");
        }
    }
    kept
}

#[test]
fn no_request_is_lost_or_done_twice_when_another_process_goes_on() {
    on_each_engine(|aio| {
        stop_and_go(aio, |bench, image| {
            bench.hand_over(drive_of(image, aio), &said());
        });
    });
}

#[test]
fn no_request_is_lost_or_done_twice_when_the_same_device_goes_on() {
    // Threads leave requests undone in almost every run; in one of so many they do.
    let kept = (0..50).map(|_| stop_and_go("threads", |_, _| {}));
    assert!(kept.into_iter().any(|kept| kept > 0));
    on_each_engine(|aio| {
        let kept = stop_and_go(aio, |_, _| {});
        // The ring has all of them with the kernel, which finishes what it has.
        assert!(aio == "threads" || kept == 0, "{kept} were kept");
    });
}

#[test]
fn no_request_is_lost_or_done_twice_when_the_kernel_has_them_at_the_stop() {
    // The page cache answers at once; the disk itself takes its time.
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(REQUESTS as usize * BYTES);
        let drive = Drive {
            direct: true,
            ..drive_of(&image, aio)
        };
        match realize(drive.clone(), &said()).map(drop) {
            Ok(()) => {
                let kept = stop_and_go_with(drive, |_, _| {});
                assert!(aio == "threads" || kept == 0, "{kept} were kept");
            }
            Err(e) => eprintln!("SKIPPED: {}", e.message),
        }
    });
}

#[test]
fn requests_go_on_with_another_engine() {
    for (from, to) in [("threads", "io_uring"), ("io_uring", "threads")] {
        if io_uring::IoUring::new(1).is_err() {
            eprintln!("SKIPPED: this kernel does not let us use io_uring");
            return;
        }
        stop_and_go(from, |bench, image| {
            bench.hand_over(drive_of(image, to), &said())
        });
    }
}

#[test]
fn requests_that_were_in_flight_are_found_by_their_heads_alone() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(64 << 10);
        fs::write(&image, pattern(9, 64 << 10)).unwrap();
        // More than the engine takes at once.
        let said = [("num-queues", uint(2)), ("queue-size", uint(1024))];
        let mut bench = Bench::stopped(drive_of(&image, aio), &said, FEATURES);
        let mut asked = Vec::new();
        for at in [0, 1] {
            for sector in 0..300 {
                let data = bench.writable(512);
                let head = bench.add(at, VIRTIO_BLK_T_IN, sector % 128, &[data]);
                asked.push((at as u16, head, sector as usize % 128 * 512, data.address));
            }
            bench.queues[at].take_all_available();
        }
        let in_flight: Vec<_> = asked.iter().map(|(at, head, ..)| (*at, *head)).collect();
        let state = state::encoded(128, true, &in_flight);
        bench.disk.load(SECTION, 1, &state).unwrap();
        // Another that was not taken yet.
        let data = bench.writable(512);
        let head = bench.add(1, VIRTIO_BLK_T_IN, 127, &[data]);
        asked.push((1, head, 127 * 512, data.address));
        bench.start();
        for at in [0, 1] {
            let of_queue = asked.iter().filter(|(queue, ..)| *queue == at);
            let mut expected: Vec<u16> = of_queue.map(|(_, head, ..)| *head).collect();
            expected.sort_unstable();
            let used = bench.queues[usize::from(at)].wait_used(expected.len());
            assert_eq!(heads(&used), expected);
        }
        bench.quiesce();
        assert_eq!(bench.in_flight(), 0);
        for (at, head, offset, address) in asked {
            assert_eq!(bench.status_of(at.into(), head), OK);
            assert_eq!(
                bench.ram.read(address, 512),
                file_bytes(&image, offset, 512)
            );
        }
    });
}

#[test]
fn a_driver_that_resets_the_device_never_hears_of_its_requests() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(8 << 20);
        let mut bench = Bench::stopped(drive_of(&image, aio), &said(), FEATURES);
        bench
            .disk
            .load(SECTION, 1, &state::encoded(16384, true, &[(0, 1), (0, 2)]))
            .unwrap();
        bench.disk.reset().unwrap();
        bench.start();
        assert_eq!(bench.read(0, 512).data, [0x11; 512]);
        bench.quiesce();
        assert!(bench.queues[0].take_used().is_empty());
        assert_eq!(bench.in_flight(), 0);
    });
}

#[test]
fn a_target_whose_image_has_another_size_does_not_load() {
    let dir = Dir::new();
    let image = dir.image(8192);
    let mut source = realize(drive(&image), &[]).unwrap();
    let state = source.save(SECTION).unwrap();
    let fd = duplicate(source.fds(Mode::CprExec)[0].fd).unwrap();
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let host = TestHost::new();
    host.preserve("image", 0, fd);
    let mut target = TestVirtio::<Block>::new(config(drive(&image), &[]), &host).unwrap();
    let error = target.load(SECTION, 1, &state).err().unwrap();
    assert!(error.message.contains("has 8 sectors"), "{}", error.message);
}

#[test]
fn a_device_dropped_while_it_runs_lets_go_of_everything() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let image = dir.image(4096);
        let mut bench = Bench::new(drive_of(&image, aio), &[]);
        assert_eq!(bench.read(0, 512).status, OK);
        drop(bench);
        assert!(realize(drive(&image), &[]).is_ok());
    });
}
