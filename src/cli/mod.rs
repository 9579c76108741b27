//! The commands of the binary that ask a running control plane or read manifests as it does, and what the log looks like.

pub(crate) mod analyze;
pub(crate) mod ask;
pub(crate) mod memory;
pub(crate) mod status;

use std::io::{self, IsTerminal, Write};

/// Writes an answer. Who reads no more of it (`| head`) has what they wanted.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Whether the log has colours: on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
pub(crate) fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|said| said.is_empty())
}
