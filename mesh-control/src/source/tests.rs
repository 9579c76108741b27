//! Bad files: one clear message each, and what was good stays.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_core::suggest::nearest;

use super::decode::{Why, decode};
use super::node::Node;
use super::*;

fn read(text: &str) -> Manifests {
    Manifests::from_texts([("a.yaml", text)])
}

fn lines(manifests: &Manifests) -> Vec<String> {
    manifests.findings.iter().map(ToString::to_string).collect()
}

#[test]
fn broken_yaml_is_one_finding_with_its_line() {
    let manifests = read("kind: Service\nmetadata:\n  name: [a\nspec: {}\n");
    assert!(manifests.is_empty());
    let lines = lines(&manifests);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("a.yaml:") && lines[0].contains("error: not usable YAML"), "{lines:?}");
    assert!(manifests.findings[0].line >= 3, "{lines:?}");
}

#[test]
fn documents_have_lines_and_lists_are_expanded() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: b}\n- apiVersion: v1\n  kind: Service\n  metadata: {name: c, namespace: x}\n";
    let manifests = read(text);
    assert_eq!(lines(&manifests), [""; 0]);
    let found: Vec<_> = manifests.documents.iter().map(|d| (d.name.as_str(), d.namespace.as_str(), d.line)).collect();
    assert_eq!(found, [("a", "default", 1), ("b", "default", 9), ("c", "x", 12)]);
}

#[test]
fn objects_without_a_kind_or_a_name_are_refused() {
    let manifests = read("a: 1\n---\napiVersion: v1\nkind: Service\nmetadata: {}\n---\n- 1\n");
    assert_eq!(
        lines(&manifests),
        [
            "a.yaml:1: error: not a Kubernetes object: apiVersion and kind are needed",
            "a.yaml:5: error: Service default/(no name) metadata.name: the object has no name: set metadata.name",
            "a.yaml:7: error: not a Kubernetes object: apiVersion and kind are needed",
        ]
    );
}

#[test]
fn s91_names_that_kubernetes_would_not_take_are_refused() {
    let told = |group: &str, name: &str, namespace: &str| {
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let (name, namespace) = (quoted(name), quoted(namespace));
        let metadata = format!("metadata: {{name: {name}, namespace: {namespace}}}");
        let manifests = read(&format!("apiVersion: {group}v1\nkind: Service\n{metadata}\n"));
        let [finding] = &manifests.findings[..] else { return (manifests.len(), String::new()) };
        assert_eq!(finding.to_string().lines().count(), 1, "{finding}");
        (manifests.len(), finding.field.clone())
    };
    let long = "a".repeat(254);
    let forged = "x\n2026-11-28T00:00:00Z  INFO mesh::audit: policy changed";
    for name in [forged, "x\u{1b}[2J", "a b", "A", "a/b", "a..b", ".a", "-a", "a-", "a_b", "a:b", "\u{e9}", &long] {
        assert_eq!(told("", name, "shop"), (0, "metadata.name".to_owned()), "{name:?}");
        assert_eq!(told("", "a", name), (0, "metadata.namespace".to_owned()), "{name:?}");
    }
    for namespace in ["a.b", &long[..64]] {
        assert_eq!(told("", "a", namespace), (0, "metadata.namespace".to_owned()), "{namespace:?}");
    }
    assert_eq!(told("rbac.authorization.k8s.io/", forged, "shop"), (0, "metadata.name".to_owned()));
    // The control: what the Kubernetes API takes, and the names of its roles.
    for name in ["a", "0", "reviews.default.svc.cluster.local", "a--b", &long[..253]] {
        assert_eq!(told("", name, "shop"), (1, String::new()), "{name:?}");
    }
    assert_eq!(told("", "a", &long[..63]), (1, String::new()));
    assert_eq!(told("rbac.authorization.k8s.io/", "system:node_Reader", "shop"), (1, String::new()));
    // What stood in the file stays, as where a name is missing: which object it was nobody can tell.
    assert!(
        parse_file(&"a.yaml".into(), "{apiVersion: v1, kind: Service, metadata: {name: A}}", &Limits::default())
            .unreadable
    );
}

