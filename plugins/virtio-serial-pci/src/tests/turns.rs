//! Much at once goes through in turns, and none is the last while there is more.

use super::*;
use crate::port::Port;
use baton_plugin_api::{Direction, Stream, VirtQueue};
use std::io::{Seek, Write};

const TURN: usize = 256 << 10;
const CHUNK: u64 = 4096;

#[test]
fn a_buffer_of_more_than_a_turn_goes_out_whole_to_what_is_always_ready() {
    let host = TestHost::new();
    let file = super::traffic::tempfile();
    let output = Some(file.try_clone().unwrap().into());
    host.add_chardev(
        "a",
        Chardev {
            input: None,
            output,
        },
    );
    let mut rig = Rig::new(&host, vec![port("a")]).unwrap();
    rig.begin(1);
    rig.queues[5].add(&[Buffer::readable(2 << 20, 1 << 20)]);
    rig.queues[5].kick();
    assert_eq!(rig.queues[5].wait_used(1).len(), 1);
    rig.stop();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
}

/// A port whose input has as much at once.
fn full(bytes: usize) -> Port {
    let mut file = super::traffic::tempfile();
    file.write_all(&vec![7; bytes]).unwrap();
    file.rewind().unwrap();
    let stream = Stream::new(file.into(), Direction::Input).unwrap();
    Port {
        input: Some(Arc::new(stream)),
        ..Port::default()
    }
}

#[test]
fn input_that_never_ends_comes_in_turns() {
    let ram = TestRam::new(4 << 20);
    let mut guest = GuestQueue::new(&ram, 4, 128, 0);
    for slot in 0..128 {
        guest.add(&[Buffer::writable(BUFFERS + slot * CHUNK, CHUNK as u32)]);
    }
    let mut queue = VirtQueue::new(&guest.setup(), false).unwrap();
    let mut port = full(1 << 20);
    let memory = ram.memory();
    assert!(port.receive(&mut queue, &memory).unwrap());
    assert_eq!(guest.take_used().len(), TURN / CHUNK as usize);
    // The rest is a turn as well, and then there are no buffers.
    assert!(port.receive(&mut queue, &memory).unwrap());
    assert!(!port.receive(&mut queue, &memory).unwrap());
    assert_eq!(guest.take_used().len(), 128 - TURN / CHUNK as usize);
}

#[test]
fn buffers_without_room_count_as_well() {
    let ram = TestRam::new(4 << 20);
    let mut guest = GuestQueue::new(&ram, 4, 128, 0);
    for _ in 0..128 {
        guest.add(&[Buffer::readable(BUFFERS, 1)]);
    }
    let mut queue = VirtQueue::new(&guest.setup(), false).unwrap();
    assert!(full(1).receive(&mut queue, &ram.memory()).unwrap());
    assert_eq!(guest.take_used().len(), TURN / CHUNK as usize);
}
