//! [`FileSet`]: the last good content of each file of a directory, read anew on demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::kept::Kept;
use super::{Document, Manifests, ObjectKey, ParsedFile, parse_file, unreadable};
use crate::finding::{Finding, Severity};

/// Bounds on what is read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Largest file, in bytes. A larger one is reported and not read. Default 4 MiB.
    pub file_bytes: u64,
    /// Most documents (and items of a `List`) of one file. Default 1000.
    pub documents: usize,
    /// Most files of a directory. Default 10,000.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 4 << 20, documents: 1000, files: 10_000 }
    }
}

impl Limits {
    pub(crate) fn too_large(&self, size: u64) -> String {
        format!("{size} bytes; a manifest file may have {} at most: it was not read, split it", self.file_bytes)
    }
}

/// The manifest files (`.yaml`, `.yml`) of some paths, each with its last good content.
///
/// A path may be a file or a directory. Directories are read flat: subdirectories are not entered.
#[derive(Debug)]
pub struct FileSet {
    paths: Vec<PathBuf>,
    limits: Limits,
    files: BTreeMap<PathBuf, Entry>,
    /// Which file has each object: a later copy in another file does not take its place.
    in_force: HashMap<ObjectKey, Arc<str>>,
    /// Where contents outlive a restart.
    kept: Option<Kept>,
    /// How many files and objects there were when there were some last, if all of them are gone.
    emptied: Option<(usize, usize)>,
    /// What was in force before the start, of files that changed or have objects that are not valid.
    before: Vec<ParsedFile>,
    /// Whether it was read before.
    begun: bool,
    /// What there was at the first reading and could never be read: nobody knows what it says, or said before.
    unread: BTreeSet<PathBuf>,
}

/// What is said of a file that could never be read.
const UNREAD: &str = "; nobody knows what it guards: until it is correct or removed no server that has no inbound policy yet is \
                      given one";

/// How long a file must have rested to be read when it changes.
pub(super) const REST: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Entry {
    fingerprint: u64,
    /// The text, until it is kept.
    fresh: Option<String>,
    /// The newest content that parsed, with the findings of the newest content.
    content: ParsedFile,
}

