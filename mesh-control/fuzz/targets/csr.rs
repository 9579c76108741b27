//! Text as a signing request: no panic, and what is accepted is a key of a kind that is signed for, and the one of the
//! certificate.
#![no_main]

use std::sync::LazyLock;

use mesh_control::ca::{CertificateAuthority, fuzzing};

static AUTHORITY: LazyLock<CertificateAuthority> = LazyLock::new(|| {
    fuzzing::authority(&std::env::temp_dir().join(format!("mesh-fuzz-csr-{}", std::process::id())))
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    fuzzing::csr(&AUTHORITY, text);
});
