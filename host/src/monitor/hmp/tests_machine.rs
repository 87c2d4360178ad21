//! What `info` tells of the machine.

use serde_json::json;

use super::run::{Speaker, run};
use super::tests::Fake;
use crate::monitor::command::Command;

#[test]
fn address_spaces_are_told_as_qemu_does() {
    let ram = json!({ "base": 0, "last": 0x7ff_ffff, "kind": "ram", "name": "ram0" });
    let port = json!({ "base": 0x3f8, "last": 0x3ff, "kind": "i/o", "name": "serial0" });
    let spaces = json!([
        { "name": "memory", "last": u64::MAX, "ranges": [ram] },
        { "name": "I/O", "last": 0xffff, "ranges": [port] },
    ]);
    let vm = Fake::answering(Command::QueryAddressSpaces, spaces);
    assert_eq!(
        vm.prints("info mtree"),
        "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): memory\n    \
         0000000000000000-0000000007ffffff (prio 0, ram): ram0\n\naddress-space: I/O\n  \
         0000000000000000-000000000000ffff (prio 0, i/o): I/O\n    \
         00000000000003f8-00000000000003ff (prio 0, i/o): serial0\n"
    );
}

#[test]
fn devices_and_plugins_are_listed() {
    let devices = json!([
        { "id": "d", "driver": "virtio-blk-pci", "bus": "pcie.0", "address": "01.0", "failed": true,
          "reason": "\u{1b}[2J" },
        { "id": "rtc", "driver": "mc146818rtc", "bus": "isa", "address": "0x70", "failed": false },
    ]);
    let vm = Fake::answering(Command::QueryDevices, devices);
    // What names and reasons hold must not control a terminal.
    assert_eq!(
        vm.prints("info qtree"),
        "bus: isa\n  dev: mc146818rtc, id \"rtc\"\n    addr = \"0x70\"\nbus: pcie.0\n  dev: \
         virtio-blk-pci, id \"d\"\n    addr = \"01.0\"\n    failed = \"\\u{1b}[2J\"\n"
    );
    let plugins = json!([{ "name": "p", "version": "1", "file": "/p.so", "abi": "1.0",
        "devices": ["a", "b"] }]);
    let vm = Fake::answering(Command::QueryPlugins, plugins);
    assert_eq!(
        vm.prints("info plugins"),
        "p 1: file=/p.so, abi=1.0, devices=a,b\n"
    );
}

#[test]
fn character_devices_are_told_as_qemu_does() {
    let rows = json!([
        { "label": "serial0", "filename": "pty:/dev/pts/4", "frontend-open": true },
        { "label": "log", "filename": "file", "frontend-open": false },
    ]);
    let vm = Fake::answering(Command::QueryChardev, rows);
    let shown = "serial0: filename=pty:/dev/pts/4\nlog: filename=file\n";
    assert_eq!(vm.prints("info chardev"), shown);
}

#[test]
fn cpus_are_told_as_qemu_does_and_the_one_that_is_meant_is_marked() {
    let cpu = |index: u64| json!({ "cpu-index": index, "thread-id": 70 + index });
    let vm = Fake::answering(Command::QueryCpusFast, json!([cpu(0), cpu(1)]));
    assert_eq!(
        vm.prints("info cpus"),
        "* CPU #0: thread_id=70\n  CPU #1: thread_id=71\n"
    );
    let second = Speaker {
        cpu: 1,
        ..Speaker::default()
    };
    assert_eq!(
        run(&vm, "info cpus", second).text,
        "  CPU #0: thread_id=70\r\n* CPU #1: thread_id=71\r\n"
    );
}

#[test]
fn disks_are_told_as_qemu_does() {
    let image = |ro: bool| {
        json!({
            "file": "disk.img", "node-name": "#block1", "drv": "raw", "ro": ro, "active": true,
            "cache": { "writeback": true, "direct": ro, "no-flush": false },
        })
    };
    let drives = json!([
        { "device": "d0", "qdev": "/machine/peripheral/v", "io-status": "ok",
          "inserted": image(false) },
        { "device": "d1", "io-status": "nospace", "inserted": image(true) },
        { "device": "d2" },
    ]);
    let vm = Fake::answering(Command::QueryBlock, drives);
    let first = "d0 (#block1): disk.img (raw)\n    Attached to:      /machine/peripheral/v\n    \
                 Cache mode:       writeback\n";
    let second = "d1 (#block1): disk.img (raw, read-only)\n    I/O status:       nospace\n    \
                  Cache mode:       writeback, direct\n";
    let third = "d2: [not inserted]\n";
    assert_eq!(vm.prints("info block"), [first, second, third].join("\n"));
    assert_eq!(vm.prints("info block d1"), second);
    assert_eq!(vm.prints("info block nope"), "");
}

#[test]
fn pci_is_told_as_qemu_does() {
    let buses = json!([{ "bus": 0, "devices": [
        { "bus": 0, "slot": 1, "function": 0, "class_info": { "class": 0x100 },
          "id": { "vendor": 0x1af4, "device": 0x1042, "subsystem-vendor": 0x1af4, "subsystem": 0x40 },
          "irq": 11, "irq_pin": 1, "qdev_id": "v", "regions": [
            { "bar": 0, "type": "memory", "address": 0xc000_0000_u64, "size": 0x4000,
              "mem_type_64": true, "prefetch": false },
            { "bar": 2, "type": "memory", "address": -1, "size": 0x1000, "mem_type_64": false,
              "prefetch": true },
            { "bar": 3, "type": "io", "address": 0x60, "size": 0x20 },
            { "bar": 4, "type": "io", "address": -1, "size": 0x20 },
          ] },
        { "bus": 0, "slot": 0, "function": 0, "class_info": { "class": 0x600 },
          "id": { "vendor": 0x8086, "device": 0x29c0 }, "irq_pin": 0, "qdev_id": "",
          "regions": [] },
    ] }]);
    let vm = Fake::answering(Command::QueryPci, buses);
    assert_eq!(
        vm.prints("info pci"),
        "  Bus  0, device   1, function 0:\n    Class 0256: PCI device 1af4:1042\n      PCI \
         subsystem 1af4:0040\n      IRQ 11, pin A\n      BAR0: 64 bit memory at 0xc0000000 \
         [0xc0003fff]\n      BAR2: 32 bit prefetchable memory (not mapped)\n      BAR3: I/O at \
         0x0060 [0x007f]\n      BAR4: I/O (not mapped)\n      id \"v\"\n  Bus  0, device   0, \
         function 0:\n    Class 1536: PCI device 8086:29c0\n      id \"\"\n"
    );
}

#[test]
fn the_uuid_is_told() {
    let uuid = "00000000-0000-0000-0000-000000000000";
    let vm = Fake::answering(Command::QueryUuid, json!({ "UUID": uuid }));
    assert_eq!(vm.prints("info uuid"), format!("{uuid}\n"));
}
