//! Live reload of a directory, with real files.

// Helpers of tests; clippy's own exception only reaches the test functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use mesh_control::model::Model;
use mesh_control::source::{Limits, directory};
use mesh_control::translate::{NodeScope, World};

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: {port}}}]}}\n"
    )
}

fn has(model: &Model, dialled: &str) -> bool {
    World::build(model, &[]).listener(&NodeScope::namespace("default"), dialled).is_some()
}

fn errors(model: &Model) -> usize {
    model.findings().iter().filter(|finding| finding.severity == mesh_control::finding::Severity::Error).count()
}

#[tokio::test]
async fn changes_are_seen_and_bad_ones_keep_the_last_good_version() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.yaml");
    fs::write(&file, service("shop", "80")).unwrap();
    let watched = directory::watch(dir.path(), Limits::default()).unwrap();
    let mut model = watched.model();
    assert!(has(&model.load(), "shop:80"));

    // A text that is no YAML: the file's last good content stays, and is reported.
    fs::write(&file, "apiVersion: [").unwrap();
    let seen = model.wait_for(|model| errors(model) == 1).await;
    assert!(has(&seen, "shop:80"));

    // An object that is not valid: its last good version stays, its neighbour is taken.
    fs::write(&file, format!("{}---\n{}", service("shop", "99999"), service("cart", "81"))).unwrap();
    let seen = model.wait_for(|model| has(model, "cart:81")).await;
    assert!(has(&seen, "shop:80"));
    assert_eq!(errors(&seen), 1);
    let line = seen.findings().iter().map(ToString::to_string).find(|line| line.contains("error")).unwrap();
    assert!(line.contains("Service default/shop spec.ports[0].port: 99999 is not a port"), "{line}");
    assert!(line.ends_with("the last good version of this object stays in force"), "{line}");

    // An editor's rename.
    let other = dir.path().join(".shop.yaml.tmp");
    fs::write(&other, service("shop", "82")).unwrap();
    fs::rename(&other, &file).unwrap();
    let seen = model.wait_for(|model| has(model, "shop:82")).await;
    assert!(!has(&seen, "cart:81") && errors(&seen) == 0);

    fs::remove_file(&file).unwrap();
    model.wait_for(|model| !has(model, "shop:82")).await;
}

#[tokio::test]
async fn a_deeply_nested_file_is_a_finding_when_it_is_written_and_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), service("shop", "80")).unwrap();
    let deep = |levels: usize| (0..levels).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
    let watched = directory::watch(dir.path(), Limits::default()).unwrap();
    let mut model = watched.model();
    for (levels, message) in
        [(63, "not a Kubernetes object"), (65, "nested more than 64 levels deep"), (2000, "nested more than 64")]
    {
        fs::write(dir.path().join("deep.yaml"), deep(levels)).unwrap();
        let says = |model: &Model| model.findings().iter().any(|finding| finding.message.contains(message));
        let seen = model.wait_for(|model| says(model)).await;
        assert!(has(&seen, "shop:80"));
        let again = directory::watch(dir.path(), Limits::default()).unwrap().model();
        assert!(says(&again.load()) && has(&again.load(), "shop:80"), "{levels}");
        fs::remove_file(dir.path().join("deep.yaml")).unwrap();
        model.wait_for(|model| errors(model) == 0).await;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_swapped_link() {
    fn generation(dir: &Path, name: &str, text: &str) {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("shop.yaml"), text).unwrap();
    }
    use std::os::unix::fs::symlink;

    let dir = tempfile::tempdir().unwrap();
    generation(dir.path(), "..1", &service("shop", "80"));
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/shop.yaml", dir.path().join("shop.yaml")).unwrap();
    let watched = directory::watch(dir.path(), Limits::default()).unwrap();
    let mut model = watched.model();
    assert!(has(&model.load(), "shop:80"));

    generation(dir.path(), "..2", &service("shop", "81"));
    symlink("..2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    model.wait_for(|model| has(model, "shop:81")).await;
}

#[test]
fn a_directory_that_does_not_exist_is_an_error_that_names_it() {
    let error = directory::watch(Path::new("/nonexistent/manifests"), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/manifests"), "{error}");
}
