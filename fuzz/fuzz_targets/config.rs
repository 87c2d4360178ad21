//! A file of `-readconfig`, and what its sections ask for.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton::fuzzing::config(data));
