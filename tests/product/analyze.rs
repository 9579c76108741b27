//! `mesh analyze`: what the control plane says of manifests is said without one.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::by_hand::{MESH, Plane};
use crate::support::*;

const GOOD: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {ports: [{name: http, port: 9080}]}\n";
const HALF: &str = "apiVersion: v1\nkind: [";
const NO_ACTION: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: shut, namespace: \
                         shop}\nspec:\n  action: REFUSE\n  rules: [{}]\n";
const NOWHERE: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: \
                       [reviews]\n  http: [{route: [{destination: {host: reviews, subset: v9}}]}]\n";

fn analyze(arguments: &[&str], paths: &[&Path]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(MESH).arg("analyze").args(arguments).args(paths).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (status.code(), text(&stdout), text(&stderr))
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// In an order of their own.
fn sorted(findings: &Value) -> Vec<String> {
    let mut findings: Vec<_> = findings.as_array().unwrap().iter().map(Value::to_string).collect();
    findings.sort();
    findings
}

#[tokio::test]
async fn manifests_are_judged_without_a_control_plane_as_by_one() {
    let home = tempfile::tempdir().unwrap();
    let (manifests, state) = (home.path().join("manifests"), home.path().join("state"));
    let file = |name: &str, text: &str| {
        let path = manifests.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    std::fs::create_dir(&manifests).unwrap();
    let (good, shut) = (file("good.yaml", GOOD), file("shut.yaml", NO_ACTION));
    file("nowhere.yaml", NOWHERE);
    file("half.yaml", HALF);
    file("other.json", "{}");

    let (code, said, _) = analyze(&[], &[&good]);
    assert_eq!((code, said.as_str()), (Some(0), "objects: 1; errors: 0, warnings: 0, notes: 0\n"));
    let (code, said, _) = analyze(&[], &[&good, &shut]);
    assert!(code == Some(1) && said.contains("objects: 2; errors: 1"), "{said}");
    let line = format!("{}:5: error: AuthorizationPolicy shop/shut spec.action: ", shut.display());
    assert!(said.lines().any(|said| said.starts_with(&line)), "{said}");

    let (code, all, _) = analyze(&["-o", "json"], &[&manifests]);
    let all = parsed(&all);
    assert_eq!((code, &all["objects"]), (Some(1), &3.into()), "{all}");
    // File by file, and in each from its beginning: model and analysis found them in another order.
    let place = |finding: &Value| (finding["file"].to_string(), finding["line"].as_u64());
    assert!(all["findings"].as_array().unwrap().is_sorted_by_key(place), "{all}");
    let mut plane = Plane::start_with(&manifests, &state, &[]).await;
    let (_, findings) = plain_get(plane.debug, "/findings").await.unwrap();
    assert_eq!(sorted(&all["findings"]), sorted(&parsed(&findings)));
    for name in ["half.yaml", "shut.yaml", "nowhere.yaml", "other.json"] {
        assert!(findings.contains(name), "{name}: {findings}");
    }
    plane.process.kill().await.unwrap();

    // What is not there, or holds nothing, is not judged to be good.
    let [empty, other] = ["empty", "other"].map(|name| home.path().join(name));
    for directory in [&empty, &other] {
        std::fs::create_dir(directory).unwrap();
    }
    for name in ["a.json", "a.YAML"] {
        std::fs::write(other.join(name), GOOD).unwrap();
    }
    // A file that says nothing was read all the same; and of a directory a manifest that cannot be read is something to judge.
    let nothing = home.path().join("nothing.yaml");
    std::fs::write(&nothing, "# switched off\n").unwrap();
    let (code, said, _) = analyze(&[], &[&nothing]);
    assert_eq!((code, said.as_str()), (Some(0), "objects: 0; errors: 0, warnings: 0, notes: 0\n"));
    let unread = home.path().join("unread");
    std::fs::create_dir(&unread).unwrap();
    std::fs::write(unread.join("half.yaml"), HALF).unwrap();
    let (code, said, _) = analyze(&[], &[&unread]);
    assert!(code == Some(1) && said.contains("objects: 0; errors: 1"), "{said}");
    let nobody = home.path().join("nobody.yaml");
    for paths in [&[&*empty][..], &[&*nobody], &[&*other], &[&*good, &*empty], &[&*other, &*good]] {
        let (code, said, why) = analyze(&[], paths);
        assert!(code == Some(2) && said.is_empty() && !why.is_empty(), "{paths:?}: {said} {why}");
    }
}
