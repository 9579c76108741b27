//! How an HTTP/1.1 connection goes on after a request. Refuses to know what the answer is made of.

use http::StatusCode;

/// Whether an HTTP/1.1 connection takes a further request after this one; if not, the caller is told.
#[derive(Clone, Copy)]
pub(super) enum Parting {
    Stays,
    Last,
    /// The caller asks for another protocol, and may have begun with it: if it does not get it, what comes next is no
    /// request (RUSTSEC-2026-0033).
    Switches {
        connect: bool,
    },
}

impl Parting {
    pub(super) fn is_last(self, status: StatusCode) -> bool {
        match self {
            Self::Stays => false,
            Self::Last => true,
            Self::Switches { connect } => {
                status != StatusCode::SWITCHING_PROTOCOLS && !(connect && status.is_success())
            }
        }
    }
}
