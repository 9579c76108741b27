//! Text as a signing request: no panic, and what is accepted is a key of a kind that is signed for.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = mesh_control::ca::RequestedKey::from_csr_pem(text);
});
