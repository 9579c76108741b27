//! One entry of `certificate_providers` (gRFC A29): where a certificate and roots come from.

use std::time::Duration;

use crate::json::{At, Invalid, both_or_neither, refresh_interval};

/// One certificate provider instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProvider {
    /// `file_watcher`: PEM files that are read again every so often.
    FileWatcher(FileWatcher),
}

/// Configuration of the plug-in `file_watcher`; it names an identity, roots, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileWatcher {
    /// `certificate_file` and `private_key_file`: PEM chain, leaf first, and PEM key; both or neither.
    pub identity: Option<(String, String)>,
    /// `ca_certificate_file`: PEM file of trusted roots.
    pub ca_certificate_file: Option<String>,
    /// `spiffe_trust_bundle_map_file` (gRFC A87): roots by trust domain, as JSON. Wins over the CA file.
    pub spiffe_trust_bundle_map_file: Option<String>,
    /// `certificate_revocation_list_file`: PEM file of revocation lists for our own trust domain. With it a peer of that
    /// domain is refused that no list speaks of. gRPC's providers have no such setting. Default: nobody is asked.
    pub certificate_revocation_list_file: Option<String>,
    /// How often the files are read. Default 600 s; zero means the default.
    pub refresh_interval: Duration,
}

impl FileWatcher {
    /// Whether it names everything that a mesh identity is made of: certificate, key and roots.
    pub fn is_complete(&self) -> bool {
        self.identity.is_some() && self.has_roots()
    }

    /// Whether it names roots.
    pub fn has_roots(&self) -> bool {
        self.ca_certificate_file.is_some() || self.spiffe_trust_bundle_map_file.is_some()
    }
}

impl CertificateProvider {
    pub(super) fn read(at: &At<'_>) -> Result<Self, Invalid> {
        let plugin = at.required("plugin_name")?;
        if plugin.string()? != "file_watcher" {
            return Err(plugin.invalid("the only plug-in known is \"file_watcher\""));
        }
        let config = at.required("config")?;
        config.object()?;
        let watcher = FileWatcher {
            identity: both_or_neither(&config, "certificate_file", "private_key_file")?,
            ca_certificate_file: config.text("ca_certificate_file")?,
            spiffe_trust_bundle_map_file: config.text("spiffe_trust_bundle_map_file")?,
            certificate_revocation_list_file: config.text("certificate_revocation_list_file")?,
            refresh_interval: refresh_interval(&config)?,
        };
        if watcher.identity.is_none() && !watcher.has_roots() {
            return Err(config.invalid("it names neither a certificate nor roots"));
        }
        Ok(Self::FileWatcher(watcher))
    }
}
