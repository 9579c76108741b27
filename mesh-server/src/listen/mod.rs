//! What happens to the bytes of an accepted socket before HTTP or the application: plaintext or TLS, HTTP/1 or HTTP/2.
//!
//! Refuses to know policy: the caller has decided what this socket may be.

mod cut;
mod detect;
mod frames;
mod head;
mod messages;
mod plaintext;
mod rewound;
mod stream;
mod tls;

pub(crate) use self::cut::{Leash, Tether, Why, leash};
pub(crate) use self::detect::{HttpVersion, detect};
use self::frames::Frames;
use self::messages::Messages;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::messages::fuzzing::messages;
pub(crate) use self::plaintext::{is_tls, looks_like_http1, refuse_plaintext};
pub(crate) use self::rewound::Rewound;
pub(crate) use self::stream::{Detected, Stream};
pub(crate) use self::tls::{TlsAccept, TlsRefused, Verified};
