//! Bytes as events of a stream: no panic, and no configuration is torn.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_discovery::xds::fuzzing::state_machine(data));
