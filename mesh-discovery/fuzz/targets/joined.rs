//! Bytes as a server's listener and the routes that it names: together they say what one says that has them in itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_discovery::codec::fuzzing::joined(data));
