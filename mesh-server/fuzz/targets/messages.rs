//! Bytes as an HTTP/1 connection: hyper serves the messages at which the watcher looks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_server::fuzzing::messages(data));
