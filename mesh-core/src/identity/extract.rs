//! [`PeerIdentity`] as an axum extractor. It lives beside the type because Rust lets nobody else
//! implement a foreign trait for it.

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::PeerIdentity;

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
        parts.extensions.get::<Self>().cloned().ok_or(NoPeerIdentity)
    }
}
