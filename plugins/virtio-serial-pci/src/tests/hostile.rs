//! Drivers that break the rules.

use super::*;

#[test]
fn messages_that_are_too_short_in_no_memory_or_of_no_port_are_passed_over() {
    let (host, _ends) = host(&["a"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.begin(1);
    rig.write(3, 0, &[0; LEN - 1]);
    rig.queues[3].wait_used(1);
    rig.queues[3].add(&[Buffer::readable(1 << 40, LEN as u32)]);
    rig.queues[3].kick();
    rig.queues[3].wait_used(1);
    rig.queues[3].add(&[Buffer::writable(BUFFERS, LEN as u32)]);
    rig.queues[3].kick();
    rig.queues[3].wait_used(1);
    for (port, event) in [
        (9, event::PORT_READY),
        (u32::MAX, event::PORT_OPEN),
        (1, 99),
    ] {
        rig.say(port, event, 1);
    }
    assert_eq!(rig.open(1), "a");
    rig.stop();
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn buffers_in_no_memory_and_without_room_are_given_back() {
    let (host, mut ends) = host(&["a"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.begin(1);
    rig.open(1);
    rig.queues[4].add(&[Buffer::readable(BUFFERS, 64)]);
    rig.queues[4].add(&[Buffer::writable(1 << 40, 64)]);
    rig.queues[4].kick();
    std::io::Write::write_all(&mut ends[0], b"lost").unwrap();
    let written: Vec<_> = rig.queues[4]
        .wait_used(2)
        .iter()
        .map(|u| u.written)
        .collect();
    assert_eq!(written, [0, 0]);
    rig.queues[5].add(&[Buffer::readable(1 << 40, 64)]);
    rig.queues[5].kick();
    rig.queues[5].wait_used(1);
    rig.write(5, 0, b"well");
    assert_eq!(read(&mut ends[0], 4), b"well");
    rig.stop();
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn a_driver_that_asks_and_never_listens_is_not_heard_for_ever() {
    let (host, _ends) = host(&["a"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.start();
    let most = crate::service::PENDING_MAX;
    // Each gives rise to two messages, for which there are no buffers.
    let mut heard = 0;
    while heard <= most / 2 {
        rig.write(
            3,
            0,
            &Control {
                port: 1,
                event: event::PORT_READY,
                value: 1,
            }
            .bytes(),
        );
        heard += 1;
        if heard <= most / 2 {
            rig.queues[3].wait_used(1);
        }
    }
    rig.stop();
    rig.start();
    rig.stop();
    assert_eq!(rig.queues[3].take_used().len(), 1);
    rig.start();
    rig.write(
        3,
        1,
        &Control {
            port: 1,
            event: event::PORT_READY,
            value: 1,
        }
        .bytes(),
    );
    rig.stop();
    assert_eq!(rig.queues[3].take_used(), []);
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn a_ring_that_is_broken_makes_the_device_a_broken_one_until_it_is_reset() {
    let (host, _ends) = host(&["a"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.begin(1);
    let avail = rig.queues[5].setup().avail_ring;
    rig.ram.write(avail + 2, &1000u16.to_le_bytes());
    rig.queues[5].kick_anyway();
    assert_eq!(host.wait_for_failure().len(), 1);
    assert!(rig.device.quiesce(&mut rig.queues).is_err());
    rig.device.reset().unwrap();
}