#[test]
fn names_that_yaml_takes_for_numbers_are_told_as_such() {
    let manifests = read(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: 5\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: true}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  labels:\n    app: a\n    version: 1\n",
    );
    assert_eq!(
        lines(&manifests),
        [
            "a.yaml:4: error: metadata.name: text is needed, not 5; put it in quotes",
            "a.yaml:8: error: metadata.namespace: text is needed, not true; put it in quotes",
            "a.yaml:16: warning: Service default/a metadata.labels.version: ignored: text is needed, not 1; put it in quotes",
        ]
    );
    // The control: the label that is text counts.
    assert_eq!(manifests.documents[0].labels.keys().collect::<Vec<_>>(), ["app"]);
}

#[test]
fn the_later_of_two_equal_names_is_an_error_and_groups_keep_kinds_apart() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let manifests = Manifests::from_texts([("1.yaml", service), ("2.yaml", service)]);
    assert_eq!(manifests.len(), 1);
    let line = &lines(&manifests)[0];
    assert!(line.starts_with("2.yaml:3: error: Service default/a metadata.name: defined before at 1.yaml:1"), "{line}");

    let two = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";
    assert_eq!(read(two).len(), 2);
}

#[test]
fn s90_an_alias_bomb_is_refused_quickly() {
    let told = |levels: usize| {
        let mut text = String::from(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n",
        );
        for i in 1..levels {
            let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        lines(&read(&text))
    };
    let lines = told(12);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("not usable YAML: anchors and aliases stand for more than"), "{lines:?}");
    assert_eq!(told(2), [""; 0], "the control");
}

#[test]
fn a_few_aliases_are_fine() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: &l {app: a}, annotations: *l}\n";
    let manifests = read(text);
    assert_eq!(lines(&manifests), [""; 0]);
    assert_eq!(manifests.documents[0].annotations["app"], "a");
}

#[test]
fn s90_deep_nesting_and_too_many_documents_are_refused() {
    let deep = |depth: usize| {
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        lines(&read(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\na: {nested}")))
    };
    assert!(deep(500)[0].contains("not usable YAML"));
    assert_eq!(deep(50), [""; 0], "the control");
    let many = |count: usize| {
        let one = |i| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a-{i}}}\n---\n");
        read(&(0..count).map(one).collect::<String>())
    };
    let manifests = many(1100);
    assert_eq!((manifests.len(), manifests.findings.len()), (0, 1), "{:?}", lines(&manifests));
    assert!(lines(&manifests)[0].ends_with("more than 1000 documents in one file; split it"));
    assert_eq!(many(900).len(), 900, "the control");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}", "- {}\n".repeat(5));
    let limits = Limits { documents: 3, ..Limits::default() };
    let parsed = parse_file(&"a.yaml".into(), &list, &limits);
    assert!(!parsed.findings.is_empty());
}

