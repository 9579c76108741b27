//! `productpage`: asks the others and makes the page.

use std::fmt::Write as _;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::{Html, Redirect};
use axum::{Json, Router, routing::get};
use mesh::{Client, PeerIdentity};
use serde::{Deserialize, Serialize};

use super::details::Details;
use super::reviews::Reviews;
use super::webapp::Books;
use super::{Hop, PORT, Result, Start, get_json};

/// Everything the page shows; `/api/page` gives it as JSON.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) user: Option<String>,
    pub(crate) books: Option<Books>,
    pub(crate) details: Option<Details>,
    pub(crate) reviews: Option<Reviews>,
    /// What could not be had, and why.
    pub(crate) errors: Vec<String>,
    pub(crate) hops: Vec<Hop>,
}

#[derive(Clone)]
struct App {
    client: Client,
    version: String,
}

#[derive(Deserialize)]
struct Asked {
    /// `?user=jason` signs in as jason.
    user: Option<String>,
}

pub(crate) async fn run(start: Start) -> Result<()> {
    let state = App { client: start.mesh.client(), version: start.version };
    let app = Router::new()
        .route("/", get(|| async { Redirect::to("/productpage") }))
        .route("/productpage", get(html))
        .route("/api/page", get(json))
        .with_state(state);
    start.mesh.serve(start.listener, app).service("productpage", PORT).await?;
    Ok(())
}

async fn json(
    State(app): State<App>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    peer: PeerIdentity,
) -> (axum::http::StatusCode, Json<Page>) {
    let page = assemble(&app, user_of(asked, &headers), &peer).await;
    let status = if page.errors.is_empty() { 200 } else { 502 };
    (axum::http::StatusCode::from_u16(status).unwrap_or_default(), Json(page))
}

async fn html(
    State(app): State<App>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    peer: PeerIdentity,
) -> (axum::http::StatusCode, Html<String>) {
    let page = assemble(&app, user_of(asked, &headers), &peer).await;
    let status = if page.errors.is_empty() { 200 } else { 502 };
    (axum::http::StatusCode::from_u16(status).unwrap_or_default(), Html(render(&page)))
}

fn user_of(asked: Asked, headers: &HeaderMap) -> Option<String> {
    let header = || headers.get("end-user").and_then(|value| value.to_str().ok()).map(str::to_owned);
    asked.user.filter(|user| !user.is_empty()).or_else(header)
}

async fn assemble(app: &App, user: Option<String>, peer: &PeerIdentity) -> Page {
    let who = user.as_deref();
    // `join!` stays on this task, so all three calls belong to the request being served.
    let (books, details, reviews) = tokio::join!(
        get_json::<Books>(&app.client, "http://webapp:9080/books", who),
        get_json::<Details>(&app.client, "http://details:9080/details/0", who),
        get_json::<Reviews>(&app.client, "http://reviews:9080/reviews/0", who),
    );
    let mut errors = Vec::new();
    let mut hops = vec![Hop::new("productpage", &app.version, peer)];
    let books = keep("webapp", books, &mut errors);
    let details = keep("details", details, &mut errors);
    let reviews = keep("reviews", reviews, &mut errors);
    hops.extend(books.iter().map(|found| found.hop.clone()));
    hops.extend(details.iter().map(|found| found.hop.clone()));
    hops.extend(reviews.iter().flat_map(|found| found.hops.clone()));
    Page { user, books, details, reviews, errors, hops }
}

fn keep<T>(service: &str, answer: Result<T>, errors: &mut Vec<String>) -> Option<T> {
    answer.map_err(|error| errors.push(format!("{service}: {error}"))).ok()
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2733}\
h1{margin-bottom:0}.by{color:#5b6b7b;margin-top:0}.card{border:1px solid #d5dde5;border-radius:8px;padding:.5rem 1rem;margin:1rem 0}\
.black{color:#1d2733}.red{color:#c62828}.stars{font-size:1.4rem;letter-spacing:.1em}.none{color:#8a98a6}\
table{border-collapse:collapse;width:100%;font-size:.85rem}td,th{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #e6ecf2}\
code{font-size:.8rem}.error{background:#fdecea;border-color:#f5c2be}nav a{margin-right:1rem}";

fn render(page: &Page) -> String {
    let mut out = String::new();
    let user = page.user.as_deref().map(escape);
    let _ = write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><title>The Comedy of Errors</title><style>{STYLE}</style>"
    );
    let _ = write!(
        out,
        "<nav><a href=/productpage>signed out</a><a href='/productpage?user=jason'>sign in as jason</a> {}</nav>",
        user.map(|user| format!("signed in as <b>{user}</b>")).unwrap_or_default()
    );
    out.push_str("<h1>The Comedy of Errors</h1>");
    if let Some(details) = &page.details {
        let _ = write!(out, "<p class=by>{}, {} · {} pages</p>", escape(&details.author), details.year, details.pages);
    }
    for error in &page.errors {
        let _ = write!(out, "<div class='card error'>{}</div>", escape(error));
    }
    if let Some(reviews) = &page.reviews {
        render_reviews(&mut out, reviews);
    }
    if let Some(books) = &page.books {
        let titles: Vec<_> = books.titles.iter().map(|title| escape(title)).collect();
        let _ = write!(out, "<p>Also here (webapp {}): {}</p>", escape(&books.hop.version), titles.join(" · "));
    }
    render_hops(&mut out, &page.hops);
    out.push_str("</html>");
    out
}

fn render_reviews(out: &mut String, reviews: &Reviews) {
    let version = reviews.hops.first().map_or("?", |hop| hop.version.as_str());
    let _ = write!(out, "<h2>Reviews <small>({})</small></h2>", escape(version));
    for review in &reviews.reviews {
        let stars = match (&reviews.colour, review.stars) {
            (Some(colour), Some(n)) => {
                let n = usize::from(n.min(5));
                format!("<div class='stars {}'>{}{}</div>", escape(colour), "★".repeat(n), "☆".repeat(5 - n))
            }
            (Some(_), None) => "<div class=none>ratings are unavailable</div>".to_owned(),
            (None, _) => "<div class=none>no stars in this version</div>".to_owned(),
        };
        let _ = write!(
            out,
            "<div class=card><p>{}</p>{stars}<p class=by>{}</p></div>",
            escape(&review.text),
            escape(&review.reviewer)
        );
    }
}

fn render_hops(out: &mut String, hops: &[Hop]) {
    out.push_str("<h2>The way of this request</h2><table><tr><th>service<th>version<th>process<th>called by (verified)<th>trace</tr>");
    for hop in hops {
        let caller = hop.caller.as_deref().unwrap_or("plaintext: not in the mesh");
        let trace = hop.trace.as_deref().unwrap_or("-");
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td><code>{}</code><td><code>{}</code></tr>",
            escape(&hop.service),
            escape(&hop.version),
            hop.process,
            escape(caller),
            escape(trace)
        );
    }
    out.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
