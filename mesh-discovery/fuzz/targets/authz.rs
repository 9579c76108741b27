//! Bytes as policies and requests: the authorizer decides as the plain evaluator does. The corpus is mesh-core's.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::authz::fuzzing::decisions(data));
