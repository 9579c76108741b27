//! Tokens, key sets and requests with tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_core::jwt::fuzzing::token(bytes));
