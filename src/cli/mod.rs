//! The commands of the binary that ask a running control plane, and what the log looks like.

pub(crate) mod ask;
pub(crate) mod memory;
pub(crate) mod status;

use std::io::IsTerminal;

/// Whether the log has colours: on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
pub(crate) fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|said| said.is_empty())
}
