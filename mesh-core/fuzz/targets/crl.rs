//! Bytes as a revocation list: no panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::identity::fuzzing::crl(data));
