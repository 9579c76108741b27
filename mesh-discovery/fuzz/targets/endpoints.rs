//! Bytes as a resource of type endpoints: no panic, and what is accepted survives another round.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_discovery::codec::fuzzing::endpoints(data));
