//! Second readers, written for plainness from the words of the specifications: of SPIFFE IDs, of what a certificate says of
//! itself, of PEM. They refuse more than they must where nobody writes such things, and know nothing of signatures.

/// Trust domain and path of a workload's SPIFFE ID (SPIFFE-ID 2.1 to 2.4; the path with its slash).
pub(super) fn spiffe_id(text: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = text.split('/').collect();
    let ["spiffe:", "", domain, segments @ ..] = &parts[..] else { return None };
    let good = text.len() <= 2048
        && consists_of(domain, "")
        && domain.len() <= 255
        && !segments.is_empty()
        && segments.iter().all(|segment| consists_of(segment, UPPER) && !matches!(*segment, "." | ".."));
    good.then(|| (*domain, &text["spiffe://".len() + domain.len()..]))
}

fn consists_of(text: &str, also: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| LOWER.contains(c) || also.contains(c))
}

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz0123456789-._";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// What a certificate says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    uris: Vec<String>,
    subject_is_empty: bool,
    names_are_critical: bool,
    // Critical, and the bits from digitalSignature on.
    key_usage: Option<(bool, u16)>,
    // The last byte of each purpose that PKIX knows; 0 for others.
    purposes: Option<Vec<u8>>,
    is_ca: bool,
    validity: Option<(u64, u64)>,
}

impl Said {
    /// Whom it names, if it is a workload's certificate that may be shown at `now` in either direction
    /// (X509-SVID 2, 3.1, 4.1, 4.3, 4.4, 5.2).
    pub(super) fn workload(&self, now: u64) -> Option<&str> {
        let [uri] = &self.uris[..] else { return None };
        spiffe_id(uri)?;
        let (critical, usage) = self.key_usage?;
        let signs_handshakes = usage & 0x8000 != 0;
        let signs_certificates_or_lists = usage & (0x8000 >> 5 | 0x8000 >> 6) != 0;
        let for_both = self.purposes.as_ref().is_none_or(|purposes| purposes.contains(&1) && purposes.contains(&2));
        let is_named = !self.subject_is_empty || self.names_are_critical;
        let holds = self.validity.is_some_and(|(from, to)| (from..=to).contains(&now));
        let good = critical && signs_handshakes && !signs_certificates_or_lists && for_both && is_named && holds;
        (good && !self.is_ca).then_some(uri)
    }
}

/// Reads a certificate (RFC 5280, 4.1): of its extensions those four that a SVID is judged by.
pub(super) fn certificate(der: &[u8]) -> Option<Said> {
    let mut rest = der;
    let mut whole = expect(&mut rest, 0x30)?;
    let mut fields = expect(&mut whole, 0x30)?;
    if fields.first() == Some(&0xa0) {
        element(&mut fields)?;
    }
    for tag in [0x02, 0x30, 0x30] {
        expect(&mut fields, tag)?;
    }
    let mut dates = expect(&mut fields, 0x30)?;
    let mut said = Said { validity: time(&mut dates).zip(time(&mut dates)), ..Said::default() };
    said.subject_is_empty = expect(&mut fields, 0x30)?.is_empty();
    expect(&mut fields, 0x30)?;
    let mut seen = Vec::new();
    while !fields.is_empty() {
        let (0xa3, mut explicit) = element(&mut fields)? else { continue };
        let mut extensions = expect(&mut explicit, 0x30)?;
        while !extensions.is_empty() {
            let mut extension = expect(&mut extensions, 0x30)?;
            let oid = expect(&mut extension, 0x06)?;
            // None of those is there twice (RFC 5280, 4.2).
            if seen.contains(&oid) && matches!(oid, [0x55, 0x1d, 15 | 17 | 19 | 37]) {
                return None;
            }
            seen.push(oid);
            let critical = extension.first() == Some(&0x01) && expect(&mut extension, 0x01)? == [0xff];
            extend(&mut said, oid, critical, expect(&mut extension, 0x04)?)?;
        }
    }
    rest.is_empty().then_some(said)
}

fn extend(said: &mut Said, oid: &[u8], critical: bool, mut value: &[u8]) -> Option<()> {
    // All that is looked at is below id-ce, 2.5.29.
    let [0x55, 0x1d, which] = oid else { return Some(()) };
    match which {
        15 => {
            let bits = expect(&mut value, 0x03)?;
            let byte = |at: usize| u16::from(bits.get(at).copied().unwrap_or_default());
            said.key_usage = Some((critical, byte(1) << 8 | byte(2)));
        }
        17 => {
            said.names_are_critical = critical;
            let mut names = expect(&mut value, 0x30)?;
            while !names.is_empty() {
                if let (0x86, uri) = element(&mut names)? {
                    said.uris.push(String::from_utf8(uri.to_vec()).ok()?);
                }
            }
        }
        19 => {
            let mut constraints = expect(&mut value, 0x30)?;
            said.is_ca = constraints.first() == Some(&0x01) && expect(&mut constraints, 0x01)? != [0];
        }
        37 => {
            let mut purposes = expect(&mut value, 0x30)?;
            let mut known = Vec::new();
            while !purposes.is_empty() {
                let [0x2b, 6, 1, 5, 5, 7, 3, purpose] = expect(&mut purposes, 0x06)? else {
                    known.push(0);
                    continue;
                };
                known.push(*purpose);
            }
            said.purposes = Some(known);
        }
        _ => {}
    }
    Some(())
}

/// Whether this is one sequence, and nothing more.
pub(super) fn is_sequence(mut der: &[u8]) -> bool {
    expect(&mut der, 0x30).is_some() && der.is_empty()
}

/// Takes an element off: its tag and its content.
fn element<'d>(der: &mut &'d [u8]) -> Option<(u8, &'d [u8])> {
    let [tag, length, rest @ ..] = *der else { return None };
    let (length, rest) = match usize::from(*length) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (bytes, rest) =
                rest.split_at_checked(long - 0x80).filter(|(bytes, _)| (1..4).contains(&bytes.len()))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some((*tag, content))
}

fn expect<'d>(der: &mut &'d [u8], tag: u8) -> Option<&'d [u8]> {
    element(der).filter(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// Seconds since the Unix epoch, of UTCTime or GeneralizedTime; 0 for what is before.
fn time(der: &mut &[u8]) -> Option<u64> {
    let (tag, text) = element(der)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        0x18 => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let two = |at: usize| rest.get(2 * at..2 * at + 2).and_then(|two| two.parse::<i64>().ok());
    let (month, day, seconds) = (two(0)?, two(1)?, (two(2)? * 60 + two(3)?) * 60 + two(4)?);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let years = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum::<i64>();
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months = lengths.iter().take(usize::try_from(month - 1).ok()?).sum::<i64>();
    Some(if year < 1970 { 0 } else { u64::try_from((years + months + day - 1) * 86_400 + seconds).ok()? })
}

/// The certificates of a PEM file, each between its marks; nothing if a mark stands alone.
pub(super) fn pem(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split("-----BEGIN CERTIFICATE-----");
    if parts.next()?.contains("-----END CERTIFICATE-----") {
        return None;
    }
    parts
        .map(|part| {
            let (body, after) = part.split_once("-----END CERTIFICATE-----")?;
            (!after.contains("-----END CERTIFICATE-----")).then(|| base64(body))
        })
        .collect()
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<usize> = text.chars().filter_map(|c| ALPHABET.find(c)).collect();
    let bits: Vec<bool> = digits.iter().flat_map(|digit| (0..6).rev().map(move |at| digit >> at & 1 == 1)).collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}
