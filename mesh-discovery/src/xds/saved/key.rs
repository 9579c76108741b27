//! The key by which this node knows its own snapshot: 32 bytes at random in a file that nobody else may read or write.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

const BYTES: usize = 32;

/// The key in the file, which is made where it is missing. `us` is the user whose it may be, besides root.
pub(super) fn open(path: &Path, us: Option<u32>) -> Result<hmac::Key, String> {
    let found = match read(path, us)? {
        Some(found) => found,
        // A hard link fails where a rename would replace.
        None => make(path, us, |from, to| fs::hard_link(from, to))?,
    };
    if found.len() != BYTES {
        return Err(format!("it has {} bytes and not {BYTES}; remove it, and a new one is made", found.len()));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &found))
}

fn make(
    path: &Path,
    us: Option<u32>,
    link: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut fresh = Zeroizing::new(vec![0; BYTES]);
    SystemRandom::new().fill(&mut fresh).map_err(|_| "no random numbers".to_owned())?;
    // Under another name until it is whole: who comes at the same time, or after a crash, finds all of it or nothing.
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    // One of a process that had this number before.
    let _ = fs::remove_file(&beside);
    let written = write_new(&beside, &fresh).and_then(|()| match link(&beside, path) {
        // No links on SMB, FAT and what some programs serve: it is written in its place, where a crash may leave a part, which
        // is told of.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => write_new(path, &fresh),
        linked => linked,
    });
    let _ = fs::remove_file(&beside);
    match written {
        Ok(()) => Ok(fresh),
        // Another process of this node was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read(path, us)?.ok_or_else(|| "it comes and goes".to_owned())
        }
        Err(error) => Err(format!("it cannot be made: {error}")),
    }
}

/// One that could not be written whole is not left there.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn read(path: &Path, us: Option<u32>) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    let Some((bytes, metadata)) = super::read(path, us)? else { return Ok(None) };
    let bytes = Zeroizing::new(bytes);
    refuse_readable(&metadata)?;
    Ok(Some(bytes))
}

/// Who can read it can write a snapshot that is obeyed.
#[cfg(unix)]
fn refuse_readable(found: &fs::Metadata) -> Result<(), String> {
    let mode = std::os::unix::fs::MetadataExt::mode(found) & 0o777;
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(format!("others than its owner may read it (mode {mode:03o}): chmod 600, or remove it")),
    }
}

#[cfg(not(unix))]
fn refuse_readable(_: &fs::Metadata) -> Result<(), String> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_one_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.key");
        let us = super::super::own_user();
        let tag = |key: hmac::Key| hmac::sign(&key, b"x").as_ref().to_vec();
        let first = tag(open(&path, us).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing lies beside it");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(tag(open(&path, us).unwrap()), first, "the same after a restart");
        for mode in [0o640, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = open(&path, us).unwrap_err();
            assert!(refused.contains("chmod 600"), "{mode:o}: {refused}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(tag(open(&path, us).unwrap()), first, "control");
        assert!(open(&folder.path().join("no/such/folder"), us).unwrap_err().contains("cannot be made"));
    }

    #[test]
    fn a_key_is_made_once_also_where_there_are_no_hard_links() {
        let us = super::super::own_user();
        let none = |_: &Path, _: &Path| Err(io::Error::from(io::ErrorKind::Unsupported));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.key");
        let first = make(&path, us, none).unwrap();
        assert_eq!(fs::read(&path).unwrap(), *first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // Who made one at the same time takes the one that is there.
        assert_eq!(*make(&path, us, none).unwrap(), *first);
        assert_eq!(*make(&path, us, |from, to| fs::hard_link(from, to)).unwrap(), *first, "the control");
        // One of this number that crashed left it.
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&beside, b"x").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(make(&path, us, none).unwrap().len(), BYTES);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing lies beside it");
        // Cut off by a crash.
        fs::write(&path, b"x").unwrap();
        assert!(open(&path, us).unwrap_err().contains("remove it"));
    }
}