/// A level a line would make block mappings of so many levels a file of gigabytes: theirs are those of keys.
#[test]
fn s90_a_hundred_thousand_levels_are_refused_in_every_form_of_yaml() {
    type Form = (&'static str, fn(usize) -> String);
    let forms: [Form; 7] = [
        ("flow sequences", |levels| format!("{}x{}", "[".repeat(levels), "]".repeat(levels))),
        ("flow mappings", |levels| format!("{}x{}", "{a: ".repeat(levels), "}".repeat(levels))),
        ("block sequences", |levels| format!("\n  {}x", "- ".repeat(levels))),
        ("tags", |levels| format!("{}x{}", "!!seq [".repeat(levels), "]".repeat(levels))),
        ("anchors", |levels| {
            let anchored: String = (0..levels).map(|level| format!("&a{level} [")).collect();
            format!("{anchored}x{}", "]".repeat(levels))
        }),
        ("what nobody closes", |levels| "[".repeat(levels)),
        ("block mappings", |levels| format!("\n  {}x", "? ".repeat(levels))),
    ];
    for (form, nested) in forms {
        let file = |levels| lines(&read(&format!("{}a: {}\n", service("a"), nested(levels))));
        let deep = file(100_000);
        assert!(deep.len() == 1 && deep[0].contains("not usable YAML"), "{form}: {deep:?}");
        if !["what nobody closes", "block mappings"].contains(&form) {
            assert!(deep[0].ends_with("nested more than 64 levels deep"), "{form}: {deep:?}");
            assert_eq!(file(20), [""; 0], "{form}: the control");
        }
    }
}

#[test]
fn lists_count_as_documents() {
    let item = "- {apiVersion: v1, kind: Service, metadata: {name: NAME}}\n";
    let items: String = (0..5).map(|i| item.replace("NAME", &format!("s{i}"))).collect();
    let limits = Limits { documents: 3, ..Limits::default() };
    let parsed = parse_file(&"a.yaml".into(), &format!("apiVersion: v1\nkind: List\nitems:\n{items}"), &limits);
    assert!(parsed.unreadable && parsed.documents.is_empty());
    assert!(parsed.findings[0].message.contains("more than 3 objects"), "{:?}", parsed.findings);
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
struct Spec {
    max_retries: Option<u16>,
    inner: Option<Box<Spec>>,
    list: Option<Vec<Spec>>,
    size: Option<u64>,
    shift: Option<i64>,
}

fn node(text: &str) -> Node {
    super::yaml::parse(text, 1).unwrap().remove(0)
}

#[test]
fn unknown_fields_have_a_path_and_the_nearest_name() {
    let node = node("inner: {list: [{maxRetrys: 1}]}\nzzz: 1\n");
    let (_, unknown) = decode::<Spec>(&node, "spec").unwrap();
    let found: Vec<_> = unknown.iter().map(|field| (field.path.as_str(), &field.why)).collect();
    let slip = Why::Unknown(Some("maxRetries"));
    assert_eq!(found, [("spec.zzz", &Why::Unknown(None)), ("spec.inner.list[0].maxRetrys", &slip)]);
}

#[test]
fn wrong_types_and_ranges_name_their_path() {
    for (text, path, message) in [
        (
            "inner: {maxRetries: 70000}",
            "spec.inner.maxRetries",
            "70000 is out of range: a whole number from 0 to 65535 is needed",
        ),
        (
            "inner: {maxRetries: many}",
            "spec.inner.maxRetries",
            "a whole number from 0 to 65535 is needed, not the text \"many\"",
        ),
        ("list: {a: 1}", "spec.list", "a list is needed, not a mapping"),
        (
            "list: [{maxRetries: -1}]",
            "spec.list[0].maxRetries",
            "-1 is out of range: a whole number from 0 to 65535 is needed",
        ),
        ("inner: 5", "spec.inner", "a mapping of fields is needed, not 5"),
        // Nor are the items of a list taken for the fields, in order.
        ("inner: [5]", "spec.inner", "a mapping of fields is needed, not a list"),
        ("list: [[5]]", "spec.list[0]", "a mapping of fields is needed, not a list"),
    ] {
        let error = decode::<Spec>(&node(text), "spec").unwrap_err();
        assert_eq!((error.path.as_str(), error.message.as_str()), (path, message), "{text}");
    }
}

/// As protobuf's JSON writes those of 64 bits.
#[test]
fn whole_numbers_may_be_in_quotes() {
    let read =
        |text: &str| decode::<Spec>(&node(text), "spec").map(|(spec, _)| (spec.max_retries, spec.size, spec.shift));
    let quoted = "maxRetries: '3'\nsize: '18446744073709551615'\nshift: '-9223372036854775808'";
    assert_eq!(read(quoted).unwrap(), (Some(3), Some(u64::MAX), Some(i64::MIN)));
    assert_eq!(read(&quoted.replace('\'', "")).unwrap(), read(quoted).unwrap(), "the control");
    assert_eq!(read("size: '1024'").unwrap(), (None, Some(1024), None));
    for (text, message) in [
        (
            "size: '18446744073709551616'",
            "a whole number, not negative, is needed, not the text \"18446744073709551616\"",
        ),
        ("size: '-1'", "-1 is out of range: a whole number, not negative, is needed"),
        ("shift: '9223372036854775808'", "9223372036854775808 is out of range: a whole number is needed"),
        ("size: '1.5'", "a whole number, not negative, is needed, not the text \"1.5\""),
        ("size: ''", "a whole number, not negative, is needed, not the text \"\""),
    ] {
        assert_eq!(read(text).unwrap_err().message, message, "{text}");
    }
}

#[test]
fn null_counts_as_absent() {
    let (spec, unknown) = decode::<Spec>(&node("inner: null\nlist: ~\nmaxRetries: 3"), "spec").unwrap();
    assert!(unknown.is_empty() && spec.inner.is_none() && spec.max_retries == Some(3));
}

#[test]
fn lines_of_fields_are_found() {
    let node = node("a:\n  b:\n  - c: 1\n  - c: 2\n    d: 3\n");
    assert_eq!(node.line_of("a.b[1].d"), 5);
    assert_eq!(node.line_of("a.b[1].missing.deeper"), 4);
    assert_eq!(node.line_of("a.b[9]"), 3);
}

#[test]
fn nearest_names_are_slips_only() {
    assert_eq!(nearest("trafficpolicy", ["trafficPolicy", "subsets"]), Some("trafficPolicy"));
    assert_eq!(nearest("VirtualServise", ["VirtualService"]), Some("VirtualService"));
    assert_eq!(nearest("completelyElse", ["host", "subsets"]), None);
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n")
}

fn names(manifests: &Manifests) -> Vec<&str> {
    manifests.documents.iter().map(|document| document.name.as_str()).collect()
}

fn set(path: &Path) -> FileSet {
    FileSet::new([path.to_owned()], Limits::default())
}

#[test]
fn a_file_that_breaks_keeps_its_last_good_content_until_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    fs::write(dir.path().join("b.yml"), service("b")).unwrap();
    fs::write(dir.path().join("notes.txt"), "not a manifest").unwrap();
    let mut files = set(dir.path());
    assert_eq!(names(&files.read()), ["a", "b"]);

    fs::write(&file, "a: [").unwrap();
    let manifests = files.read();
    assert_eq!(names(&manifests), ["a", "b"]);
    assert_eq!(manifests.findings.len(), 1);
    assert!(manifests.findings[0].message.ends_with("the last good content of this file stays in force"));

    fs::write(&file, service("c")).unwrap();
    let manifests = files.read();
    assert_eq!((names(&manifests), manifests.findings.len()), (vec!["c", "b"], 0));

    fs::remove_file(&file).unwrap();
    assert_eq!(names(&files.read()), ["b"]);
}

#[test]
fn what_was_never_readable_since_the_start_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(dir.path().join("b.yaml"), service("b")).unwrap();
    for broken in ["a: [", "kind: Service", &format!("{}\n---\na: 1\n", service("a"))] {
        fs::write(&file, broken).unwrap();
        let mut files = set(dir.path());
        for _ in 0..2 {
            let manifests = files.read();
            assert!(matches!(&manifests.unread[..], [file] if file.ends_with("a.yaml")), "{broken}");
            assert!(
                lines(&manifests)
                    .iter()
                    .any(|line| line.contains("a.yaml") && line.contains("nobody knows what it guards"))
            );
        }
        // It is readable once, whatever becomes of it later.
        fs::write(&file, service("a")).unwrap();
        assert_eq!((files.read().unread.len(), files.read().findings.len()), (0, 0), "{broken}");
        fs::write(&file, broken).unwrap();
        assert!(files.read().unread.is_empty(), "{broken}");
        // What comes later has guarded nothing yet.
        fs::write(dir.path().join("c.yaml"), broken).unwrap();
        assert!(files.read().unread.is_empty(), "{broken}");
        fs::remove_file(dir.path().join("c.yaml")).unwrap();
    }
    // It is gone, on purpose; a directory may be in the same case.
    fs::write(&file, "a: [").unwrap();
    let mut files = set(dir.path());
    assert_eq!(files.read().unread.len(), 1);
    fs::remove_file(&file).unwrap();
    assert!(files.read().unread.is_empty());
    let mut files = set(&dir.path().join("later"));
    assert_eq!(files.read().unread.len(), 1);
    fs::create_dir(dir.path().join("later")).unwrap();
    assert!(files.read().unread.is_empty());
}

