//! Bytes in both directions.

use super::*;
use std::fs::File;
use std::io::Write;

/// Bytes that differ wherever they are cut.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn opened(host: &Arc<TestHost>) -> Rig {
    let mut rig = Rig::new(host, vec![port("a")]).unwrap();
    rig.begin(1);
    rig.open(1);
    rig
}

#[test]
fn what_comes_in_waits_for_the_guests_buffers_and_keeps_its_order() {
    let (host, mut ends) = host(&["a"]);
    let mut rig = opened(&host);
    let sent = pattern(100_000);
    let mut end = ends[0].try_clone().unwrap();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || end.write_all(&bytes).unwrap());
    rig.offer(4, 2);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(rig.taken(4, 1).concat());
    }
    writer.join().unwrap();
    assert!(got == sent);
    ends[0].write_all(b"x").unwrap();
    assert_eq!(rig.taken(4, 1), [b"x"]);
    rig.stop();
}

#[test]
fn what_comes_in_stays_outside_until_a_program_opens_the_port() {
    let (host, mut ends) = host(&["a"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    ends[0].write_all(b"early").unwrap();
    rig.begin(1);
    rig.offer(4, 2);
    // The device has heard of the buffers by the time that it hears of something after them.
    rig.say(1, event::PORT_READY, 1);
    rig.hear(2);
    assert_eq!(rig.queues[4].take_used(), []);
    rig.say(1, event::PORT_OPEN, 1);
    assert_eq!(rig.taken(4, 1), [b"early"]);
    rig.stop();
}

#[test]
fn what_nobody_reads_waits_in_the_guest_and_nothing_is_sent_twice() {
    let (host, mut ends) = host(&["a"]);
    let mut rig = opened(&host);
    let sent = pattern(16 * 40_000);
    for (slot, part) in sent.chunks(40_000).enumerate() {
        // More than a socket takes, in buffers of the guest's own.
        let at = (3 << 20) + slot as u64 * 40_000;
        rig.ram.write(at, part);
        rig.queues[5].add(&[
            Buffer::readable(at, 10_000),
            Buffer::readable(at + 10_000, 30_000),
        ]);
        if slot % 8 == 7 {
            rig.queues[5].kick();
            let now = (slot + 1) * 40_000;
            let from = now - 8 * 40_000;
            // Stopped and started again in the middle of a buffer.
            rig.stop();
            rig.start();
            assert!(read(&mut ends[0], 8 * 40_000) == sent[from..now]);
            assert_eq!(rig.queues[5].wait_used(8).len(), 8);
        }
    }
    rig.stop();
}

#[test]
fn a_device_that_is_stopped_in_the_middle_goes_on_elsewhere_with_the_next_byte() {
    let (host, mut ends) = host(&["a"]);
    let mut rig = opened(&host);
    let sent = pattern(1 << 20);
    rig.ram.write(2 << 20, &sent);
    rig.queues[5].add(&[Buffer::readable(2 << 20, 1 << 20)]);
    rig.queues[5].kick();
    // It has begun, and a socket does not take all of it.
    let mut got = read(&mut ends[0], 1);
    rig.stop();
    let state = rig.device.save("virtio-console").unwrap();
    let mut other = TestVirtio::new(config(vec![port("a")]), &host).unwrap();
    other.load("virtio-console", 1, &state).unwrap();
    assert_eq!(other.save("virtio-console").unwrap(), state);
    rig.device = other;
    rig.start();
    got.extend(read(&mut ends[0], sent.len() - 1));
    assert!(got == sent);
    assert_eq!(rig.queues[5].wait_used(1).len(), 1);
    rig.stop();
    assert_eq!(
        host.guest_opened(),
        [("a".into(), true), ("a".into(), true)]
    );
}

#[test]
fn a_stop_does_not_wait_for_a_peer_that_sends_and_reads_for_ever() {
    let (host, ends) = host(&["a"]);
    let mut rig = opened(&host);
    let (mut source, mut sink) = (ends[0].try_clone().unwrap(), ends[0].try_clone().unwrap());
    let noise = std::thread::spawn(move || while source.write_all(&[7; 4096]).is_ok() {});
    let drain = std::thread::spawn(move || while sink.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
    rig.offer(4, 8);
    for slot in 0..8 {
        rig.write(5, slot, &[9; 4096]);
    }
    rig.taken(4, 4);
    rig.stop();
    ends[0].shutdown(std::net::Shutdown::Both).unwrap();
    noise.join().unwrap();
    drain.join().unwrap();
}

#[test]
fn a_driver_that_knows_one_port_has_its_console_open() {
    let (host, mut ends) = host(&["c"]);
    let chardev = ("chardev", Value::String("c".into()));
    let console = child("virtconsole", "c", &[chardev]);
    let mut rig = Rig::with(&host, vec![console], 0).unwrap();
    // Such a driver has two queues.
    rig.queues.truncate(2);
    rig.start();
    rig.write(1, 0, b"login: ");
    assert_eq!(read(&mut ends[0], 7), b"login: ");
    rig.offer(0, 1);
    ends[0].write_all(b"root").unwrap();
    assert_eq!(rig.taken(0, 1), [b"root"]);
    rig.stop();
}

#[test]
fn a_file_takes_all_and_a_port_without_an_end_drops_all() {
    let host = TestHost::new();
    let file = tempfile();
    host.add_chardev(
        "a",
        Chardev {
            input: None,
            output: Some(file.try_clone().unwrap().into()),
        },
    );
    let nowhere = child(
        "virtserialport",
        "b",
        &[("name", Value::String("b".into()))],
    );
    let mut rig = Rig::new(&host, vec![port("a"), nowhere]).unwrap();
    rig.begin(2);
    for queue in [5, 7] {
        rig.write(queue, 0, b"gone");
        rig.queues[queue].wait_used(1);
    }
    rig.stop();
    assert_eq!(file.metadata().unwrap().len(), 4);
}

/// A file without a name.
pub(super) fn tempfile() -> File {
    use std::os::unix::fs::OpenOptionsExt;
    const O_TMPFILE: i32 = 0o20_200_000;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(O_TMPFILE);
    options.open(std::env::temp_dir()).unwrap()
}
