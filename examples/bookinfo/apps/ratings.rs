//! `ratings`: stars by reviewer.

use std::collections::BTreeMap;

use axum::{Json, Router, extract::State, routing::get};
use mesh::PeerIdentity;
use serde::{Deserialize, Serialize};

use super::{Hop, PORT, Result, Start};

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Ratings {
    pub(crate) stars: BTreeMap<String, u8>,
    pub(crate) hop: Hop,
}

pub(crate) async fn run(start: Start) -> Result<()> {
    let app = Router::new().route("/ratings/{product}", get(ratings)).with_state(start.version);
    start.mesh.serve(start.listener, app).service("ratings", PORT).await?;
    Ok(())
}

async fn ratings(State(version): State<String>, peer: PeerIdentity) -> Json<Ratings> {
    let stars = BTreeMap::from([("Reviewer1".to_owned(), 5), ("Reviewer2".to_owned(), 4)]);
    Json(Ratings { stars, hop: Hop::new("ratings", &version, &peer) })
}