#[test]
fn beyond_the_limit_on_files_nothing_is_dropped_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "c"] {
        fs::write(dir.path().join(format!("{name}.yaml")), service(name)).unwrap();
    }
    let limits = || Limits { files: 2, ..Limits::default() };
    let mut files = FileSet::new([dir.path().to_owned()], limits());
    assert_eq!(names(&files.read()), ["b", "c"]);
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    fs::write(dir.path().join("c.yaml"), service("d")).unwrap();
    let manifests = files.read();
    assert_eq!(
        (names(&manifests), manifests.unread.len()),
        (vec!["b", "d"], 0),
        "known ones go before, and are followed"
    );
    assert!(lines(&manifests)[0].contains("3 files; only 2 are read"), "{:?}", lines(&manifests));
    // At the start nobody knows what those beyond say.
    let mut files = FileSet::new([dir.path().to_owned()], limits());
    assert!(matches!(&files.read().unread[..], [file] if file.ends_with("c.yaml")));
    // The control: within the limit what is gone is gone.
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    let manifests = files.read();
    assert_eq!((names(&manifests), manifests.unread.len()), (vec!["a", "d"], 0));
}

#[test]
fn s90_a_file_of_a_gibibyte_is_one_message_and_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    let mut files = set(dir.path());
    files.read();
    // Sparse: it takes no room, and if it were read it would be NUL bytes.
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 30).unwrap();
    let manifests = files.read();
    assert_eq!(names(&manifests), ["a"]);
    let lines = lines(&manifests);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("1073741824 bytes; a manifest file may have 4194304 at most"), "{lines:?}");
}

