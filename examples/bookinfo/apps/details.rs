//! `details`: facts about a book.

use axum::{Json, Router, extract::State, routing::get};
use mesh::PeerIdentity;
use serde::{Deserialize, Serialize};

use super::{Hop, PORT, Result, Start};

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Details {
    pub(crate) author: String,
    pub(crate) year: u16,
    pub(crate) pages: u16,
    pub(crate) hop: Hop,
}

pub(crate) async fn run(start: Start) -> Result<()> {
    let app = Router::new().route("/details/{product}", get(details)).with_state(start.version);
    start.mesh.serve(start.listener, app).service("details", PORT).await?;
    Ok(())
}

async fn details(State(version): State<String>, peer: PeerIdentity) -> Json<Details> {
    let hop = Hop::new("details", &version, &peer);
    Json(Details { author: "William Shakespeare".into(), year: 1595, pages: 200, hop })
}
