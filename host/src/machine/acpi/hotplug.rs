//! Hot-plug of PCI devices on bus 0 (ACPI 6.5 section 5.6.6): an object for each slot, and the method
//! of the general-purpose event that tells of what has changed. The registers behind them are
//! `machine/hotplug/`.

use acpi_tables::aml::{
    And, Arg, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Local, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Or, Path, Scope, ShiftLeft,
    Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use crate::machine::layout::{GPE_PCI_HOTPLUG, PCI_HOTPLUG_LENGTH, PCI_HOTPLUG_PORT};
use crate::machine::pci::PciAddress;

/// Notifications to a device object (ACPI 6.5 table 5.187).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// What device `PCI0` has for it: the registers, the slots, and the method that looks what has
/// changed.
pub(super) struct Slots;

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        OpRegion::new(
            "HPRG".into(),
            OpRegionSpace::SystemIO,
            &PCI_HOTPLUG_PORT,
            &PCI_HOTPLUG_LENGTH,
        )
        .to_aml_bytes(sink);
        Field::new(
            "HPRG".into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            [b"HPUP", b"HPDN", b"HPEJ", b"HPST"]
                .map(|name| FieldEntry::Named(*name, 32))
                .to_vec(),
        )
        .to_aml_bytes(sink);
        let slots = 1..PciAddress::SLOTS;
        slots.clone().for_each(|slot| slot_object(slot, sink));
        // Each register is read once, which clears it.
        let (up, down) = (Local(0), Local(1));
        let notifications: Vec<_> = slots
            .flat_map(|slot| {
                [(0, DEVICE_CHECK), (1, EJECT_REQUEST)].map(|(register, event)| Notification {
                    register,
                    slot,
                    event,
                })
            })
            .collect();
        let (read_up, read_down) = (Path::new("HPUP"), Path::new("HPDN"));
        let read_up = Store::new(&up, &read_up);
        let read_down = Store::new(&down, &read_down);
        let mut body: Vec<&dyn Aml> = vec![&read_up, &read_down];
        body.extend(notifications.iter().map(|n| n as &dyn Aml));
        Method::new("HPNT".into(), 0, true, body).to_aml_bytes(sink);
    }
}

/// A slot, whether something is in it or not.
fn slot_object(slot: u8, sink: &mut dyn AmlSink) {
    let mask = 1u32 << slot;
    let eject = Path::new("HPEJ");
    let status = Path::new("HPST");
    Device::new(
        name(slot).as_str().into(),
        vec![
            &Name::new("_ADR".into(), &(u32::from(slot) << 16)),
            &Name::new("_SUN".into(), &slot),
            &Method::new("_EJ0".into(), 1, false, vec![&Store::new(&eject, &mask)]),
            // One write, so that two slots cannot mix theirs: slot, event, status, a byte each.
            &Method::new(
                "_OST".into(),
                3,
                false,
                vec![
                    &And::new(&Local(0), &Arg(0), &0xffu8),
                    &And::new(&Local(1), &Arg(1), &0xffu8),
                    &ShiftLeft::new(&Local(0), &Local(0), &8u8),
                    &ShiftLeft::new(&Local(1), &Local(1), &16u8),
                    &Or::new(&Local(0), &Local(0), &Local(1)),
                    &Or::new(&status, &Local(0), &slot),
                ],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

/// Notifies a slot's object if its bit is set in what was read of a register.
struct Notification {
    /// The local variable that has it.
    register: u8,
    slot: u8,
    event: u8,
}

impl Aml for Notification {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let object = Path::new(&name(self.slot));
        If::new(
            // Zero as a target is none.
            &And::new(&ZERO, &Local(self.register), &(1u32 << self.slot)),
            vec![&Notify::new(&object, &self.event)],
        )
        .to_aml_bytes(sink);
    }
}

/// The general-purpose events, as the content of the root scope.
pub(super) fn events() -> Vec<u8> {
    let look = MethodCall::new(Path::new("\\_SB_.PCI0.HPNT"), vec![]);
    let method = format!("_E{GPE_PCI_HOTPLUG:02X}");
    let mut bytes = Vec::new();
    Scope::new(
        "\\_GPE".into(),
        vec![&Method::new(method.as_str().into(), 0, false, vec![&look])],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}