#[test]
fn a_file_that_is_not_text_is_one_message() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), [b'a', b':', 0xff]).unwrap();
    let manifests = set(dir.path()).read();
    assert!(lines(&manifests)[0].contains("not UTF-8 after byte 2"), "{:?}", lines(&manifests));
}

#[test]
fn a_file_is_being_written_until_it_has_rested() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let files = set(dir.path());
    assert!(!files.is_being_written());
    fs::write(&file, "").unwrap();
    assert!(files.is_being_written());
    let opened = fs::File::options().write(true).open(&file).unwrap();
    let written = opened.metadata().unwrap().modified().unwrap();
    opened.set_modified(written - Duration::from_secs(1)).unwrap();
    assert!(!files.is_being_written());
    // A clock that was set back makes nobody wait.
    opened.set_modified(written + Duration::from_secs(60)).unwrap();
    assert!(!files.is_being_written());
}

#[test]
fn a_directory_that_vanishes_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("a.yaml"), service("a")).unwrap();
    let mut files = set(&inner);
    files.read();
    fs::remove_dir_all(&inner).unwrap();
    let manifests = files.read();
    assert_eq!((names(&manifests), manifests.findings.len()), (vec!["a"], 1));
}

#[test]
fn a_copy_in_an_earlier_file_does_not_take_the_place_of_what_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.yaml"), service("a")).unwrap();
    let mut files = set(dir.path());
    files.read();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    let manifests = files.read();
    assert!(manifests.documents[0].file.ends_with("b.yaml") && manifests.len() == 1);
    let line = &lines(&manifests)[0];
    assert!(line.contains("a.yaml:3: error") && line.contains("b.yaml:1; this later one is ignored"), "{line}");
    // The control: once it is gone there the copy counts.
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    let manifests = files.read();
    assert!(manifests.documents[0].file.ends_with("a.yaml") && manifests.findings.is_empty());
}

#[test]
fn a_document_that_loses_its_name_or_kind_keeps_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let mut files = set(dir.path());
    for broken in [service("a").replace("name: a", "nam: a"), service("a").replace("kind", "knd")] {
        fs::write(&file, service("a")).unwrap();
        assert_eq!(names(&files.read()), ["a"]);
        fs::write(&file, broken).unwrap();
        let manifests = files.read();
        assert_eq!(names(&manifests), ["a"]);
        assert!(lines(&manifests)[0].ends_with("the last good content of this file stays in force"));
    }
}

