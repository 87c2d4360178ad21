//! The state of a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton_virtio_blk_pci::fuzzing::load(data));
