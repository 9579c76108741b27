//! Steps about where requests go and who sends them.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;

use super::{count, page, page_at, reviews_version, wait_for};
use crate::apps::Result;
use crate::apps::productpage::Page;
use crate::fleet::Fleet;
use crate::http_get;
use crate::report::Observed;

/// Requests sent at once when many are sent.
const AT_ONCE: usize = 8;

/// Every process answers through the mesh.
pub(crate) async fn everything_up(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    // Jason's page needs all of productpage, webapp, details, reviews v2 and ratings.
    let first = wait_for("a complete page", || async {
        let page = page(fleet, Some("jason")).await?;
        Ok((page.hops.len() == 5).then_some(page))
    })
    .await?;
    wait_for("both versions of webapp", || async {
        let versions: BTreeSet<_> = pages(fleet, 20).await?.iter().filter_map(webapp_version).collect();
        Ok((versions.len() == 2).then_some(()))
    })
    .await?;
    seen.note("processes", fleet.apps.len() + 1);
    seen.note("services_in_one_page", first.hops.len());
    Ok(seen)
}

/// (a) Everybody gets reviews v1; `end-user: jason` gets v2.
pub(crate) async fn header_routing(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    let everybody = pages(fleet, 50).await?;
    let mut jason = Vec::new();
    for _ in 0..50 {
        jason.push(page(fleet, Some("jason")).await?);
    }
    let everybody = count(everybody.iter().map(reviews_version));
    let jason = count(jason.iter().map(reviews_version));
    seen.expect("50 of 50 anonymous requests got v1", everybody.get("v1") == Some(&50));
    seen.expect("50 of 50 requests of jason got v2", jason.get("v2") == Some(&50));
    seen.note("everybody", json!(everybody));
    seen.note("jason", json!(jason));
    Ok(seen)
}

/// (b) A TrafficSplit of 900m to 100m over 1,000 requests.
pub(crate) async fn traffic_split(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    let pages = pages(fleet, 1000).await?;
    let counts = count(pages.iter().filter_map(|page| page.books.as_ref()).map(|books| books.hop.version.as_str()));
    let v2 = counts.get("v2").copied().unwrap_or_default();
    // Binomial with n = 1000, p = 0.1 has a deviation of 9.5: 45 away happens once in 400,000 walks.
    seen.expect("v2 got 100 of 1,000, give or take 45", v2.abs_diff(100) <= 45);
    seen.expect("all 1,000 were answered", counts.values().sum::<usize>() == 1000);
    seen.note("webapp", json!(counts));
    Ok(seen)
}

/// (e) Who called whom, and a plaintext caller refused.
pub(crate) async fn identities(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    let page = page(fleet, Some("jason")).await?;
    let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/bookinfo-{account}");
    let expected = [
        ("productpage", None),
        ("webapp", Some(id("productpage"))),
        ("details", Some(id("productpage"))),
        ("reviews", Some(id("productpage"))),
        ("ratings", Some(id("reviews"))),
    ];
    for (service, caller) in expected {
        let hop = page.hops.iter().find(|hop| hop.service == service);
        seen.expect(
            &format!("{service} saw the caller {}", caller.as_deref().unwrap_or("without identity")),
            hop.is_some_and(|hop| hop.caller == caller),
        );
    }
    let calls: Vec<_> = page
        .hops
        .iter()
        .map(|hop| format!("{} → {}", hop.caller.as_deref().unwrap_or("plaintext browser"), hop.service))
        .collect();
    seen.note("calls", calls);
    let traces: BTreeSet<_> = page.hops.iter().filter_map(|hop| hop.trace.as_deref()).collect();
    seen.expect("one trace through all hops", traces.len() == 1);

    let reviews = fleet.find("reviews", "v1").ok_or("no reviews process")?.ready.address;
    // A process that took the place of a killed one closes connections until its policy is there: that
    // is no refusal of plaintext, so an answer is waited for.
    let refusal = wait_for("an answer to plaintext on the strict port", || async {
        let (status, body) = http_get::get(reviews, "/reviews/0", None).await?;
        Ok(Some(format!("{status} {}", String::from_utf8_lossy(&body).trim())))
    })
    .await?;
    seen.expect("the strict port refused plaintext", refusal.starts_with("403 MESH-2001"));
    seen.note("plaintext_to_strict_port", refusal);
    // The control of that check: the permissive port takes the same plaintext.
    seen.expect("the permissive port took plaintext", http_get::get(fleet.page(), "/api/page", None).await?.0 == 200);
    Ok(seen)
}

/// `n` pages for nobody in particular.
async fn pages(fleet: &Fleet, n: usize) -> Result<Vec<Page>> {
    let address = fleet.page();
    stream::iter(0..n).map(|_| page_at(address, None)).buffer_unordered(AT_ONCE).try_collect().await
}

fn webapp_version(page: &Page) -> Option<String> {
    page.books.as_ref().map(|books| books.hop.version.clone())
}
