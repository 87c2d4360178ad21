//! The state of a section of the host's: a byte that says which, and its payload.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton::fuzzing::section(data));
