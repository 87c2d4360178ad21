//! The PCI bus. Only the header of a function's config space is read: nothing of it changes by that.

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::machine::pci::{PciAddress, PciFunction};
use crate::vm::Vm;

const COMMAND: u64 = 0x04;
const CLASS: u64 = 0x0a;
const BAR0: u64 = 0x10;
const SUBSYSTEM: u64 = 0x2c;
const INTERRUPT: u64 = 0x3c;
/// Bits of the command register: decoding of ports and of memory.
const DECODES_PORTS: u16 = 1;
const DECODES_MEMORY: u16 = 2;
/// What QEMU tells of a BAR that does not decode.
const UNMAPPED: i64 = -1;

/// The answer of `query-pci`: the one bus there is.
pub fn pci(vm: &Vm) -> Value {
    // A device may be slow to answer, and nobody else is to wait for it.
    let found: Vec<_> = {
        let state = vm.state();
        let Some(machine) = &state.machine else {
            return json!([]);
        };
        let functions = machine.pci().functions().into_iter();
        functions
            .map(|(at, function)| (at, function, id_at(machine, at)))
            .collect()
    };
    let devices: Vec<Value> = found
        .iter()
        .map(|(at, function, id)| device(*at, &**function, id))
        .collect();
    json!([{ "bus": 0, "devices": devices }])
}

/// The id of the device at a place. One that has no id of its own has its place for one.
fn id_at(machine: &Machine, at: PciAddress) -> String {
    let place = at.to_string();
    let mut devices = machine.devices().iter();
    let device = devices.find(|device| device.place() == place);
    let id = device.map(|device| device.id()).filter(|id| *id != place);
    id.unwrap_or_default().to_owned()
}

fn device(at: PciAddress, function: &dyn PciFunction, id: &str) -> Value {
    let mut chip = json!({ "vendor": half(function, 0), "device": half(function, 2) });
    if half(function, SUBSYSTEM) != 0 {
        chip["subsystem-vendor"] = half(function, SUBSYSTEM).into();
        chip["subsystem"] = half(function, SUBSYSTEM + 2).into();
    }
    let [line, pin] = half(function, INTERRUPT).to_le_bytes();
    let mut device = json!({
        "bus": 0,
        "slot": at.slot,
        "function": at.function,
        "class_info": { "class": half(function, CLASS) },
        "id": chip,
        "irq_pin": pin,
        "qdev_id": id,
        "regions": regions(function),
    });
    if pin != 0 {
        device["irq"] = line.into();
    }
    device
}

fn regions(function: &dyn PciFunction) -> Vec<Value> {
    let command = half(function, COMMAND);
    let sizes = function.bar_sizes();
    let region = |(bar, size): (usize, u64)| {
        let register = word(function, BAR0 + bar as u64 * 4);
        let ports = register & 1 != 0;
        if ports {
            let address = u64::from(register & !3);
            let address = mapped(command & DECODES_PORTS != 0, address);
            return json!({ "bar": bar, "type": "io", "address": address, "size": size });
        }
        let wide = register & 4 != 0;
        let high = if wide {
            word(function, BAR0 + bar as u64 * 4 + 4)
        } else {
            0
        };
        let address = u64::from(high) << 32 | u64::from(register & !0xf);
        json!({
            "bar": bar,
            "type": "memory",
            "address": mapped(command & DECODES_MEMORY != 0, address),
            "size": size,
            "prefetch": register & 8 != 0,
            "mem_type_64": wide,
        })
    };
    let there = sizes.into_iter().enumerate().filter(|(_, size)| *size > 0);
    there.map(region).collect()
}

fn mapped(decodes: bool, address: u64) -> i64 {
    match i64::try_from(address) {
        Ok(address) if decodes && address != 0 => address,
        _ => UNMAPPED,
    }
}

fn half(function: &dyn PciFunction, offset: u64) -> u16 {
    let mut bytes = [0; 2];
    function.config_read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn word(function: &dyn PciFunction, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    function.config_read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}
