//! Text as a path: its normal form is what the plain reader makes of it, and has no other.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| mesh_core::target::fuzzing::path(text));
