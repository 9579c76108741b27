//! `reviews`: what readers think. v1 has no stars, v2 black ones, v3 red ones; v2 and v3 ask `ratings`.

use axum::{Json, Router, extract::State, routing::get};
use mesh::{Client, PeerIdentity};
use serde::{Deserialize, Serialize};

use super::ratings::Ratings;
use super::{Hop, PORT, Result, Start, get_json};

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Reviews {
    pub(crate) reviews: Vec<Review>,
    /// Colour of the stars; absent in v1.
    pub(crate) colour: Option<String>,
    pub(crate) hops: Vec<Hop>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Review {
    pub(crate) reviewer: String,
    pub(crate) text: String,
    pub(crate) stars: Option<u8>,
}

#[derive(Clone)]
struct App {
    client: Client,
    version: String,
}

pub(crate) async fn run(start: Start) -> Result<()> {
    let state = App { client: start.mesh.client(), version: start.version };
    let app = Router::new().route("/reviews/{product}", get(reviews)).with_state(state);
    start.mesh.serve(start.listener, app).service("reviews", PORT).await?;
    Ok(())
}

async fn reviews(State(app): State<App>, peer: PeerIdentity) -> Json<Reviews> {
    let mut hops = vec![Hop::new("reviews", &app.version, &peer)];
    let colour = match app.version.as_str() {
        "v2" => Some("black".to_owned()),
        "v3" => Some("red".to_owned()),
        _ => None,
    };
    let mut ratings = None;
    if colour.is_some() {
        // A page without stars is better than no page: a failing ratings service is not passed on.
        match get_json::<Ratings>(&app.client, "http://ratings:9080/ratings/0", None).await {
            Ok(found) => {
                hops.push(found.hop);
                ratings = Some(found.stars);
            }
            Err(error) => tracing::warn!(%error, "no ratings"),
        }
    }
    let stars = |reviewer: &str| ratings.as_ref().and_then(|stars| stars.get(reviewer).copied());
    let review =
        |reviewer: &str, text: &str| Review { reviewer: reviewer.into(), text: text.into(), stars: stars(reviewer) };
    Json(Reviews {
        reviews: vec![
            review("Reviewer1", "An extremely entertaining play. The slapstick humour is refreshing!"),
            review("Reviewer2", "Absolutely fun, from the first scene to the last."),
        ],
        colour,
        hops,
    })
}
