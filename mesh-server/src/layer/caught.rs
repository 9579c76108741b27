//! Panics of the application's code, and of layers and authorizers that it brings along: caught where the code is called,
//! so that they cost their request and nothing else.
//!
//! In a process built with `panic = "abort"` nothing is caught: it ends. Refuses to know what becomes of the request.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The code has panicked, and said so.
#[derive(Debug, thiserror::Error)]
#[error("it panicked: {0}")]
pub(super) struct Panicked(Box<str>);

/// Runs code that is not ours. What it was working on must not be used again, but for being dropped: that is what makes
/// it safe to go on.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| said(&*payload))
}

#[cold]
fn said(payload: &(dyn Any + Send)) -> Panicked {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Panicked(text.unwrap_or("without a text").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_text() {
        assert_eq!(caught(|| 1).unwrap(), 1);
        let told = |work: fn()| caught(work).unwrap_err().to_string();
        assert_eq!(told(|| panic!("as ordered")), "it panicked: as ordered");
        assert_eq!(told(|| panic!("as ordered {}", 1)), "it panicked: as ordered 1");
        assert_eq!(told(|| std::panic::panic_any(1)), "it panicked: without a text");
    }
}