#[cfg(unix)]
#[test]
fn what_has_the_name_of_a_manifest_and_is_no_file_is_one_finding() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("good.yaml"), service("good")).unwrap();
    fs::create_dir(at("dir.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("link.yaml")).unwrap();
    std::os::unix::fs::symlink("good.yaml", at("same.yaml.txt")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe.yml")).status().unwrap().success());
    let mut files = set(dir.path());
    let manifests = files.read();
    assert_eq!(names(&manifests), ["good"]);
    let found: Vec<_> = manifests
        .findings
        .iter()
        .map(|finding| (Path::new(&*finding.file).file_name().unwrap().to_str().unwrap(), finding.message.as_str()))
        .collect();
    let directory = "a directory by the name of a manifest; directories are not entered";
    let pipe = "neither a file nor a link to one; it was not read";
    // What is behind a link or a pipe may guard something, a directory does not.
    let unread = |said: &str| {
        format!(
            "{said}; nobody knows what it guards: until it is correct or removed no server that has no inbound policy yet is given one"
        )
    };
    let (link, pipe) = (unread("a link to nothing"), unread(pipe));
    assert_eq!(found, [("dir.yaml", directory), ("link.yaml", &*link), ("pipe.yml", &*pipe)]);

    // A link that breaks keeps what it led to.
    std::os::unix::fs::symlink("other", at("z.yaml")).unwrap();
    fs::write(at("other"), service("other")).unwrap();
    assert_eq!(names(&files.read()), ["good", "other"]);
    fs::remove_file(at("other")).unwrap();
    let manifests = files.read();
    assert_eq!(names(&manifests), ["good", "other"]);
    assert!(lines(&manifests)[3].ends_with("a link to nothing; the last good content of this file stays in force"));
}

#[test]
fn a_file_that_is_emptied_says_that_its_objects_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    let object = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let mut files = FileSet::new([folder.path().to_owned()], Limits::default());
    // The control: a file that never had anything is nobody's mistake.
    for (text, objects, said) in [
        ("", 0, ""),
        ("# nothing yet\n", 0, ""),
        (object, 1, ""),
        ("", 1, "is empty and had objects, 1: remove the file if they are to go; the last good content"),
        ("# nothing any more\n", 0, "warning: holds no object any more; those it had, 1,"),
        (object, 1, ""),
    ] {
        fs::write(&path, text).unwrap();
        let read = files.read();
        assert_eq!(read.len(), objects, "{text:?}");
        let lines = lines(&read);
        assert_eq!(lines.len(), usize::from(!said.is_empty()), "{lines:?}");
        assert!(lines.iter().all(|line| line.contains(said)), "{lines:?}");
    }
}

#[test]
fn files_that_are_all_gone_at_once_say_what_went_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let object = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n");
        fs::write(folder.path().join(format!("{name}.yaml")), object).unwrap();
    };
    let remove = |name: &str| fs::remove_file(folder.path().join(format!("{name}.yaml"))).unwrap();
    let mut files = FileSet::new([folder.path().to_owned()], Limits::default());
    assert_eq!(lines(&files.read()), [""; 0], "there was never anything");
    write("a");
    write("b");
    assert_eq!(lines(&files.read()), [""; 0]);
    remove("a");
    assert_eq!(lines(&files.read()), [""; 0], "one of two is somebody's wish");
    write("a");
    files.read();
    remove("a");
    remove("b");
    for _ in 0..2 {
        let lines = lines(&files.read());
        assert!(lines.len() == 1 && lines[0].contains("warning: all manifest files are gone, 2"), "{lines:?}");
        assert!(lines[0].contains("the 2 objects"), "{lines:?}");
    }
    write("a");
    assert_eq!(lines(&files.read()), [""; 0]);
}

#[test]
fn a_file_whose_name_ends_almost_as_a_manifests_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.YAML", "b.json", "c.yml.bak", "d.txt", "e.yml", "Yaml"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let mut files = FileSet::new([folder.path().to_owned()], Limits::default());
    let mut lines = lines(&files.read());
    lines.sort();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("a.YAML: warning: not read") && lines[1].contains("b.json: warning: not read"),
        "{lines:?}"
    );
}

#[test]
fn a_path_that_gave_no_object_and_no_error_is_known() {
    let home = tempfile::tempdir().unwrap();
    let [good, bad, other, empty] = ["good", "bad", "other", "empty"].map(|name| {
        let directory = home.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        directory
    });
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let file = good.join("a.yaml");
    std::fs::write(&file, text).unwrap();
    std::fs::write(bad.join("b.yaml"), "kind: [").unwrap();
    std::fs::write(other.join("c.json"), text).unwrap();
    std::fs::write(other.join("c.YAML"), text).unwrap();
    let paths = [&good, &file, &bad, &other, &empty];
    let manifests = FileSet::new(paths.map(Clone::clone), Limits::default()).read();
    assert_eq!(paths.map(|path| manifests.is_said_by(path)), [true, true, true, false, false]);
    assert!(!manifests.is_said_by(&home.path().join("goo")), "a part of a name is no path");
}
