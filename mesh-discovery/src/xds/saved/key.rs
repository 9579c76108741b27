//! The key by which this node knows its own snapshot: 32 bytes at random in a file that nobody else may read or write.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

const BYTES: usize = 32;
/// How often, and after how long, one that is shorter is looked at again: another process may be writing it in its place.
const LOOKS: u32 = 50;
const MOMENT: Duration = Duration::from_millis(2);

/// The key in the file, which is made where it is missing. `us` is the user whose it may be, besides root.
pub(super) fn open(path: &Path, us: Option<u32>) -> Result<hmac::Key, String> {
    open_whole(path, us, || std::thread::sleep(MOMENT))
}

fn open_whole(path: &Path, us: Option<u32>, mut wait: impl FnMut()) -> Result<hmac::Key, String> {
    let mut looks = 1;
    let found = loop {
        let found = match read(path, us)? {
            Some(found) => found,
            // A hard link fails where a rename would replace.
            None => make(path, us, |from, to| fs::hard_link(from, to))?,
        };
        if found.len() >= BYTES || looks == LOOKS {
            break found;
        }
        looks += 1;
        wait();
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
    let beside = beside(path).map_err(|error| error.to_string())?;
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

/// Where something is written until it is whole. A name of its own: processes of containers that share the folder have the same
/// number.
pub(super) fn beside(path: &Path) -> io::Result<PathBuf> {
    let mut mark = [0; 8];
    SystemRandom::new().fill(&mut mark).map_err(|_| io::Error::other("no random numbers"))?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}.new", u64::from_ne_bytes(mark)));
    Ok(name.into())
}

/// One that could not be written whole is not left there.
pub(super) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
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
    use std::cell::{Cell, RefCell};
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
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing lies beside it");
        // Cut off by a crash.
        fs::write(&path, b"x").unwrap();
        assert!(open_whole(&path, us, || {}).unwrap_err().contains("remove it"));
    }

    #[test]
    fn processes_of_one_number_that_share_the_folder_agree_on_a_key() {
        let us = super::super::own_user();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.key");
        // Another one comes between what the first writes and where it puts it.
        let (other, names) = (Cell::new(None), RefCell::new(Vec::new()));
        let first = make(&path, us, |from, to| {
            let inner = make(&path, us, |from, to| {
                names.borrow_mut().push(from.to_owned());
                fs::hard_link(from, to)
            });
            other.set(Some(inner.unwrap()));
            names.borrow_mut().push(from.to_owned());
            assert!(from.exists(), "what is about to be put there is let alone");
            fs::hard_link(from, to)
        });
        assert_eq!(*first.unwrap(), *other.take().unwrap());
        let names = names.into_inner();
        assert_ne!(names[0], names[1]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing lies beside it");
    }

    #[test]
    fn one_that_another_process_is_writing_is_waited_for() {
        let us = super::super::own_user();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.key");
        write_new(&path, &[7; 5]).unwrap();
        let mut waits = 0;
        let found = open_whole(&path, us, || {
            waits += 1;
            if waits == 3 {
                fs::write(&path, [7; BYTES]).unwrap();
            }
        });
        let tag = |key: hmac::Key| hmac::sign(&key, b"x").as_ref().to_vec();
        assert_eq!((waits, tag(found.unwrap())), (3, tag(hmac::Key::new(hmac::HMAC_SHA256, &[7; BYTES]))));
        // The control: one that stays as it is.
        fs::write(&path, [7; 5]).unwrap();
        let mut waits = 0;
        assert!(open_whole(&path, us, || waits += 1).unwrap_err().contains("5 bytes"));
        assert_eq!(waits, LOOKS - 1);
    }
}
