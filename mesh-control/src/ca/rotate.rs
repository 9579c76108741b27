//! Changing the root: `mesh cert rotate-root`, one step each time, on the state directory. A running control plane
//! takes each step up by itself.
//!
//! ```text
//! one root ──add──▶ both trusted, the old one signs ──switch──▶ both trusted, the new one signs ──remove──▶ one root
//!                    until nobody lives who learnt of           until no leaf of the old one lives
//!                    one root only
//! ```
//!
//! Each step is one file replaced, so that a crash leaves the state before it or the one after it. The old key
//! is gone once the new one signs; where there are revocation lists it is kept until the old root is out, for its list may
//! have to tell of more.

use std::path::Path;

use mesh_core::identity::root_name as name;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::key::Key;
use super::live::LiveLeaves;
use super::material::{KEY_FILE, Material, REVOKED_FILE, read_key, self_signed_root};
use super::revoked::empty_list;
use super::{CertificateLife, ROOT_FILE, TrustDomains, pem_of};
use crate::clock::Clock;
use crate::state_dir::{StateDir, StateError};

const NEXT_KEY_FILE: &str = "next-ca-key.pem";
const LAST_KEY_FILE: &str = "last-ca-key.pem";
const STEP_FILE: &str = "root-rotation.json";
/// A running control plane has seen a changed file after this time, seconds.
const NOTICED: u64 = 5;

/// A change of roots, under way or not.
pub struct RootRotation {
    dir: StateDir,
    domains: TrustDomains,
    clock: Clock,
    live: LiveLeaves,
    /// Of certificates of which nothing is recorded.
    longest_life: u64,
}

/// Where a change of roots stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RotationState {
    /// How far it is.
    pub step: RotationStep,
    /// The root that signs, by the first 16 digits of its SHA-256.
    pub signing: String,
    /// Roots that are trusted, in the same form.
    pub trusted: Vec<String>,
    /// When the next step is safe, seconds since the Unix epoch; `None` = at once.
    pub safe_at: Option<u64>,
}

/// A step of a change of roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationStep {
    /// One root is trusted, and it signs.
    Idle,
    /// A new root is trusted; the old one signs.
    Added,
    /// The new root signs; the old one is still trusted.
    Switched,
}

/// Why the next step was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// Somebody would be cut off.
    #[error(
        "the next step is safe in {} seconds: {why}; run it again then, or with --force and cut them off",
        safe_at.saturating_sub(*now)
    )]
    TooEarly {
        /// Who.
        why: &'static str,
        /// Now, seconds since the Unix epoch.
        now: u64,
        /// When it is safe.
        safe_at: u64,
    },
    /// The root is not ours.
    #[error(
        "{ROOT_FILE} is an operator's root (there is a ca-cert.pem): append the new root to it, replace ca-cert.pem, \
         ca-key.pem and cert-chain.pem once every certificate of before has ended, and take the old root out once \
         every certificate under it has (a control plane that runs refuses to lose it sooner)"
    )]
    NotOurs,
    /// A file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The new root could not be made.
    #[error("the new root: {0}")]
    Make(#[from] rcgen::Error),
}

/// What is written down when a root is added.
#[derive(Deserialize, Serialize)]
struct Added {
    /// The end of the last certificate whose owner may know one root only, seconds since the Unix epoch.
    switch_after: u64,
}

impl RootRotation {
    /// Opens the state directory of an authority; its first root is made where there is none.
    ///
    /// # Errors
    /// See [`CertificateAuthority::open`](super::CertificateAuthority::open).
    pub fn open(
        state_dir: &Path,
        domains: impl Into<TrustDomains>,
        life: CertificateLife,
        clock: Clock,
    ) -> Result<Self, StateError> {
        let domains = domains.into();
        let authority = super::CertificateAuthority::open(state_dir, domains.clone(), life, clock.clone())?;
        let dir = StateDir::open(state_dir)?;
        Ok(Self { dir, domains, clock, live: authority.live, longest_life: life.maximum.as_secs() })
    }

