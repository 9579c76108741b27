//! [`FileSet`]: the last good content of each file of a directory, read anew on demand.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Manifests, ObjectKey, ParsedFile, parse_file, unreadable};
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
}

#[derive(Debug)]
struct Entry {
    fingerprint: u64,
    /// The newest content that parsed, with the findings of the newest content.
    content: ParsedFile,
}

impl FileSet {
    /// A set that has read nothing yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, limits: Limits) -> Self {
        Self { paths: paths.into_iter().collect(), limits, files: BTreeMap::new(), in_force: HashMap::new() }
    }

    /// Reads what changed and gives everything. A file that is no longer there is gone; one that no
    /// longer parses keeps its last good documents and is reported.
    pub fn read(&mut self) -> Manifests {
        let mut problems = Vec::new();
        let mut found = Vec::new();
        let mut complete = true;
        for path in self.paths.clone() {
            if let Err(error) = self.list(&path, &mut found) {
                complete = false;
                let message = format!("cannot be read: {error}; what was read before stays");
                problems.push(Finding::about_file(Severity::Error, &display(&path), 0, message));
            }
        }
        if found.len() > self.limits.files {
            let message = format!("{} files; only the first {} are read", found.len(), self.limits.files);
            problems.push(Finding::about_file(Severity::Error, &display(&found[self.limits.files]), 0, message));
            found.truncate(self.limits.files);
        }
        if complete {
            self.files.retain(|path, _| found.contains(path));
        }
        for path in found {
            self.refresh(path);
        }
        let mut manifests = Manifests::join(self.files.values().map(|entry| &entry.content), &self.in_force);
        self.in_force = manifests.places();
        manifests.findings.splice(0..0, problems);
        manifests
    }

    fn list(&self, path: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        if !fs::metadata(path)?.is_dir() {
            found.push(path.to_owned());
            return Ok(());
        }
        let mut inside = Vec::new();
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            let manifest = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
            // Follows symbolic links: a mounted ConfigMap consists of them.
            if manifest && fs::metadata(&file).is_ok_and(|m| m.is_file()) {
                inside.push(file);
            }
        }
        inside.sort();
        found.append(&mut inside);
        Ok(())
    }

    fn refresh(&mut self, path: PathBuf) {
        let name = display(&path);
        let (fingerprint, parsed) = match read_bounded(&path, &self.limits) {
            Ok(text) => {
                let fingerprint = hash(&text);
                if self.files.get(&path).is_some_and(|entry| entry.fingerprint == fingerprint) {
                    return;
                }
                (fingerprint, parse_file(&name, &text, &self.limits))
            }
            Err(message) => (0, unreadable(&name, 0, message)),
        };
        let content = match self.files.remove(&path) {
            Some(last) if parsed.unreadable && !last.content.documents.is_empty() => {
                let mut content = last.content;
                content.findings = parsed.findings;
                for finding in &mut content.findings {
                    finding.message.push_str("; the last good content of this file stays in force");
                }
                content
            }
            _ => parsed,
        };
        self.files.insert(path, Entry { fingerprint, content });
    }
}

fn read_bounded(path: &Path, limits: &Limits) -> Result<String, String> {
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
