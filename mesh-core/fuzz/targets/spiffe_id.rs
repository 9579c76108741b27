//! Text as a SPIFFE ID: no panic, and what is accepted says what the text says.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| mesh_core::identity::fuzzing::spiffe_id(text));
