//! Ports that come, are opened, and go.

use super::*;

#[test]
fn a_driver_hears_of_ports_by_number_and_name_and_that_they_are_open() {
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a"), port("b")]).unwrap();
    assert_eq!(rig.begin(2), [1, 2]);
    assert_eq!(rig.open(1), "a");
    assert_eq!(rig.open(2), "b");
    rig.say(1, event::PORT_OPEN, 0);
    rig.stop();
    let opened = [("a", true), ("b", true), ("a", false)];
    assert_eq!(
        host.guest_opened(),
        opened.map(|(id, open)| (id.into(), open))
    );
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn a_console_says_that_it_is_one() {
    let (host, _ends) = host(&[]);
    let mut rig = Rig::new(&host, vec![child("virtconsole", "c", &[])]).unwrap();
    assert_eq!(rig.begin(1), [0]);
    rig.say(0, event::PORT_READY, 1);
    let heard: Vec<_> = rig
        .hear(2)
        .iter()
        .map(|(message, _)| message.event)
        .collect();
    assert_eq!(heard, [event::CONSOLE_PORT, event::PORT_OPEN]);
    rig.stop();
}

#[test]
fn the_driver_reads_how_many_ports_there_may_be_and_has_queues_for_all() {
    let (host, _ends) = host(&[]);
    let mut rig = Rig::new(&host, vec![]).unwrap();
    assert_eq!(rig.device.read_config(4, 4), MAX_PORTS.to_le_bytes());
    assert_eq!(rig.queues.len(), 2 * (MAX_PORTS as usize + 1));
    assert_eq!(rig.device.info().features, MULTIPORT);
}

#[test]
fn a_port_comes_and_goes_beside_a_driver_that_is_at_work() {
    let (host, mut ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.begin(1);
    rig.open(1);
    rig.stop();
    rig.device.attach(port("b")).unwrap();
    rig.start();
    let (added, _) = rig.hear(1)[0].clone();
    assert_eq!((added.port, added.event), (2, event::DEVICE_ADD));
    rig.open(2);
    rig.offer(6, 2);
    std::io::Write::write_all(&mut ends[1], b"to b").unwrap();
    assert_eq!(rig.taken(6, 1), [b"to b"]);
    rig.stop();
    rig.device.detach("b").unwrap();
    assert!(rig.device.detach("b").is_err());
    rig.start();
    let (removed, _) = rig.hear(1)[0].clone();
    assert_eq!((removed.port, removed.event), (2, event::DEVICE_REMOVE));
    // What the guest still writes is nobody's, and does not get stuck.
    rig.write(7, 0, b"late");
    rig.queues[7].wait_used(1);
    rig.stop();
}

#[test]
fn of_a_port_that_has_gone_before_the_driver_heard_of_it_there_is_only_the_end() {
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.start();
    rig.say(0, event::DEVICE_READY, 1);
    rig.stop();
    rig.device.attach(port("b")).unwrap();
    rig.device.detach("b").unwrap();
    rig.start();
    rig.offer(2, 4);
    let heard = rig.hear(2);
    let heard: Vec<_> = heard.iter().map(|(m, _)| (m.port, m.event)).collect();
    assert_eq!(heard, [(1, event::DEVICE_ADD), (2, event::DEVICE_REMOVE)]);
    rig.stop();
}

#[test]
fn a_port_that_comes_before_the_driver_is_one_of_those_it_hears_of() {
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.device.attach(port("b")).unwrap();
    assert_eq!(rig.begin(2), [1, 2]);
    rig.stop();
}

#[test]
fn a_reset_closes_all_ports_and_forgets_the_driver() {
    let (host, _ends) = host(&["a"]);
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    let new = rig.device.save("virtio-console").unwrap();
    rig.begin(1);
    rig.open(1);
    rig.stop();
    assert_ne!(rig.device.save("virtio-console").unwrap(), new);
    rig.device.reset().unwrap();
    assert_eq!(rig.device.save("virtio-console").unwrap(), new);
    assert_eq!(host.guest_opened().last(), Some(&("a".into(), false)));
}

#[test]
fn messages_wait_for_a_driver_that_has_no_buffers_for_them() {
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a"), port("b")]).unwrap();
    rig.start();
    rig.say(0, event::DEVICE_READY, 1);
    rig.say(1, event::PORT_READY, 1);
    rig.offer(2, 4);
    let heard = rig.hear(4);
    let heard: Vec<_> = heard.iter().map(|(m, _)| (m.port, m.event)).collect();
    let expected = [
        (1, event::DEVICE_ADD),
        (2, event::DEVICE_ADD),
        (1, event::PORT_NAME),
        (1, event::PORT_OPEN),
    ];
    assert_eq!(heard, expected);
    rig.stop();
}
