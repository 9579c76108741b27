//! Bytes as the answer of an HTTP/1.1 server: read by the client and by hyper.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_client::fuzzing::answer(data));
