//! The memory of a process that holds the authority's key.

use std::io;

/// Keeps this process's memory out of core dumps, and from others of the same user (`PR_SET_DUMPABLE`). It lasts until the
/// process ends. Elsewhere than on Linux it does nothing.
#[cfg(target_os = "linux")]
pub(crate) fn keep_private() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let refused = |error| {
        io::Error::other(format!(
            "its memory cannot be kept out of core dumps: {error}; --core-dumps begins all the same"
        ))
    };
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn keep_private() -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{DumpableBehavior, dumpable_behavior};

    use super::*;

    #[test]
    fn memory_is_kept_out_of_core_dumps() {
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable, "the control");
        keep_private().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
