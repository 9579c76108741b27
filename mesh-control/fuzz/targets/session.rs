//! Bytes as a configuration stream: the protocol's rules hold, and the client gets what it asks for.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_control::xds::fuzzing::session(data));
