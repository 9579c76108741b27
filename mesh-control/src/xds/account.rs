//! [`Account`]: what is kept for one identity over all its streams, in bytes, as far as clients decide how much that is.
//!
//! Rough on purpose: every name, entry and scope has a price near what it takes, and bytes that are shared are paid by
//! whoever had them made. Refuses to know what is bought.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A name that a stream subscribes to, or that its wildcard covers.
pub(super) const NAME: usize = 128;
/// A resource as one scope sees it, whether it exists or not, beside its name.
pub(super) const ENTRY: usize = 320;
/// An encoded resource, beside its bytes.
pub(super) const ENCODED: usize = 160;
/// A scope, beside its texts.
pub(super) const SCOPE: usize = 512;

/// The bytes kept for one identity.
#[derive(Debug, Default)]
pub(crate) struct Account(AtomicUsize);

impl Account {
    /// Bytes now.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one holder keeps; dropping it gives everything back.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(account: &Arc<Account>, bytes: usize) -> Self {
        account.0.fetch_add(bytes, Ordering::Relaxed);
        Self { account: account.clone(), bytes }
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.account.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        self.remove(self.bytes);
    }

    /// At most what was added.
    pub(crate) fn remove(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.account.0.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}
