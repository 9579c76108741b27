//! `trafficPolicy.tls`.

use mesh_core::policy::ClientCertificate;

use super::spec::TlsSpec;
use super::{ClientTls, TlsNames};
use crate::finding::Severity;
use crate::model::check::Check;

/// Checks a `tls` block. Anything doubtful is an error: a client must never speak plaintext, or skip a
/// check, because a field was misspelt.
pub(super) fn client_tls(spec: &TlsSpec, check: &mut Check<'_>, path: &str) -> Option<ClientTls> {
    let files = [&spec.client_certificate, &spec.private_key, &spec.ca_certificates];
    let has_files = files.iter().any(|file| file.as_deref().is_some_and(|file| !file.is_empty()));
    if let Some(name) = spec.credential_name.as_deref().filter(|name| !name.is_empty()) {
        if has_files {
            check.error(&format!("{path}.credentialName"), "files and credentialName exclude each other");
        } else {
            let message = format!("secret {name:?} cannot be read by this version; name files instead");
            check.error(&format!("{path}.credentialName"), message);
        }
        return None;
    }
    if spec.ca_crl.is_some() {
        check.error(&format!("{path}.caCrl"), "revocation lists are not checked by this version; remove it knowingly");
    }
    let names = TlsNames {
        sni: spec.sni.clone().filter(|sni| !sni.is_empty()),
        subject_alt_names: spec.subject_alt_names.clone(),
        ca_file: spec.ca_certificates.clone().filter(|file| !file.is_empty()),
        insecure_skip_verify: spec.insecure_skip_verify.unwrap_or(false),
    };
    match spec.mode.as_deref().unwrap_or("DISABLE") {
        "DISABLE" => Some(ClientTls::Disable),
        "SIMPLE" => {
            warn_unverified(&names, check, path, "IST0128");
            Some(ClientTls::Simple(names))
        }
        "MUTUAL" => {
            warn_unverified(&names, check, path, "IST0129");
            let required = |value: &Option<String>| value.clone().filter(|file| !file.is_empty());
            match (required(&spec.client_certificate), required(&spec.private_key)) {
                (Some(certificate_file), Some(private_key_file)) => {
                    Some(ClientTls::Mutual(names, ClientCertificate { certificate_file, private_key_file }))
                }
                _ => {
                    check.error(path, "MUTUAL needs clientCertificate and privateKey");
                    None
                }
            }
        }
        "ISTIO_MUTUAL" => {
            if has_files {
                check.error(path, "ISTIO_MUTUAL uses the mesh's own certificates; name no files");
            }
            Some(ClientTls::Istio { sni: names.sni, subject_alt_names: names.subject_alt_names })
        }
        other => {
            let known = "DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL";
            check.error(&format!("{path}.mode"), format!("{other:?} is not one of {known}"));
            None
        }
    }
}

fn warn_unverified(names: &TlsNames, check: &mut Check<'_>, path: &str, code: &'static str) {
    if names.insecure_skip_verify {
        let message = "any certificate is taken: the server is not verified";
        check.coded(Severity::Warning, &format!("{path}.insecureSkipVerify"), code, message);
    }
}
