//! [`PeerIdentity`] as an axum extractor. It lives beside the type because Rust lets nobody else
//! implement a foreign trait for it.

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::PeerIdentity;
use crate::context;

/// The request did not come through the mesh's server or its inbound layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no peer identity: serve this router through the mesh, or add its inbound layer")]
pub struct NoPeerIdentity;

impl IntoResponse for NoPeerIdentity {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PeerIdentity {
    type Rejection = NoPeerIdentity;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, NoPeerIdentity> {
        // Where the mesh did not accept the connection, who did may have left word in the extensions.
        let caller = context::caller().map(|caller| Self::clone(&caller));
        caller.or_else(|| parts.extensions.get().cloned()).ok_or(NoPeerIdentity)
    }
}
