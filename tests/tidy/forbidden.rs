//! What may be written nowhere, or only in certain files: notes to self, paths of somebody's machine,
//! spawned tasks without an owner, sleeping tests.

use crate::assert_tidy;
use crate::tree::{File, repository};

// In pieces, so that this file is not its own finding.
const NOTES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("HA", "CK")];
const MACHINE_PATHS: &[&str] =
    &[concat!("/tm", "p/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")];
const UNFINISHED: &[&str] = &["todo", "unimplemented"];

/// Not ours to word.
const FOREIGN: &[&str] = &["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];
/// Files that own what they spawn: the handle lives beside it and aborts on drop.
const SPAWNERS: &[&str] = &["worker.rs", "runtime.rs", "main.rs"];

fn words(file: &File) -> Vec<String> {
    if FOREIGN.contains(&file.path.as_str()) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let note = NOTES.iter().find(|note| stands_alone(line, note));
        let path = MACHINE_PATHS.iter().find(|path| begins_a_path(line, path));
        for word in note.into_iter().chain(path) {
            findings.push(format!("{}:{}: {word}", file.path, number + 1));
        }
    }
    let tokens = file.rust.iter().flat_map(|rust| {
        UNFINISHED.iter().flat_map(|name| rust.lines_with(&[name, "!"]).into_iter().map(move |line| (line, name)))
    });
    findings.extend(tokens.map(|(line, name)| format!("{}:{line}: {name}!", file.path)));
    findings
}

fn stands_alone(line: &str, word: &str) -> bool {
    let part_of_a_word = |neighbour: Option<char>| neighbour.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !part_of_a_word(before) && !part_of_a_word(after)
    })
}

/// Whether the path stands at the beginning of a path: `target/x/` is not the machine's `/x/`.
fn begins_a_path(line: &str, path: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || "._-}*>".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].chars().next_back().is_some_and(goes_on))
}

fn spawns(file: &File, tree: &[File]) -> Vec<String> {
    let outside_the_product = ["tests/", "examples/", "benches/", "xtask/"];
    let Some(rust) = &file.rust else { return Vec::new() };
    if outside_the_product.iter().any(|folder| file.path.starts_with(folder))
        || SPAWNERS.contains(&file.name())
        || file.is_test(tree)
    {
        return Vec::new();
    }
    let mut lines = rust.lines_with(&[".", "spawn", "("]);
    for module in ["tokio", "task", "thread"] {
        lines.extend(rust.lines_with(&[module, ":", ":", "spawn", "("]));
        let import = format!("{module}::spawn");
        lines.extend(rust.imports.iter().filter(|(path, _)| path.ends_with(&import)).map(|(_, line)| *line));
    }
    lines.retain(|line| !rust.is_test_line(*line));
    lines.iter().map(|line| format!("{}:{line}: spawns", file.path)).collect()
}

fn sleeps(file: &File, tree: &[File]) -> Vec<String> {
    let Some(rust) = &file.rust else { return Vec::new() };
    // The one place that may: it refuses unless the clock is paused.
    if file.path == "tests/kit/src/clock.rs" {
        return Vec::new();
    }
    let whole_file = file.is_test(tree);
    let lines = rust.lines_with(&["sleep", "("]).into_iter().filter(|line| whole_file || rust.is_test_line(*line));
    lines.map(|line| format!("{}:{line}: sleeps", file.path)).collect()
}

#[test]
fn no_notes_to_self_and_no_machine_paths() {
    let found: Vec<_> = repository().iter().flat_map(words).collect();
    assert_tidy(&found, "Finish it or open an issue; name paths relative to the repository or as arguments.");
}

#[test]
fn only_owners_spawn() {
    let tree = repository();
    let found: Vec<_> = tree.iter().flat_map(|file| spawns(file, tree)).collect();
    assert_tidy(&found, "Spawn in worker.rs or runtime.rs, through a handle that aborts on drop.");
}

#[test]
fn tests_wait_for_values_and_do_not_sleep() {
    let tree = repository();
    let found: Vec<_> = tree.iter().flat_map(|file| sleeps(file, tree)).collect();
    assert_tidy(&found, "Wait for the value, or pause the clock and use mesh_testkit::clock::pass.");
}

#[test]
fn forbidden_words_are_found() {
    let count = |path: &str, text: &str| words(&File::new(path, text)).len();
    for word in NOTES.iter().chain(MACHINE_PATHS) {
        assert_eq!(count("a.md", &format!("see {word}")), 1, "{word}");
        assert_eq!(count("a.rs", &format!("//! `{word}x`")), usize::from(word.starts_with('/')), "{word} in a word");
        assert_eq!(count("LICENSE-MIT", word), 0);
    }
    assert_eq!(count("a.md", &format!("target{}file", MACHINE_PATHS[0])), 0);
    assert_eq!(count("a.rs", "fn f() { todo!() }"), 1);
    assert_eq!(count("a.rs", "fn f() { unimplemented!(\"later\") } // todo!() in a comment"), 1);
}

#[test]
fn spawns_without_an_owner_are_found() {
    let count = |path: &str, text: &str| spawns(&File::new(path, text), &[]).len();
    let bad = "fn f() { tokio::spawn(a); handle.spawn(b); c::select! { _ = d => task::spawn(e) } }";
    assert_eq!(count("mesh-client/src/pool.rs", bad), 3);
    assert_eq!(count("src/cli/config.rs", bad), 3);
    for owner in ["mesh-client/src/worker.rs", "src/runtime.rs", "src/main.rs", "examples/a.rs", "tests/kit/src/x.rs"] {
        assert_eq!(count(owner, bad), 0, "{owner}");
    }
    assert_eq!(count("mesh-client/src/pool.rs", &format!("#[cfg(test)] mod tests {{ {bad} }}")), 0);
    assert_eq!(count("mesh-client/src/pool.rs", "use tokio::{spawn, sync};"), 1);
    assert_eq!(count("mesh-client/src/pool.rs", "// tokio::spawn(a)\nfn spawn() { worker::spawn(b) }"), 0);
}

#[test]
fn sleeping_tests_are_found() {
    let count = |path: &str, text: &str| sleeps(&File::new(path, text), &[]).len();
    let bad = "async fn f() { tokio::time::sleep(a).await; std::thread::sleep(b); }";
    for path in ["tests/product/main.rs", "mesh-client/tests/pool.rs", "mesh-client/src/pool/tests.rs"] {
        assert_eq!(count(path, bad), 2, "{path}");
    }
    assert_eq!(count("mesh-client/src/pool.rs", bad), 0, "not a test");
    assert_eq!(count("mesh-client/src/pool.rs", &format!("#[cfg(test)] mod tests {{ {bad} }}")), 2);
    assert_eq!(count("tests/product/main.rs", "async fn f() { tokio::time::advance(a).await }"), 0);
}
