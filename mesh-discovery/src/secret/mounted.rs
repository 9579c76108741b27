//! The root file beside an authority that tells nothing of roots: Istio's, whose members trust the roots of its answer and
//! those that are mounted, while they change.
//!
//! An authority that tells of roots, as this library's does, is believed alone: a root that it took out must not come back
//! out of a file that was written before. A file that has never had a root in common with the authority's answers is about
//! the way to it, and vouches for nobody else.

use std::path::Path;

use mesh_core::identity::TrustBundle;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::Reading;
use crate::connect::tls;

type Roots = Vec<CertificateDer<'static>>;

/// What an authority answered, and what the file said last that was good.
#[derive(Default)]
pub(super) struct Mounted {
    state: Mutex<State>,
    reading: Reading<Roots>,
}

#[derive(Default)]
struct State {
    answered: Roots,
    file: Roots,
    /// The file has had a root of the authority's.
    is_of_the_mesh: bool,
    tells: Option<bool>,
}

impl Mounted {
    /// Notes whether the authority tells of roots. That one has done so once counts.
    pub(super) fn tells(&self, tells: bool) {
        let mut state = self.state.lock();
        state.tells = Some(tells || state.tells == Some(true));
    }

    /// What is to be trusted with the roots of an answer; with one that has none those of the file.
    ///
    /// # Errors
    /// The answer has none, and the file cannot be read.
    pub(super) async fn beside(&self, answered: Roots, file: &Path) -> Result<Roots, String> {
        let read = self.read(file).await;
        let mut state = self.state.lock();
        state.answered = answered;
        state.trusted(read, file)
    }

    /// The same for the last answer, as the file is now; `None` = the file counts for nothing.
    pub(super) async fn look(&self, file: &Path) -> Option<Roots> {
        if self.state.lock().tells != Some(false) {
            return None;
        }
        let read = self.read(file).await;
        let mut state = self.state.lock();
        let roots = (state.tells == Some(false)).then(|| state.trusted(read, file))?;
        roots.ok()
    }

    async fn read(&self, file: &Path) -> Result<Roots, String> {
        let of = file.to_owned();
        let read = self.reading.of(move || tls::read_certificates(of)).await;
        read.map_err(|error| format!("{}: {error}", file.display()))
    }
}

impl State {
    /// With the roots that were `read` of the file.
    fn trusted(&mut self, read: Result<Roots, String>, file: &Path) -> Result<Roots, String> {
        let read = read.and_then(|roots| {
            // One that is none would spoil the others, and so would too many.
            let all = self.answered.iter().chain(&roots).cloned();
            TrustBundle::new(all).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(roots)
        });
        match read {
            Ok(roots) => self.file = roots,
            Err(error) if self.answered.is_empty() && self.file.is_empty() => return Err(error),
            Err(error) => tracing::debug!(%error, "trusted roots: those read last stay in use"),
        }
        let answered = &self.answered;
        self.is_of_the_mesh |= self.file.iter().any(|root| answered.contains(root));
        let counts = answered.is_empty() || (self.tells == Some(false) && self.is_of_the_mesh);
        let beside = self.file.iter().filter(|root| counts && !answered.contains(root));
        Ok(answered.iter().chain(beside).cloned().collect())
    }
}
