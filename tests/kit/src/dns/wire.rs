//! DNS messages (RFC 1035), as much of them as a test server needs: one question, A, AAAA, CNAME, SRV, NS and SOA.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_core::source::Family;

/// Bytes of an answer over UDP: what fits without EDNS.
pub(super) const UDP_LIMIT: usize = 512;
/// Bytes of an answer over TCP.
pub(super) const TCP_LIMIT: usize = 65_535;

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const IN: u16 = 1;
/// How long a negative answer may be kept, seconds.
const NEGATIVE_TTL: u32 = 3600;

/// One record of a name.
#[derive(Clone, Debug)]
pub(super) enum Record {
    A(Ipv4Addr, u32),
    Aaaa(Ipv6Addr, u32),
    Srv { priority: u16, weight: u16, port: u16, host: String, ttl: u32 },
    Alias { target: String, ttl: u32, is_bare: bool },
}

/// What is said of a name: records, each with the name that has it.
pub(super) struct Said<'z> {
    code: u8,
    records: Vec<(&'z str, &'z Record)>,
    authority: Authority,
}

/// What stands beside the answers.
#[derive(Clone, Copy)]
enum Authority {
    Nothing,
    /// SOA: there is nothing of what was asked for.
    Negative,
    /// NS: others know.
    Referral,
}

impl<'z> Said<'z> {
    pub(super) fn found(records: Vec<(&'z str, &'z Record)>, query: &Query<'_>) -> Self {
        let answers =
            |record: &Record| record.kind() == query.kind || matches!(record, Record::Alias { is_bare: true, .. });
        let authority = match records.iter().any(|(_, record)| answers(record)) {
            true => Authority::Nothing,
            false => Authority::Negative,
        };
        Self { code: 0, records, authority }
    }

    /// At the end of these aliases, if there are any.
    pub(super) fn not_found(records: Vec<(&'z str, &'z Record)>) -> Self {
        Self { code: 3, records, authority: Authority::Negative }
    }

    /// A code and nothing else.
    pub(super) fn bare(code: u8) -> Self {
        Self { code, records: Vec::new(), authority: Authority::Nothing }
    }

    /// Who to ask.
    pub(super) fn referral() -> Self {
        Self { code: 0, records: Vec::new(), authority: Authority::Referral }
    }
}

/// A question.
pub(super) struct Query<'m> {
    id: [u8; 2],
    // As it came: it is part of the answer.
    question: &'m [u8],
    /// In lower case, without the last dot.
    pub(super) name: String,
    kind: u16,
}

impl<'m> Query<'m> {
    /// Reads a query with one question; `None` for anything else.
    pub(super) fn read(message: &'m [u8]) -> Option<Self> {
        let is_query = message.get(2)? & 0x80 == 0;
        if !is_query || message.get(4..6)? != [0, 1] {
            return None;
        }
        let (mut at, mut labels) = (12, Vec::new());
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                1..64 => labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase()),
                // Compressed: no question is.
                _ => return None,
            }
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        let question = message.get(12..at + 4)?;
        Some(Self { id: [message[0], message[1]], question, name: labels.join("."), kind })
    }

    /// Of which family addresses are asked for, if any are.
    pub(super) fn family(&self) -> Option<Family> {
        match self.kind {
            A => Some(Family::V4),
            AAAA => Some(Family::V6),
            _ => None,
        }
    }

    /// The answer; too long, it says so and is empty.
    pub(super) fn answer(&self, said: &Said<'_>, limit: usize) -> Vec<u8> {
        let of_kind = said.records.iter().filter(|(_, record)| [self.kind, CNAME].contains(&record.kind()));
        let wanted: Vec<Vec<u8>> = of_kind.map(|(of, record)| record.write(&self.reference(of))).collect();
        let long = 12 + self.question.len() + wanted.iter().map(Vec::len).sum::<usize>() > limit;
        let answers = if long { &[][..] } else { &wanted };
        // A response with recursion, truncated or not.
        let mut message = vec![self.id[0], self.id[1], 0x81 | (u8::from(long) << 1), 0x80 | said.code, 0, 1];
        message.extend((answers.len() as u16).to_be_bytes());
        let authority = match said.authority {
            Authority::Nothing => Vec::new(),
            Authority::Negative => soa(),
            Authority::Referral => record(&[0], NS, NEGATIVE_TTL, &labels("ns.test")),
        };
        message.extend([0, u8::from(!authority.is_empty()), 0, 0]);
        message.extend(self.question);
        message.extend(answers.iter().flatten());
        message.extend(authority);
        message
    }

    /// A name in an answer: that of the question is pointed to.
    fn reference(&self, name: &str) -> Vec<u8> {
        if name == self.name { vec![0xc0, 12] } else { labels(name) }
    }
}

impl Record {
    /// Another name.
    pub(super) fn alias(target: &str, ttl: u32, is_bare: bool) -> Self {
        Self::Alias { target: target.to_ascii_lowercase(), ttl, is_bare }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::A(..) => A,
            Self::Aaaa(..) => AAAA,
            Self::Srv { .. } => SRV,
            Self::Alias { .. } => CNAME,
        }
    }

    /// The record of a name.
    fn write(&self, name: &[u8]) -> Vec<u8> {
        let (ttl, data) = match self {
            Self::A(ip, ttl) => (*ttl, ip.octets().to_vec()),
            Self::Aaaa(ip, ttl) => (*ttl, ip.octets().to_vec()),
            Self::Srv { priority, weight, port, host, ttl } => {
                let mut data: Vec<u8> = [priority, weight, port].into_iter().flat_map(|n| n.to_be_bytes()).collect();
                data.extend(labels(host));
                (*ttl, data)
            }
            Self::Alias { target, ttl, .. } => (*ttl, labels(target)),
        };
        record(name, self.kind(), ttl, &data)
    }
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn record(name: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = name.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend(IN.to_be_bytes());
    record.extend(ttl.to_be_bytes());
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

/// The root's SOA record: what tells how long a negative answer may be kept.
fn soa() -> Vec<u8> {
    let mut data = vec![0, 0];
    for number in [1, 3600, 600, 86_400, NEGATIVE_TTL] {
        data.extend(u32::to_be_bytes(number));
    }
    record(&[0], SOA, NEGATIVE_TTL, &data)
}
