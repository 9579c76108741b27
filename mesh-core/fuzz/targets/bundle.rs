//! Bytes as a trust bundle: no panic, and it is read whole or not at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::identity::fuzzing::bundle(data));
