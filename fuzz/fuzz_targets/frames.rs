//! What a peer sends on a handover's channels.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| baton_migration::fuzzing::frames(data));
