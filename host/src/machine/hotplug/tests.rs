//! The registers as a guest uses and misuses them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::machine::bus::BusDevice;
use crate::machine::pci::HostBridge;

const UP: u64 = 0;
const DOWN: u64 = 4;
const EJECT: u64 = 8;
const STATUS: u64 = 12;

struct Rig {
    hotplug: Arc<Hotplug>,
    registers: HotplugRegisters,
    gpe: GpeRegisters,
    bus: Arc<PciBus>,
    line: Arc<AtomicBool>,
    events: Receiver<MachineEvent>,
}

fn at(slot: u8) -> PciAddress {
    PciAddress { slot, function: 0 }
}

impl Rig {
    /// Slots 0, 3 and 5 have something in them.
    fn new() -> Self {
        let (requests, events) = channel();
        let bus = Arc::new(PciBus::default());
        for slot in [0, 3, 5] {
            bus.insert(at(slot), Arc::new(HostBridge::new()));
        }
        let line = Arc::new(AtomicBool::new(false));
        let wire = Arc::clone(&line);
        let sci = Sci::new(move |level| wire.store(level, Ordering::SeqCst));
        let hotplug = Hotplug::new(Arc::clone(&bus), sci, requests);
        Self {
            registers: HotplugRegisters(Arc::clone(&hotplug)),
            gpe: GpeRegisters(Arc::clone(&hotplug)),
            hotplug,
            bus,
            line,
            events,
        }
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.registers.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.registers.write(register, &value.to_le_bytes());
    }

    /// Bytes, as Linux accesses them.
    fn gpe(&self, at: u64) -> u8 {
        let mut data = [0];
        self.gpe.read(at, &mut data);
        data[0]
    }

    fn line(&self) -> bool {
        self.line.load(Ordering::SeqCst)
    }

    fn slots(&self) -> Vec<u8> {
        let functions = self.bus.functions();
        functions.iter().map(|(at, _)| at.slot).collect()
    }

    fn events(&self) -> Vec<MachineEvent> {
        self.events.try_iter().collect()
    }
}

#[test]
fn a_new_device_raises_the_event_and_is_told_of_once() {
    let rig = Rig::new();
    rig.hotplug.plugged(at(5));
    assert!(!rig.line(), "the guest has not enabled the event");
    rig.gpe.write(2, &[0xff]);
    assert_eq!((rig.gpe(0), rig.gpe(2)), (2, 2));
    assert!(rig.line());
    assert_eq!(rig.read(UP), 1 << 5);
    assert_eq!(rig.read(UP), 0);
    rig.gpe.write(0, &[2]);
    assert!(!rig.line());
    assert_eq!(rig.events(), []);
}

#[test]
fn what_is_asked_for_goes_when_the_guest_ejects_it() {
    let rig = Rig::new();
    rig.hotplug.request_unplug(at(3));
    assert_eq!((rig.read(DOWN), rig.read(DOWN)), (1 << 3, 0));
    assert_eq!(rig.slots(), [0, 3, 5]);
    rig.write(EJECT, 1 << 3);
    assert_eq!(rig.slots(), [0, 5]);
    assert_eq!(rig.hotplug.ejected(), 1 << 3);
    assert_eq!(rig.events(), [MachineEvent::SlotsEjected]);
    rig.write(EJECT, 1 << 3);
    assert_eq!(rig.events(), [], "a slot is ejected once");
    rig.gpe.write(0, &[2]);
    rig.hotplug.unplugged(3);
    assert_eq!(rig.hotplug.state(), None, "as at power-on");
}

#[test]
fn a_request_that_is_repeated_is_told_of_again() {
    let rig = Rig::new();
    for _ in 0..2 {
        rig.hotplug.request_unplug(at(3));
        assert_eq!(rig.read(DOWN), 1 << 3);
    }
}

#[test]
fn the_host_bridge_and_empty_slots_cannot_be_ejected() {
    let rig = Rig::new();
    rig.write(EJECT, !(1 << 3 | 1 << 5));
    assert_eq!((rig.slots(), rig.events()), (vec![0, 3, 5], vec![]));
}

#[test]
fn accesses_of_other_sizes_and_places_do_nothing() {
    let rig = Rig::new();
    rig.hotplug.plugged(at(5));
    for offset in 0..16 {
        for size in [1, 2, 3, 5, 8] {
            let mut data = vec![0xaa; size];
            rig.registers.read(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0));
            rig.registers.write(offset, &vec![0xff; size]);
            rig.gpe.write(offset + 4, &vec![0xff; size]);
        }
    }
    assert_eq!(rig.slots(), [0, 3, 5]);
    assert_eq!(rig.read(UP), 1 << 5);
}

#[test]
fn a_guest_that_cannot_let_go_is_heard_once_and_only_if_it_was_asked() {
    let rig = Rig::new();
    let report = |slot: u32, event: u32, status: u32| slot | event << 8 | status << 16;
    rig.write(STATUS, report(3, 3, 0x81));
    assert_eq!(rig.events(), []);
    rig.hotplug.request_unplug(at(3));
    for (slot, event, status) in [(3, 1, 1), (3, 3, 0), (3, 3, 0x84), (5, 3, 1), (200, 3, 1)] {
        rig.write(STATUS, report(slot, event, status));
        assert_eq!(rig.events(), [], "{slot} {event} {status}");
    }
    for _ in 0..2 {
        rig.write(STATUS, report(3, 3, 0x81));
    }
    assert_eq!(rig.events(), [MachineEvent::UnplugRefused { slot: 3 }]);
}

#[test]
fn a_reset_forgets_what_was_told_and_ejects_what_was_asked_for() {
    let rig = Rig::new();
    rig.gpe.write(2, &[2]);
    rig.hotplug.plugged(at(5));
    rig.hotplug.request_unplug(at(3));
    rig.hotplug.eject_requested();
    rig.hotplug.reset();
    assert!(!rig.line());
    assert_eq!((rig.read(UP), rig.read(DOWN), rig.gpe(0)), (0, 0, 0));
    assert_eq!(rig.slots(), [0, 5]);
    assert_eq!(rig.hotplug.ejected(), 1 << 3);
}

#[test]
fn what_is_pending_goes_along_and_what_is_ejected_stays_away() {
    let source = Rig::new();
    source.gpe.write(2, &[2]);
    source.hotplug.plugged(at(5));
    source.hotplug.request_unplug(at(3));
    source.write(EJECT, 1 << 3);
    let state = source.hotplug.state();

    let target = Rig::new();
    target.hotplug.load(state).unwrap();
    target.hotplug.restore_line();
    assert!(target.line());
    assert_eq!((target.read(UP), target.read(DOWN)), (1 << 5, 1 << 3));
    assert_eq!(target.slots(), [0, 5]);
    target.hotplug.announce_ejected();
    assert_eq!(target.events(), [MachineEvent::SlotsEjected]);

    target.hotplug.load(None).unwrap();
    assert_eq!(target.hotplug.state(), None);
}

#[test]
fn a_state_that_no_register_can_have_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    rig.hotplug.plugged(at(5));
    let before = rig.hotplug.state();
    let sound = HotplugState::default();
    for bad in [
        HotplugState { status: 1, ..sound },
        HotplugState { enable: 4, ..sound },
        HotplugState { up: 1, ..sound },
        HotplugState { down: 1, ..sound },
        HotplugState {
            requested: 1,
            ..sound
        },
        HotplugState {
            ejected: 1,
            ..sound
        },
    ] {
        assert!(rig.hotplug.load(Some(bad)).is_err(), "{bad:?}");
    }
    assert_eq!(rig.hotplug.state(), before);
}
