//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.

/// Bytes as the answer of an HTTP/1.1 server: read here and by hyper.
///
/// # Panics
/// Another answer is read than hyper reads.
pub fn answer(bytes: &[u8]) {
    crate::connect::answer(bytes);
}

/// Plays the corpus of a target. `UPDATE_CORPUS=1` writes its seeds anew; what a fuzzer finds is added by hand and stays.
#[cfg(test)]
pub(crate) fn replay(target: &str, seeds: &[&[u8]], play: impl Fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::create_dir_all(&folder).expect("a folder");
        for (i, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{i}")), seed).expect("a file");
        }
    }
    let files = std::fs::read_dir(folder).expect("the corpus");
    let played = files.map(|file| play(&std::fs::read(file.expect("a file").path()).expect("a file"))).count();
    assert!(played >= seeds.len(), "{played} files");
}
