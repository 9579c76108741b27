//! What a subscriber writes, to be looked at.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

/// Collects what is written to it; clones write to one text.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).expect("a log is text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
