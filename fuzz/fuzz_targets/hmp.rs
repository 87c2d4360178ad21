//! A conversation with a monitor for people.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton::fuzzing::hmp(data));