impl FileSet {
    /// A set that has read nothing yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, limits: Limits) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            limits,
            files: BTreeMap::new(),
            in_force: HashMap::new(),
            kept: None,
            emptied: None,
            before: Vec::new(),
            begun: false,
            unread: BTreeSet::new(),
        }
    }

    /// Takes up what an earlier process kept there, and keeps what is read.
    pub(crate) fn kept_in(mut self, kept: Kept) -> Self {
        self.kept = Some(kept);
        self
    }

    /// After the first reading: what was in force before the start, for objects that are no longer valid.
    pub(crate) fn before(&mut self) -> Manifests {
        Manifests::join(std::mem::take(&mut self.before).iter(), &HashMap::new())
    }

    /// After a reading: keeps what was new in it. `stale` is what is in force in the place of objects that are not valid.
    pub(crate) fn keep(&mut self, stale: &BTreeMap<Arc<str>, Vec<Arc<Document>>>) {
        let Some(kept) = &self.kept else { return };
        for (path, entry) in &mut self.files {
            if let Some(text) = entry.fresh.take() {
                kept.store(path, text, stale.get(&display(path)).map_or(&[], Vec::as_slice));
            }
        }
    }

    /// Reads what changed and gives everything. A file that is no longer there is gone; one that no
    /// longer parses keeps its last good documents and is reported.
    pub fn read(&mut self) -> Manifests {
        let mut problems = Vec::new();
        let mut found = Vec::new();
        let mut complete = true;
        // What is found in a directory that could not be listed before is found for the first time.
        let first =
            !std::mem::replace(&mut self.begun, true) || self.paths.iter().any(|path| self.unread.contains(path));
        for path in self.paths.clone() {
            let listed = self.list(&path, &mut found, &mut problems);
            self.note(first, path.clone(), listed.is_ok());
            if let Err(error) = listed {
                complete = false;
                let unread = if self.unread.contains(&path) { UNREAD } else { "" };
                let message = format!("cannot be read: {error}; what was read before stays{unread}");
                problems.push(Finding::about_file(Severity::Error, &display(&path), 0, message));
            }
        }
        if found.len() > self.limits.files {
            // None of those that are known is dropped for another one.
            found.sort_by_key(|path| !self.files.contains_key(path));
            let (all, most) = (found.len(), self.limits.files);
            let file = display(&found[most]);
            found.drain(most..).for_each(|path| self.note(first, path, false));
            let unread = if self.unread.is_empty() { "" } else { UNREAD };
            let message = format!(
                "{all} files; only {most} are read, and what was read before stays, of files that are gone too: divide them \
                 among directories, or join some{unread}"
            );
            problems.push(Finding::about_file(Severity::Error, &file, 0, message));
            complete = false;
        }
        if complete {
            let before = self.files.len();
            let objects: usize = self.files.values().map(|entry| entry.content.documents.len()).sum();
            if !found.is_empty() {
                self.emptied = None;
            } else if objects > 0 {
                self.emptied = Some((before, objects));
            }
            let there: BTreeSet<&PathBuf> = found.iter().collect();
            self.files.retain(|path, _| there.contains(path));
            self.unread.retain(|path| there.contains(path));
            if let Some(kept) = self.kept.as_ref().filter(|_| before == 0 || self.files.len() < before) {
                kept.retain(there);
            }
        }
        if let (Some((files, objects)), Some(path)) = (self.emptied, self.paths.first()) {
            let message = format!(
                "all manifest files are gone, {files}, and with them the {objects} objects that they held: nothing that \
                 they demanded or refused is demanded or refused any more"
            );
            problems.push(Finding::about_file(Severity::Warning, &display(path), 0, message));
        }
        for path in found {
            self.refresh(path, first);
        }
        let mut manifests = Manifests::join(self.files.values().map(|entry| &entry.content), &self.in_force);
        self.in_force = manifests.places();
        manifests.unread = self.unread.iter().map(|path| display(path)).collect();
        manifests.findings.splice(0..0, problems);
        manifests
    }

    fn list(&self, path: &Path, found: &mut Vec<PathBuf>, problems: &mut Vec<Finding>) -> io::Result<()> {
        if !fs::metadata(path)?.is_dir() {
            found.push(path.to_owned());
            return Ok(());
        }
        let mut inside = Vec::new();
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("yaml" | "yml") => inside.push(file),
                Some(other) if ["yaml", "yml", "json"].iter().any(|known| other.eq_ignore_ascii_case(known)) => {
                    let message = "not read: only files whose names end in .yaml or .yml are";
                    problems.push(Finding::about_file(Severity::Warning, &display(&file), 0, message));
                }
                _ => {}
            }
        }
        inside.sort();
        found.append(&mut inside);
        Ok(())
    }

    /// Whether some file changed less than [`REST`] ago: somebody may be writing it.
    ///
    /// Who writes a file in place empties it first, and what is read before the rest follows has lost objects.
    pub(crate) fn is_being_written(&self) -> bool {
        let mut found = Vec::new();
        for path in &self.paths {
            // What cannot be listed is told by the reading.
            let _ = self.list(path, &mut found, &mut Vec::new());
        }
        let changed = |path: &PathBuf| fs::metadata(path)?.modified();
        // A time that is yet to come says nothing.
        found.iter().filter_map(|path| changed(path).ok()?.elapsed().ok()).any(|age| age < REST)
    }

    /// Notes whether something could be read.
    fn note(&mut self, first: bool, path: PathBuf, good: bool) {
        if good {
            self.unread.remove(&path);
        } else if first {
            self.unread.insert(path);
        }
    }

    fn refresh(&mut self, path: PathBuf, first: bool) {
        let name = display(&path);
        // What a directory holds by a manifest's name must be a file (or a link to one: a mounted ConfigMap
        // consists of them). What is named itself may be a pipe.
        let read = match self.paths.contains(&path) {
            true => Ok(()),
            false => is_file(&path),
        };
        let read = read.and_then(|()| read_bounded(&path, &self.limits));
        let fingerprint = read.as_ref().map_or(0, |text| hash(text));
        if fingerprint != 0 && self.files.get(&path).is_some_and(|entry| entry.fingerprint == fingerprint) {
            return;
        }
        let mut parsed = match &read {
            Ok(text) => parse_file(&name, text, &self.limits),
            Err(message) => unreadable(&name, 0, message.clone()),
        };
        let (last, when) = match self.files.remove(&path) {
            Some(entry) => (entry.content, ""),
            None => (self.take_up(&path, &name, read.as_ref().ok(), &mut parsed), ", kept from before the restart,"),
        };
        if !parsed.unreadable && parsed.documents.is_empty() && !last.documents.is_empty() {
            let n = last.documents.len();
            if read.as_ref().is_ok_and(String::is_empty) {
                // A full disk, or a writer that died, leaves this of a file; nobody means it.
                let message = format!("is empty and had objects, {n}: remove the file if they are to go");
                parsed = unreadable(&name, 0, message);
            } else {
                // Most often half an edit, or a template that gave nothing.
                let message = format!(
                    "holds no object any more; those it had, {n}, are deleted: remove the file if that is meant"
                );
                parsed.findings.push(Finding::about_file(Severity::Warning, &name, 0, message));
            }
        }
        let fresh = read.ok().filter(|_| self.kept.is_some() && !parsed.unreadable);
        // A directory says nothing, whatever its name.
        self.note(first && !path.is_dir(), path.clone(), !(parsed.unreadable && last.documents.is_empty()));
        if self.unread.contains(&path) {
            parsed.findings.iter_mut().for_each(|finding| finding.message.push_str(UNREAD));
        }
        let content = if parsed.unreadable && !last.documents.is_empty() {
            for finding in &mut parsed.findings {
                finding.message.push_str(&format!("; the last good content of this file{when} stays in force"));
            }
            ParsedFile { documents: last.documents, ..parsed }
        } else {
            parsed
        };
        self.files.insert(path, Entry { fingerprint, fresh, content });
    }

    /// What an earlier process kept of a file that is seen for the first time.
    fn take_up(&mut self, path: &Path, name: &Arc<str>, now: Option<&String>, parsed: &mut ParsedFile) -> ParsedFile {
        let content = match self.kept.as_ref().map(|kept| kept.load(path)) {
            None | Some(Ok(None)) => return ParsedFile::default(),
            Some(Ok(Some(content))) => content,
            Some(Err(message)) => {
                parsed.findings.push(Finding::about_file(Severity::Warning, name, 0, message));
                return ParsedFile::default();
            }
        };
        let changed = now.is_none_or(|now| *now != content.text);
        let last = if changed { parse_file(name, &content.text, &self.limits) } else { ParsedFile::default() };
        // First, for of one object the first counts: the text's is not valid.
        self.before.extend(content.good.iter().map(|good| parse_file(name, good, &self.limits)));
        self.before.push(last.clone());
        last
    }
}

/// Opening a pipe would wait for its writer.
pub(super) fn is_file(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(found) if found.is_dir() => Err("a directory by the name of a manifest; directories are not entered".into()),
        Ok(_) => Err("neither a file nor a link to one; it was not read".into()),
        Err(_) if path.is_symlink() => Err("a link to nothing".into()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

pub(super) fn read_bounded(path: &Path, limits: &Limits) -> Result<String, String> {
    use std::io::Read;

    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let file = fs::File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    if size > limits.file_bytes {
        return Err(limits.too_large(size));
    }
    // The file may grow between the question and the reading.
    let mut bytes = Vec::new();
    file.take(limits.file_bytes + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > limits.file_bytes {
        return Err(limits.too_large(bytes.len() as u64));
    }
    String::from_utf8(bytes).map_err(|error| format!("not UTF-8 after byte {}", error.utf8_error().valid_up_to()))
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    // 0 stands for "could not be read".
    hasher.finish().max(1)
}

fn display(path: &Path) -> Arc<str> {
    path.display().to_string().into()
}
