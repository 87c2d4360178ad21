//! A migration address in any spelling.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton_migration::fuzzing::address(data));
