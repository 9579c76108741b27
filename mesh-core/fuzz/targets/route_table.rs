//! Bytes as routes and requests: the table finds what the plain matcher finds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_core::matcher::fuzzing::routes(bytes));
