//! Bytes as requests: what a router matches is what the policy saw and the application gets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_server::fuzzing::router(data));
