//! The state of a controller of ports.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton_virtio_serial_pci::fuzzing::load(data));
