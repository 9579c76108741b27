//! `webapp`: the list of books, in two versions that a TrafficSplit shares requests between.

use axum::{Json, Router, extract::State, routing::get};
use mesh::PeerIdentity;
use serde::{Deserialize, Serialize};

use super::{Hop, PORT, Result, Start};

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Books {
    pub(crate) titles: Vec<String>,
    pub(crate) hop: Hop,
}

pub(crate) async fn run(start: Start) -> Result<()> {
    let app = Router::new().route("/books", get(books)).with_state(start.version);
    start.mesh.serve(start.listener, app).service("webapp", PORT).await?;
    Ok(())
}

async fn books(State(version): State<String>, peer: PeerIdentity) -> Json<Books> {
    let titles = ["The Comedy of Errors", "Twelfth Night", "As You Like It"].map(str::to_owned).to_vec();
    Json(Books { titles, hop: Hop::new("webapp", &version, &peer) })
}
