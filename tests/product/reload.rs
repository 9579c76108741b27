//! Manifests decide, live: an edit changes the answers, a mistake changes nothing and is told once.

use mesh::Mesh;
use mesh::parts::mesh_core::error::{Code, Fault};
use serde_json::Value;

use crate::support::{Plane, Running, becomes, call, eventually, plain_get};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: reviews }
spec: { selector: { app: reviews }, ports: [{ name: http, port: 9080 }] }
";

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: reviews }
spec:
  host: reviews
  subsets:
  - { name: v1, labels: { version: v1 } }
  - { name: v2, labels: { version: v2 } }
";

/// jason sees v2, everybody else `others`.
fn routes(others: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: reviews }}
spec:
  hosts: [reviews]
  http:
  - match: [{{ headers: {{ end-user: {{ exact: jason }} }} }}]
    route: [{{ destination: {{ host: reviews, subset: v2 }} }}]
  - route: [{{ destination: {{ host: reviews, subset: {others} }} }}]
"
    )
}

const REVIEWS: &str = "http://reviews:9080/reviews/0";
const JASON: &[(&str, &str)] = &[("end-user", "jason")];

/// Two versions of reviews, routed by header, and somebody who calls them.
struct Town {
    plane: Plane,
    caller: Mesh,
    _servers: [Running; 2],
}

impl Town {
    async fn settled() -> Self {
        let plane = Plane::start().await;
        plane.write("service.yaml", SERVICE);
        let servers = [
            plane.answering("reviews", "version=v1", "v1").await,
            plane.answering("reviews", "version=v2", "v2").await,
        ];
        plane.write("subsets.yaml", SUBSETS);
        plane.write("routes.yaml", routes("v1"));
        let caller = plane.caller("productpage").await;
        let town = Self { plane, caller, _servers: servers };
        // Balancing alone could give the right answers, but not that many.
        eventually("requests are routed by header", || async { town.wrong().await.is_none().then_some(()) }).await;
        town.plane.no_findings().await;
        town
    }

    /// The first of many answers that is not as `routes("v1")` says.
    async fn wrong(&self) -> Option<String> {
        for _ in 0..10 {
            for (headers, want) in [(JASON, "v2"), (&[][..], "v1")] {
                match call(&self.caller, REVIEWS, headers).await {
                    Ok((status, text)) if status == 200 && text == want => {}
                    other => return Some(format!("{headers:?} {other:?}")),
                }
            }
        }
        None
    }

    async fn is_unchanged(&self, during: &str) {
        assert_eq!(self.wrong().await, None, "{during}");
        assert_eq!(plain_get(self.plane.debug(), "/healthz").await.unwrap().0, 200, "{during}");
    }

    /// The one finding.
    async fn finding(&self, about: &str) -> Value {
        let what = format!("a finding about {about}");
        let mut findings = eventually(&what, || async {
            let findings = self.plane.findings().await;
            (!findings.is_empty()).then_some(findings)
        })
        .await;
        assert_eq!(findings.len(), 1, "{about}: {findings:#?}");
        findings.remove(0)
    }
}

#[tokio::test]
async fn an_edit_takes_effect_without_a_restart() {
    let town = Town::settled().await;
    town.plane.write("routes.yaml", routes("v2"));
    becomes(&town.caller, REVIEWS, &[], "v2").await;
    town.plane.write("routes.yaml", routes("v1"));
    becomes(&town.caller, REVIEWS, &[], "v1").await;
    town.is_unchanged("after the edit and back").await;
}

/// A bad manifest and what must be said about it.
struct Bad {
    name: &'static str,
    text: String,
    /// `Kind name field`, as far as the mistake is in an object.
    place: [&'static str; 3],
    /// Line, from 1; 0 = about the whole file.
    line: u64,
    says: &'static str,
}

/// A VirtualService of its own whose fifth line is `mistake`.
fn extra(mistake: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: extra }}
spec: {{ hosts: ['*.extra.example'], http: [{{
{mistake}
}}]}}
"
    )
}

fn alias_bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    text
}

fn bad() -> Vec<Bad> {
    let virtual_service = |field| ["VirtualService", "extra", field];
    let case = |name, text: String, place, line, says| Bad { name, text, place, line, says };
    vec![
        case("unparsable", "apiVersion: v1\nkind: [Service\nmetadata: {".into(), ["", "", ""], 3, "YAML"),
        case(
            "an unknown kind",
            "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: { name: extra }\n".into(),
            ["VirtualServise", "extra", "kind"],
            2,
            "did you mean VirtualService?",
        ),
        case(
            "an unknown field",
            extra("route: [{ destination: { host: reviews } }], timeuot: 3s"),
            virtual_service("spec.http[0].timeuot"),
            5,
            "did you mean timeout?",
        ),
        case(
            "a weight out of range",
            extra("route: [{ destination: { host: reviews }, weight: -1 }]"),
            virtual_service("spec.http[0].route[0].weight"),
            5,
            "negative",
        ),
        case(
            "a missing subset",
            extra("route: [{ destination: { host: reviews, subset: v9 } }]"),
            virtual_service("spec.http[0].route[0].destination.subset"),
            5,
            "v9",
        ),
        case(
            "an unknown host",
            extra("route: [{ destination: { host: nobody } }]"),
            virtual_service("spec.http[0].route[0].destination.host"),
            5,
            "nobody",
        ),
        case(
            "a second object of one name",
            routes("v2"),
            ["VirtualService", "reviews", "metadata.name"],
            4,
            "routes.yaml",
        ),
        case("20 MB", "# much ado about nothing\n".repeat(800_000), ["", "", ""], 0, "bytes"),
        case("an alias bomb", alias_bomb(), ["", "", ""], 5, "YAML"),
    ]
}

