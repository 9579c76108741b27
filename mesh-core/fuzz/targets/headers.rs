//! Bytes as header matchers and headers: they are judged as the plain matcher judges them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_core::matcher::fuzzing::headers(bytes));