    /// Where it stands.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn state(&self) -> Result<RotationState, RotateError> {
        let material = Material::read(&self.dir, &self.domains)?;
        let now = self.clock.unix_seconds();
        let (step, safe_at) = match self.next(&material)? {
            Next::Add => (RotationStep::Idle, None),
            Next::Switch => (RotationStep::Added, Some(self.switch_after()?)),
            Next::Remove(old) => (RotationStep::Switched, Some(self.known_end_of(&old)?)),
        };
        Ok(RotationState {
            step,
            signing: name(&material.root),
            trusted: material.bundle.roots().iter().map(|root| name(root)).collect(),
            safe_at: safe_at.filter(|at| *at > now),
        })
    }

    /// Makes the next step if it cuts nobody off, or if `force` says so all the same.
    ///
    /// # Errors
    /// It is too early, the root is an operator's, or a file cannot be used; then nothing has changed.
    pub fn advance(&self, force: bool) -> Result<RotationState, RotateError> {
        let material = Material::read(&self.dir, &self.domains)?;
        if material.is_subordinate() {
            return Err(RotateError::NotOurs);
        }
        let now = self.clock.unix_seconds();
        let wait = |why, safe_at| {
            if force || safe_at <= now { Ok(()) } else { Err(RotateError::TooEarly { why, now, safe_at }) }
        };
        let next = self.next(&material)?;
        match next {
            Next::Add => self.add(&material, now)?,
            Next::Switch => {
                wait("certificates live whose owners may not have learnt of the new root", self.switch_after()?)?;
                // Whoever has not noticed yet signs with the old one for a moment.
                self.note(&material.root, now + NOTICED)?;
                if material.lists_end.is_some()
                    && let Some(key) = self.dir.read_secret(KEY_FILE)?
                {
                    self.dir.write(LAST_KEY_FILE, &key)?;
                }
                self.dir.rename(NEXT_KEY_FILE, KEY_FILE)?;
            }
            Next::Remove(old) => {
                wait("certificates of the old root live", self.known_end_of(&old)?)?;
                if force {
                    // A running control plane lets no root go of which leaves are known to live.
                    for root in &old {
                        self.live.forget(root).map_err(|e| self.live.failed("write", e))?;
                    }
                }
                self.dir.write(ROOT_FILE, pem_of(&material.root).as_bytes())?;
                self.dir.remove(LAST_KEY_FILE)?;
            }
        }
        self.state()
    }

    fn next(&self, material: &Material) -> Result<Next, RotateError> {
        let roots = material.bundle.roots();
        if let Some(key) = self.next_key()?
            && roots.iter().any(|root| super::material::belongs(root, &key))
        {
            return Ok(Next::Switch);
        }
        let others: Vec<_> = roots.iter().filter(|root| **root != material.root).cloned().collect();
        Ok(if others.is_empty() { Next::Add } else { Next::Remove(others) })
    }

    /// First what must be known of it and its key, then the root itself: only that makes it count.
    fn add(&self, material: &Material, now: u64) -> Result<(), RotateError> {
        // Of a change that was cut short at its very end.
        self.dir.remove(LAST_KEY_FILE)?;
        // The last one who learns of one root only may be given a certificate just before the new root is noticed.
        let known = self.end_of(std::slice::from_ref(&material.root))?;
        let added = Added { switch_after: known.max(now + self.longest_life) + NOTICED };
        self.write_added(&added)?;
        let key = match self.next_key()? {
            Some(key) => key,
            None => {
                let pem = self.dir.write_once(NEXT_KEY_FILE, Key::generate()?.to_pem().as_bytes())?;
                read_key(&self.dir, NEXT_KEY_FILE, &pem)?
            }
        };
        let root = self_signed_root(&key, &self.domains.own, &self.clock)?;
        if let Some(end) = material.lists_end {
            self.add_list(&root, key, now, end.max(now + self.longest_life))?;
        }
        let bundle = format!("{}\n{root}", material.roots_pem.trim_end());
        Ok(self.dir.write(ROOT_FILE, bundle.as_bytes())?)
    }

    /// Where there are revocation lists, one of the new root: nobody is taken back yet. One of an earlier attempt goes
    /// before it and is replaced with the operator's next lists.
    fn add_list(&self, root: &str, key: Key, now: u64, end: u64) -> Result<(), RotateError> {
        let mut lists = self.dir.read(REVOKED_FILE)?.unwrap_or_default();
        lists.extend_from_slice(b"\n");
        lists.extend_from_slice(empty_list(root, key, now, end)?.as_bytes());
        Ok(self.dir.write(REVOKED_FILE, &lists)?)
    }

    fn next_key(&self) -> Result<Option<Key>, StateError> {
        let pem = self.dir.read_secret(NEXT_KEY_FILE)?;
        pem.map(|pem| read_key(&self.dir, NEXT_KEY_FILE, &pem)).transpose()
    }

    /// Without a record, as if the root had been added now, which is written down: the next look must not begin anew.
    fn switch_after(&self) -> Result<u64, StateError> {
        let written = self.dir.read(STEP_FILE)?.and_then(|text| serde_json::from_slice::<Added>(&text).ok());
        match written {
            Some(Added { switch_after }) => Ok(switch_after),
            None => {
                let switch_after = self.clock.unix_seconds() + self.longest_life;
                self.write_added(&Added { switch_after })?;
                Ok(switch_after)
            }
        }
    }

    fn write_added(&self, added: &Added) -> Result<(), StateError> {
        self.dir.write(STEP_FILE, &serde_json::to_vec(added).expect("a number is always JSON"))
    }

    /// When the last leaf of these roots has ended.
    fn end_of(&self, roots: &[CertificateDer<'static>]) -> Result<u64, StateError> {
        let mut end = 0;
        for root in roots {
            end = end.max(self.live.until(root).map_err(|e| self.live.failed("read", e))?);
        }
        Ok(end)
    }

    /// The same where a root may have come by an operator's hand: of what nothing is recorded, leaves may live as long as the
    /// longest from now on, which is written down.
    fn known_end_of(&self, roots: &[CertificateDer<'static>]) -> Result<u64, StateError> {
        for root in roots {
            if self.end_of(std::slice::from_ref(root))? == 0 {
                self.note(root, self.clock.unix_seconds() + self.longest_life)?;
            }
        }
        self.end_of(roots)
    }

    fn note(&self, root: &CertificateDer<'_>, until: u64) -> Result<(), StateError> {
        self.live.note(root, until, 0).map_err(|e| self.live.failed("write", e))
    }
}

enum Next {
    Add,
    Switch,
    /// These.
    Remove(Vec<CertificateDer<'static>>),
}

impl std::fmt::Debug for RootRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootRotation").field("domains", &self.domains).finish_non_exhaustive()
    }
}