#[tokio::test]
async fn each_mistake_is_told_once_with_its_place_and_changes_nothing() {
    let town = Town::settled().await;
    for Bad { name, text, place, line, says } in bad() {
        // Last in the order of files: of two objects with one name the first holds.
        town.plane.write("zz.yaml", text);
        let finding = town.finding(name).await;
        town.is_unchanged(name).await;
        assert!(finding["file"].as_str().unwrap().ends_with("zz.yaml"), "{name}: {finding:#}");
        let found = ["kind", "name", "field"].map(|key| finding[key].as_str().unwrap());
        assert_eq!(found, place, "{name}: {finding:#}");
        if line > 0 {
            assert_eq!(finding["line"], line, "{name}: {finding:#}");
        }
        assert!(finding["message"].as_str().unwrap().contains(says), "{name}: {finding:#}");

        town.plane.write("zz.yaml", extra("route: [{ destination: { host: reviews } }]"));
        town.plane.no_findings().await;
    }
    town.is_unchanged("all repaired").await;
}

#[tokio::test]
async fn a_good_manifest_that_breaks_keeps_its_last_good_version() {
    let town = Town::settled().await;
    let invalid = routes("v2").replacen("subset: v2 }", "subset: v2 }, weight: -1", 1);
    let unparsable = routes("v2").replace("http:", "http: [");
    for (name, text) in [("an invalid edit", invalid), ("an unparsable edit", unparsable)] {
        town.plane.write("routes.yaml", text);
        let finding = town.finding(name).await;
        assert!(finding["file"].as_str().unwrap().ends_with("routes.yaml"), "{name}: {finding:#}");
        town.is_unchanged(name).await;
        town.plane.write("routes.yaml", routes("v1"));
        town.plane.no_findings().await;
        town.is_unchanged(name).await;
    }
}

#[tokio::test]
async fn an_edit_that_names_something_missing_waits_for_it() {
    let town = Town::settled().await;
    for (name, text) in [
        ("a missing subset", routes("v9")),
        ("an unknown host", routes("v1").replace("host: reviews, subset: v1", "host: nobody")),
    ] {
        town.plane.write("routes.yaml", text);
        let finding = town.finding(name).await;
        assert!(finding["message"].as_str().unwrap().contains("stays in force"), "{name}: {finding:#}");
        town.is_unchanged(name).await;
        // Whoever asks anew would wait in vain for what is missing.
        becomes(&town.plane.caller("newcomer").await, REVIEWS, &[], "v1").await;
        town.plane.write("routes.yaml", routes("v1"));
        town.plane.no_findings().await;
    }
    town.plane.write("routes.yaml", routes("v9"));
    town.finding("a missing subset").await;
    let renamed = SUBSETS.replace("name: v2,", "name: v9,");
    town.plane.write("subsets.yaml", format!("{SUBSETS}  - {{ name: v9, labels: {{ version: v2 }} }}\n"));
    becomes(&town.caller, REVIEWS, &[], "v2").await;
    town.plane.no_findings().await;

    // The other way round: jason's route still uses the subset that its rule no longer has.
    town.plane.write("routes.yaml", routes("v1"));
    becomes(&town.caller, REVIEWS, &[], "v1").await;
    town.plane.write("subsets.yaml", renamed);
    let finding = town.finding("a subset that is still used").await;
    assert_eq!(
        (&finding["kind"], &finding["field"]),
        (&"DestinationRule".into(), &"spec.subsets".into()),
        "{finding:#}"
    );
    town.is_unchanged("a subset that is still used").await;
    becomes(&town.plane.caller("newcomer").await, REVIEWS, JASON, "v2").await;
}

#[tokio::test]
async fn a_route_that_was_never_good_fails_alone_and_says_why() {
    let plane = Plane::start().await;
    plane.write("service.yaml", SERVICE);
    let _server = plane.answering("reviews", "version=v1", "v1").await;
    plane.write("subsets.yaml", SUBSETS);
    plane.write("routes.yaml", routes("v1").replace("subset: v2", "subset: v9"));
    let told = |finding: &Value| finding["message"].as_str().is_some_and(|message| message.contains("\"v9\""));
    eventually("it is told", || async { plane.findings().await.iter().any(told).then_some(()) }).await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "v1").await;
    let error = call(&caller, REVIEWS, JASON).await.unwrap_err();
    assert_eq!(error.code(), Code::NO_CLUSTER, "{error}");
    assert!(error.to_string().contains("outbound|9080|v9|reviews.default.svc.cluster.local"), "{error}");
}
