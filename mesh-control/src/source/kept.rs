//! The last good content of each manifest file, on disk: a file that breaks, or broke while nobody watched, does not
//! change traffic by a restart of the control plane.
//!
//! One JSON file for each manifest, written when its content is read and differs: the text, and the last good version of
//! each of its objects that are not valid. All of it can be lost; then a broken file counts as empty until it is mended,
//! and says so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::files::{is_file, read_bounded};
use super::{Document, Limits};
use crate::model::Model;
use crate::state_dir::{StateDir, StateError};

const DIRECTORY: &str = "manifests";
/// Most bytes of last good versions of one file: what is kept must fit into a file of the state directory.
const MAX_GOOD: usize = 3 << 20;

/// Where contents are kept.
#[derive(Debug)]
pub(crate) struct Kept(StateDir);

/// What is kept of one manifest file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// The manifest's path, in words; tells apart what has one name here.
    file: String,
    /// The newest text that could be read.
    pub(crate) text: String,
    /// The last good version of each object of `text` that is not valid, as JSON.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) good: Vec<String>,
}

impl Kept {
    /// Opens the place in a state directory, made where missing.
    pub(crate) fn open(state: &StateDir) -> Result<Self, StateError> {
        Ok(Self(StateDir::open(&state.directory(DIRECTORY)?)?))
    }

