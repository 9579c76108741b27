//! Text as an authority: good or not as the plain reader says, and the virtual host that the plain matcher finds.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    mesh_core::target::fuzzing::authority(text);
    mesh_core::matcher::fuzzing::host(text);
});
