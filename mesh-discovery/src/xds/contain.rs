//! Bugs that a resource brings to light cost that resource and not the process.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work` on a resource; a panic in it is the reason why the resource cannot be used. `what` says whose bug it is.
pub(super) fn contained<T>(what: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(format!("{what} panicked on it, which is a bug in mesh; please report it")))
}
