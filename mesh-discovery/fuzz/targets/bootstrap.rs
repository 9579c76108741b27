//! Text as a bootstrap file: no panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = mesh_discovery::bootstrap::Bootstrap::from_json(text);
});
