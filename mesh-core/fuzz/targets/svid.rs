//! Bytes as a chain of certificates: no panic, and nobody is who the leaf does not name.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::identity::fuzzing::svid(data));