    /// What is kept of a file.
    ///
    /// # Errors
    /// What is kept cannot be read, in words for who looks after the manifest.
    pub(crate) fn load(&self, path: &Path) -> Result<Option<Content>, String> {
        let name = name(path);
        let unusable = |error: &dyn std::fmt::Display| {
            format!("what was kept of it before the restart cannot be used, and counts as nothing: {name}: {error}")
        };
        let Some(bytes) = self.0.read(&name).map_err(|error| unusable(&error))? else { return Ok(None) };
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| unusable(&error))?;
        Ok(Some(content).filter(|content| content.file == place(path).display().to_string()))
    }

    /// What the process before served, if the files say something else now.
    pub(crate) fn former(&self) -> Option<Model> {
        let names = fs::read_dir(self.0.path(".")).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let read = |name: &str| serde_json::from_slice::<Content>(&self.0.read(name).ok()??).ok();
        let mut contents: Vec<_> = names.filter_map(|name| read(name.to_str()?)).collect();
        contents.sort_unstable_by(|a, b| a.file.cmp(&b.file));
        let limits = Limits::default();
        let differs = |content: &Content| {
            is_file(Path::new(&content.file)).is_err()
                || read_bounded(Path::new(&content.file), &limits).ok().is_none_or(|text| text != content.text)
        };
        if !contents.iter().any(differs) {
            return None;
        }
        // First what is in force: of one object the first counts.
        let texts = contents
            .iter()
            .flat_map(|content| content.good.iter().chain([&content.text]).map(|text| (&*content.file, &**text)));
        Some(Model::from_texts(texts))
    }

    /// Keeps a text that was read, and what is in force in the place of its objects that are not valid.
    pub(crate) fn store(&self, path: &Path, text: String, stale: &[Arc<Document>]) {
        let mut bytes = 0;
        let versions = stale.iter().filter_map(|document| serde_json::to_string(&document.node).ok());
        let good: Vec<_> = versions
            .take_while(|json| {
                bytes += json.len();
                bytes <= MAX_GOOD
            })
            .collect();
        if good.len() < stale.len() {
            tracing::warn!(file = %path.display(), "too much that is no longer valid: not all of what is in force is kept for a restart");
        }
        let next = Content { file: place(path).display().to_string(), text, good };
        if self.load(path).unwrap_or_default().as_ref() == Some(&next) {
            return;
        }
        let json = serde_json::to_vec(&next).expect("text is always JSON");
        if let Err(error) = self.0.write_in_time(&name(path), &json) {
            tracing::warn!(%error, file = %path.display(), "what this manifest says cannot be kept for a restart");
        }
    }

    /// Forgets all files but these.
    pub(crate) fn retain<'a>(&self, paths: impl IntoIterator<Item = &'a PathBuf>) {
        let names: BTreeSet<String> = paths.into_iter().map(|path| name(path)).collect();
        for entry in fs::read_dir(self.0.path(".")).into_iter().flatten().flatten() {
            if !names.contains(&*entry.file_name().to_string_lossy()) {
                // It is tried again at the next change.
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

/// Where a manifest is, however its path is spelled. Links are not followed: one that names another directory tomorrow
/// is the same manifest.
fn place(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The file name for a manifest: FNV-1a of its place. Whose two places meet has one of them kept.
fn name(path: &Path) -> String {
    let hash =
        place(path).as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}.json")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::source::{FileSet, directory};

    /// A directory with one manifest, and a state directory.
    struct Setup {
        manifests: TempDir,
        state: TempDir,
    }

    impl Setup {
        fn new() -> Self {
            Self { manifests: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() }
        }

        fn write(&self, text: &str) {
            fs::write(self.manifests.path().join("a.yaml"), text).unwrap();
        }

        /// A control plane starts, reads, and is gone.
        fn read(&self) -> std::sync::Arc<Model> {
            let kept = Kept::open(&StateDir::open(self.state.path()).unwrap()).unwrap();
            directory::watch_and_keep(self.manifests.path(), Limits::default(), kept).unwrap().model().load_full()
        }

        fn files(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.state.path().join(DIRECTORY)).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn rule(name: &str, timeout: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{hosts: [{name}], http: [{{timeout: {timeout}, route: [{{destination: {{host: {name}}}}}]}}]}}\n---\n"
        )
    }

    /// Each rule with its timeout in seconds.
    fn rules(model: &Model) -> Vec<(&str, u64)> {
        let rules = model.virtual_services.values();
        rules.map(|rule| (rule.name(), rule.spec.http[0].timeout.unwrap().as_secs())).collect()
    }

    fn lines(model: &Model) -> Vec<String> {
        model.findings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_that_breaks_while_nobody_watches_keeps_its_content() {
        let setup = Setup::new();
        setup.write(&rule("a", "1s"));
        assert_eq!(rules(&setup.read()), [("a", 1)]);
        // Twice: the broken text must not take the place of what is kept.
        for _ in 0..2 {
            setup.write("a: [");
            let model = setup.read();
            assert_eq!(rules(&model), [("a", 1)]);
            let told = "; the last good content of this file, kept from before the restart, stays in force";
            assert!(lines(&model).len() == 1 && lines(&model)[0].ends_with(told), "{:?}", lines(&model));
        }
        // The control: who keeps nothing has nothing.
        let forgetful = directory::watch(setup.manifests.path(), Limits::default()).unwrap();
        assert!(rules(&forgetful.model().load()).is_empty());

        setup.write(&rule("a", "2s"));
        assert_eq!((rules(&setup.read()), lines(&setup.read()).len()), (vec![("a", 2)], 0));
    }

    #[test]
    fn what_was_served_before_is_known_if_it_is_something_else() {
        let setup = Setup::new();
        let former = || Kept::open(&StateDir::open(setup.state.path()).unwrap()).unwrap().former();
        assert!(former().is_none(), "nothing was");
        setup.write(&(rule("a", "1s") + &rule("b", "1s")));
        setup.read();
        assert!(former().is_none(), "the same");
        setup.write(&(rule("a", "1x") + &rule("b", "2s")));
        assert_eq!(rules(&former().unwrap()), [("a", 1), ("b", 1)]);
        // Of what is not valid the version in force was served.
        setup.read();
        setup.write(&rule("c", "1s"));
        assert_eq!(rules(&former().unwrap()), [("a", 1), ("b", 2)]);
        fs::remove_file(setup.manifests.path().join("a.yaml")).unwrap();
        assert_eq!(rules(&former().unwrap()), [("a", 1), ("b", 2)]);
    }

    #[test]
    fn an_object_that_is_not_valid_keeps_its_last_good_version_over_restarts() {
        let setup = Setup::new();
        setup.write(&(rule("a", "1s") + &rule("b", "1s")));
        setup.read();
        // One is wrong, then the other goes on, then the whole file is no YAML.
        for (text, b) in [
            (rule("a", "1x") + &rule("b", "1s"), 1),
            (rule("a", "1x") + &rule("b", "2s"), 2),
            ("a: [".to_owned(), 2),
            (rule("a", "1y") + &rule("b", "3s"), 3),
        ] {
            setup.write(&text);
            for _ in 0..2 {
                let model = setup.read();
                assert_eq!(rules(&model), [("a", 1), ("b", b)], "{text}");
                assert!(lines(&model).iter().any(|line| line.contains("stays in force")), "{text}");
            }
        }
        // What is good again is what counts from then on.
        setup.write(&(rule("a", "4s") + &rule("b", "4s")));
        setup.read();
        setup.write(&rule("a", "1x"));
        assert_eq!(rules(&setup.read()), [("a", 4)]);
    }

    /// What a control plane that goes on running has in force after each text, and what one that starts then has.
    fn after(texts: &[String]) -> [Vec<(String, u64)>; 2] {
        let setup = Setup::new();
        let kept = Kept::open(&StateDir::open(setup.state.path()).unwrap()).unwrap();
        let mut files = FileSet::new([setup.manifests.path().to_owned()], Limits::default()).kept_in(kept);
        let mut model = Model::default();
        for text in texts {
            setup.write(text);
            model = Model::build(&files.read(), Some(&model));
            files.keep(model.stale());
        }
        let owned = |model: &Model| rules(model).into_iter().map(|(name, time)| (name.to_owned(), time)).collect();
        [owned(&model), owned(&setup.read())]
    }

    #[test]
    fn a_restart_has_the_versions_in_force_that_the_running_one_had() {
        let [bad_a, bad_b, bad_c] = ["a", "b", "c"].map(|name| rule(name, "1x"));
        let ok = |name: &str, seconds: u64| rule(name, &format!("{seconds}s"));
        for (texts, in_force) in [
            // One has never been good, the other goes on and breaks late.
            (
                vec![
                    bad_a.clone() + &ok("b", 1),
                    bad_a.clone() + &ok("b", 2),
                    bad_a.clone() + &ok("b", 3),
                    bad_a.clone() + &bad_b,
                ],
                vec![("b", 3)],
            ),
            // One that came while another was broken.
            (vec![ok("a", 1), bad_a.clone() + &ok("b", 1), bad_a.clone() + &bad_b], vec![("a", 1), ("b", 1)]),
            // One that was deleted meanwhile and comes again broken.
            (vec![ok("a", 1) + &ok("c", 1), bad_c.clone(), bad_a.clone() + &bad_c], vec![("c", 1)]),
            // The control: all mended.
            (vec![ok("a", 1), bad_a.clone(), ok("a", 2)], vec![("a", 2)]),
        ] {
            let [running, restarted] = after(&texts);
            let running: Vec<_> = running.iter().map(|(name, time)| (name.as_str(), *time)).collect();
            let restarted: Vec<_> = restarted.iter().map(|(name, time)| (name.as_str(), *time)).collect();
            assert_eq!((&running, &restarted), (&in_force, &in_force), "{texts:#?}");
        }
    }

    #[test]
    fn what_is_kept_of_an_object_is_the_same_value_again() {
        let text = "kind: A\nmetadata: {name: a}\nspec: {a: 'no', b: \"x\\n\\u0001\\u00e9\", c: [1, -2, 1.5, true, null, '12'], d: 18446744073709551615, '1': {}}\napiVersion: v1\n";
        let read = |text: &str| crate::source::parse_file(&"a".into(), text, &Limits::default()).documents.remove(0);
        let (first, again) = (read(text), read(&serde_json::to_string(&read(text).node).unwrap()));
        let json = |document: &Document| serde_json::to_string(&document.node).unwrap();
        assert_eq!(json(&again), json(&first));
        assert_eq!((again.key(), again.node.get("spec").unwrap().get("a").unwrap().text()), (first.key(), Some("no")));
    }

    #[test]
    fn a_manifest_is_one_however_its_path_is_spelled() {
        let here = std::env::current_dir().unwrap();
        let [plain, dotted, whole] = [PathBuf::from("m/a.yaml"), PathBuf::from("./m/a.yaml"), here.join("m/a.yaml")];
        assert_eq!([name(&plain), name(&dotted)], [name(&whole), name(&whole)]);
        let state = tempfile::tempdir().unwrap();
        let kept = Kept::open(&StateDir::open(state.path()).unwrap()).unwrap();
        kept.store(&plain, "text".to_owned(), &[]);
        assert_eq!(kept.load(&whole).unwrap().unwrap().text, "text");
        // The control: another file is another.
        assert!(kept.load(&here.join("n/a.yaml")).unwrap().is_none());
    }

    #[test]
    fn a_file_that_was_deleted_while_nobody_watched_is_gone() {
        let setup = Setup::new();
        setup.write(&rule("a", "1s"));
        setup.read();
        assert_eq!(setup.files().len(), 1);
        fs::remove_file(setup.manifests.path().join("a.yaml")).unwrap();
        assert!(rules(&setup.read()).is_empty() && setup.files().is_empty());
        setup.write("a: [");
        assert!(rules(&setup.read()).is_empty());
    }

    #[test]
    fn what_is_kept_is_its_owners_alone_and_counts_as_nothing_when_damaged() {
        let setup = Setup::new();
        setup.write(&rule("a", "1s"));
        setup.read();
        let files = setup.files();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let whole = fs::read(&files[0]).unwrap();
        fs::write(&files[0], &whole[..whole.len() / 2]).unwrap();
        setup.write("a: [");
        let model = setup.read();
        assert!(rules(&model).is_empty());
        assert!(lines(&model).iter().any(|line| line.contains("cannot be used, and counts as nothing")), "{model:?}");
        // The control: whole again it is used.
        fs::write(&files[0], &whole).unwrap();
        assert_eq!(rules(&setup.read()), [("a", 1)]);
    }
}
