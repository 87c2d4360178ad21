//! What a state may say.

use super::*;
use crate::state::State;
use baton_plugin_api::wire;

/// A state of ports `a` and `b`, with `change` made to it as JSON text would be.
fn state(change: impl FnOnce(&mut State)) -> Vec<u8> {
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a"), port("b")]).unwrap();
    rig.start();
    rig.say(0, event::DEVICE_READY, 1);
    rig.say(1, event::PORT_READY, 1);
    rig.stop();
    let saved = rig.device.save("virtio-console").unwrap();
    let mut map: State = wire::decode("it", &saved).unwrap();
    assert_eq!(wire::encode(&map).unwrap(), saved);
    change(&mut map);
    wire::encode(&map).unwrap()
}

fn load(data: &[u8]) -> (Result<()>, bool) {
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a"), port("b")]).unwrap();
    let before = rig.device.save("virtio-console").unwrap();
    let loaded = rig.device.load("virtio-console", 1, data);
    (loaded, rig.device.save("virtio-console").unwrap() == before)
}

#[test]
fn what_is_loaded_is_saved_again_and_messages_still_arrive() {
    let data = state(|_| ());
    let (host, _ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a"), port("b")]).unwrap();
    rig.device.load("virtio-console", 1, &data).unwrap();
    assert_eq!(rig.device.save("virtio-console").unwrap(), data);
    rig.start();
    rig.offer(2, 4);
    assert_eq!(rig.hear(4)[2].1, b"a\0");
    rig.stop();
}

#[test]
fn a_port_keeps_the_number_that_the_guest_knows_it_by() {
    // As if the first port had been unplugged before.
    let data = state(|map| {
        map.ports[1].number = 3;
        map.pending.clear();
    });
    let (host, mut ends) = host(&["a", "b"]);
    let mut rig = Rig::new(&host, vec![port("a"), port("b")]).unwrap();
    rig.device.load("virtio-console", 1, &data).unwrap();
    rig.start();
    rig.write(9, 0, b"to b");
    assert_eq!(read(&mut ends[1], 4), b"to b");
    rig.stop();
}

#[test]
fn a_state_of_other_ports_or_a_damaged_one_is_refused_and_changes_nothing() {
    type Change = fn(&mut State);
    let changes: [(Change, &str); 11] = [
        (|m| m.max_ports = 5, "max_ports=5"),
        (
            |m| m.ports[0].id = "x".into(),
            "Port 'x' (a) of the guest is not in this machine",
        ),
        (
            |m| m.ports[0].name = "x".into(),
            "Port 'a' is number 1 for the guest, with name 'x'",
        ),
        (|m| m.ports[0].console = true, "Port 'a' is number 1"),
        (|m| m.ports[0].number = 4, "Port 'a' is number 4"),
        (
            |m| drop(m.ports.pop()),
            "Port 'b' of this machine is none of the guest's",
        ),
        (|m| m.ports[1] = m.ports[0].clone(), "port 'a' twice"),
        (|m| m.ports[0].number = 2, "two ports of one number"),
        (|m| m.pending[0].port = 4, "message 1 for port 4"),
        (
            |m| m.pending[0].event = event::PORT_READY,
            "message 3 for port 1",
        ),
        (
            |m| m.pending = vec![m.pending[0].clone(); 156],
            "more messages than ports give rise to",
        ),
    ];
    for (change, text) in changes {
        let (loaded, unchanged) = load(&state(change));
        let message = loaded.unwrap_err().message;
        assert!(message.contains(text), "{message}");
        assert!(unchanged, "{message}");
    }
}
