//! The repository's files as git knows them: tracked ones, and new ones that are not ignored.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::rust::Rust;

/// A text file.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Set if it is a Rust file.
    pub(crate) rust: Option<Rust>,
}

impl File {
    /// Panics if a `.rs` file cannot be parsed: cargo would not take it either.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let rust = path.ends_with(".rs").then(|| Rust::parse(text).unwrap_or_else(|error| panic!("{path}: {error}")));
        Self { path: path.to_owned(), text: text.to_owned(), rust }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Whether the whole file is test code: an integration test, or a module behind `#[cfg(test)]`.
    /// The helpers of `tests/kit` are not.
    pub(crate) fn is_test(&self, tree: &[File]) -> bool {
        let in_tests = self.path.starts_with("tests/") || self.path.contains("/tests/");
        (in_tests && !self.path.starts_with("tests/kit/"))
            || self.name() == "tests.rs"
            || tree.iter().any(|parent| parent.declares_test_module(&self.path))
    }

    fn declares_test_module(&self, path: &str) -> bool {
        let Some(rust) = &self.rust else { return false };
        let folder = match self.path.strip_suffix(".rs") {
            Some(stem) if ["lib.rs", "main.rs", "mod.rs"].contains(&self.name()) => {
                stem.rsplit_once('/').map_or("", |(folder, _)| folder)
            }
            Some(stem) => stem,
            None => return false,
        };
        let declared =
            |name: &String| path == format!("{folder}/{name}.rs") || path == format!("{folder}/{name}/mod.rs");
        rust.test_modules.iter().any(declared)
    }
}

/// Every text file of the repository, read once.
pub(crate) fn repository() -> &'static [File] {
    static FILES: OnceLock<Vec<File>> = OnceLock::new();
    FILES.get_or_init(|| {
        let listed = Command::new("git")
            .current_dir(root())
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"])
            .output()
            .expect("git is needed to list the repository's files");
        assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let paths = String::from_utf8(listed.stdout).expect("file names are UTF-8");
        let read = |path: &str| {
            // A file deleted but not yet committed is listed and absent; a binary one is not text.
            let text = std::fs::read_to_string(root().join(path)).ok()?;
            Some(File::new(path, &text))
        };
        paths.split('\0').filter(|path| !path.is_empty()).filter_map(read).collect()
    })
}

/// The text of one file of the repository.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn test_code_is_told_from_the_rest() {
    let library = File::new("a/src/lib.rs", "#[cfg(test)] mod fakes; mod real;");
    let deeper = File::new("a/src/deep.rs", "#[cfg(test)] mod fakes;");
    let tree = [library, deeper];
    let is_test = |path: &str| File::new(path, "").is_test(&tree);
    for path in ["a/src/fakes.rs", "a/src/fakes/mod.rs", "a/src/deep/fakes.rs", "a/src/x/tests.rs", "tests/sim/main.rs"]
    {
        assert!(is_test(path), "{path}");
    }
    for path in ["a/src/real.rs", "a/src/other/fakes.rs", "tests/kit/src/lib.rs", "examples/bookinfo.rs"] {
        assert!(!is_test(path), "{path}");
    }
}

#[test]
fn the_repository_is_listed() {
    assert!(repository().iter().any(|file| file.path == "mesh-core/src/lib.rs"));
    assert!(!repository().iter().any(|file| file.path.starts_with("target/")));
}
