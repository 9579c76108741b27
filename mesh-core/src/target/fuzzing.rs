//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! A second reader of paths and authorities, written for plainness from RFC 3986 and the words of the functions: lists of
//! characters and of segments, copied as it goes. The ones that are used are compared with it.

use std::borrow::Cow;

use super::{EncodedSlash, normalize_authority, normalize_path, unescape_path, without_port};

/// Brings a path to its normal form, with encoded slashes and without.
///
/// # Panics
/// The normal form is not what the plain reader makes of the path, or has another one itself.
pub fn path(text: &str) {
    for slash in [EncodedSlash::Refuse, EncodedSlash::Keep] {
        let given = normalize_path(text, slash).map(Cow::into_owned).ok();
        assert_eq!(given, plain_path(text, slash), "{text:?}, {slash:?}");
        let Some(once) = given else { continue };
        assert_eq!(normalize_path(&once, slash).as_deref(), Ok(&*once), "{text:?}: not the same a second time");
        assert_eq!(unescape_path(&once), once, "the words of requests are not their own");
        let unescaped = normalize_path(&unescape_path(text), slash).map(Cow::into_owned);
        assert_eq!(unescaped.as_ref(), Ok(&once), "{text:?}: another path in the words of requests");
        if let Ok(uri) = once.parse::<http::uri::PathAndQuery>()
            && !once.contains(['?', '#'])
        {
            assert_eq!(uri.path(), once, "another path in a request");
        }
    }
    let _ = unescape_path(text);
}

/// Brings an authority to its normal form.
///
/// # Panics
/// The plain reader says otherwise, the normal form has another one itself, or an HTTP library reads another host or port
/// from what is good.
pub fn authority(text: &str) {
    let normal = normalize_authority(text);
    assert_eq!(normal.is_ok(), plain_authority(text), "{text:?}");
    let Ok(normal) = normal else { return };
    assert_eq!(normalize_authority(&normal).as_deref(), Ok(&*normal), "{text:?}: not the same a second time");
    assert!(!normal.contains(|c: char| c.is_ascii_uppercase()) && !normal.ends_with(['.', ':']), "{normal:?}");
    let read: http::uri::Authority = text.parse().expect("what is good is an authority to everybody");
    let (host, port) = match text.rfind(':').filter(|at| !text[*at..].contains(']')) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    };
    assert_eq!((read.as_str(), read.host()), (text, host));
    assert_eq!(read.port_u16(), port.parse().ok(), "{text:?}");
    let number = |port: &str| port.parse::<u32>().unwrap_or_default();
    let normal_port = without_port(&normal).map_or("", |host| &normal[host.len() + 1..]);
    assert_eq!(number(normal_port), number(port), "{text:?}");
}

/// A character of a path; whether it came escaped and stays so.
type Read = (u8, bool);

fn plain_path(text: &str, slash: EncodedSlash) -> Option<String> {
    let mut bytes = text.bytes();
    let mut read: Vec<Read> = Vec::new();
    while let Some(byte) = bytes.next() {
        let escaped = byte == b'%';
        let value = if escaped {
            let digits: Vec<u8> = bytes.by_ref().take(2).collect();
            let digits = String::from_utf8(digits).ok().filter(|digits| digits.len() == 2)?;
            digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(&digits, 16).ok())??
        } else {
            byte
        };
        match char::from(value) {
            '\0'..='\u{1f}' | '\u{7f}' => return None,
            ' ' | '\u{80}'.. if !escaped => return None,
            '/' | '\\' if escaped && slash == EncodedSlash::Refuse => return None,
            '\\' if !escaped => read.push((b'/', false)),
            'a'..='z' | 'A'..='Z' | '0'..='9' => read.push((value, false)),
            c if "-._~!$&'()*+,;=:@".contains(c) => read.push((value, false)),
            _ => read.push((value, escaped)),
        }
    }
    if read.first() != Some(&(b'/', false)) {
        return None;
    }
    let segments: Vec<&[Read]> = read[1..].split(|read| *read == (b'/', false)).collect();
    let mut kept: Vec<String> = Vec::new();
    let mut ends_open = true;
    for segment in segments {
        let printed: String = segment.iter().map(print).collect();
        let name = printed.split(';').next().unwrap_or_default();
        ends_open = printed.is_empty() || name == "." || name == "..";
        if name == ".." {
            kept.pop();
        } else if !ends_open {
            kept.push(printed);
        }
    }
    if ends_open {
        kept.push(String::new());
    }
    Some(format!("/{}", kept.join("/")))
}

fn print((value, escaped): &Read) -> String {
    if *escaped { format!("%{value:02X}") } else { char::from(*value).to_string() }
}

fn plain_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let port = port.len() <= 5 && port.chars().all(|c| c.is_ascii_digit());
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            let full = host.strip_suffix('.').unwrap_or(host);
            let letters = |label: &str| label.chars().all(|c| c.is_ascii_alphanumeric() || "-_~".contains(c));
            full.split('.').all(|label| !label.is_empty() && letters(label))
        }
    };
    host && port
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PATHS: [&str; 12] = [
        "/",
        "/a/b/",
        "//a///b",
        "/public/..%3bx/%2e%2E/admin",
        "/public\\..\\admin;v=1/.;x",
        "/a%2fb/..%5c/c%2F",
        "/%c0%ae%25%41%5b%7e%3A",
        "/%0a",
        "/%2",
        "/a?b#c",
        "relative",
        "/\u{e4} \u{7f}",
    ];
    const AUTHORITIES: [&str; 12] = [
        "a.test",
        "A.test.:80",
        "[::1]:443",
        "[::ffff:1.2.3.4]",
        "a:",
        ":80",
        "u@a.test",
        "a..test",
        "a.test:123456",
        "fe80::1",
        "a%2etest",
        "[fe80::1%25eth0]",
    ];
    /// What the mutations put in: characters that mean something in the one or the other.
    const PIECES: [&str; 16] =
        ["/", "\\", ".", "..", ";", "%2e", "%2F", "%5c", "%", "%c3%a4", "a", ":", "[", "]", "@", "\u{e4}"];

    /// The corpora of the fuzzer. `UPDATE_CORPUS=1` writes their seeds anew; what a fuzzer finds is added by hand and
    /// stays.
    #[test]
    fn the_corpora_are_replayed() {
        let both = |text: &str| {
            authority(text);
            crate::matcher::fuzzing::host(text);
        };
        type Play<'p> = &'p dyn Fn(&str);
        let targets: [(_, _, Play<'_>); 2] = [("path", PATHS, &path), ("authority", AUTHORITIES, &both)];
        for (target, seeds, play) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
            if std::env::var_os("UPDATE_CORPUS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                for (i, seed) in seeds.iter().enumerate() {
                    std::fs::write(folder.join(format!("seed-{i}")), seed).unwrap();
                }
            }
            let files = std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
            let played = files.map(|bytes| play(&String::from_utf8_lossy(&bytes))).count();
            assert!(played >= seeds.len(), "{played} files of {target}");
        }
    }

    #[test]
    fn random_texts_are_read_as_the_plain_reader_reads_them() {
        let mut random = fastrand::Rng::with_seed(17);
        for _ in 0..20_000 {
            let (seeds, play): (_, fn(&str)) = if random.bool() { (PATHS, path) } else { (AUTHORITIES, authority) };
            let mut text = seeds[random.usize(..seeds.len())].to_owned();
            for _ in 0..random.usize(..6) {
                let mut at = random.usize(..=text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                text.insert_str(at, PIECES[random.usize(..PIECES.len())]);
            }
            play(&text);
        }
    }
}
