//! A vmstate stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton_migration::fuzzing::stream(data));
