//! How much a message unfolds to, before it is: two bytes on the wire may become a thousand in memory, so that the largest
//! message that a control plane may send would be tens of gigabytes.
//!
//! Knows no message: each part that has a length is taken to be one, which texts are for a few bytes at most. Costs a step for
//! each field, and nothing for what is too short to hold too many.

use mesh_core::protobuf::varint;

/// Parts of the first levels, where the largest messages are: a million endpoints, routes or hosts.
const MAX_OUTER: usize = 1 << 20;
/// The first levels.
const OUTER: usize = 3;
/// Parts of all levels together. An assignment of 200,000 endpoints of which each says what it is has five million.
const MAX: usize = 1 << 23;
/// Nothing is decoded that lies deeper (prost).
const DEEPEST: usize = 100;

/// What is wrong with a message that unfolds to too much.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    // A part takes two bytes at least.
    if bytes.len() / 2 <= MAX_OUTER {
        return Ok(());
    }
    Room::default().unfold(bytes)
}

/// How much may still be unfolded.
pub(super) struct Room {
    outer: usize,
    all: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { outer: MAX_OUTER, all: MAX }
    }
}

impl Room {
    /// The same for one of several messages, which lie within one another or beside, of all together.
    pub(super) fn unfold(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.take(bytes, 1).ok_or_else(|| {
            format!(
                "it has more than {MAX_OUTER} parts within three levels, or more than {MAX}: have the control plane divide it"
            )
        })
    }

    fn take(&mut self, mut bytes: &[u8], level: usize) -> Option<()> {
        // What is no protobuf ends where it is none: there the decoder stops, too.
        while let Some((tag, part)) = field(&mut bytes) {
            if tag & 7 != 2 {
                continue;
            }
            self.all = self.all.checked_sub(1)?;
            if level <= OUTER {
                self.outer = self.outer.checked_sub(1)?;
            }
            if level < DEEPEST {
                self.take(part, level + 1)?;
            }
        }
        Some(())
    }
}

/// Takes the first field: its tag and its bytes, none for a number and for the limits of a group.
pub(crate) fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let tag = varint(bytes)?;
    let length = match tag & 7 {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        3 | 4 => 0,
        5 => 4,
        _ => return None,
    };
    let (field, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((tag, field))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesh_core::policy::{EndpointMetadata, Endpoints};
    use prost::encoding::{WireType, encode_key, encode_varint};

    use super::*;
    use crate::codec::{self, AnyListener, Packed};

    /// A part with this tag.
    fn part(tag: u32, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::with_capacity(bytes.len() + 8);
        encode_key(tag, WireType::LengthDelimited, &mut whole);
        encode_varint(bytes.len() as u64, &mut whole);
        whole.extend(bytes);
        whole
    }

    fn refused(bytes: &[u8]) -> bool {
        check(bytes).is_err()
    }

    #[test]
    fn what_unfolds_to_too_much_is_refused_wherever_it_lies() {
        let many = |tag: u8, count: usize| [tag << 3 | 2, 0].repeat(count);
        let (few, too_many) = (many(2, MAX_OUTER - 3), many(2, MAX_OUTER + 1));
        let name = part(1, b"name");
        assert!(!refused(&few) && refused(&too_many));
        // Endpoints of a locality, addresses of an endpoint.
        for nested in [part(2, &too_many), part(2, &part(2, &too_many))] {
            assert!(refused(&[name.clone(), nested].concat()));
        }
        // Deeper there is room for more small things, and not for any number.
        let deep = |count| part(2, &part(2, &part(2, &many(2, count))));
        assert!(!refused(&deep(MAX_OUTER + 1)) && refused(&deep(MAX)));
        // Neither a group before them nor something broken after them hides them.
        assert!(refused(&[vec![0x0b, 0x0c], too_many.clone()].concat()));
        assert!(refused(&part(2, &[too_many.clone(), vec![0xff]].concat())));
        // What only looks like parts within parts ends where the decoder does.
        let mut chain = vec![0; 4 << 20];
        (0..200).for_each(|_| chain = part(2, &chain));
        assert!(!refused(&chain));
    }

    #[test]
    fn every_decoder_asks_before_it_unfolds() {
        let many = [0x12, 0].repeat(MAX_OUTER + 1);
        let whole = [part(1, b"name"), part(2, &many)].concat();
        for (type_url, decoded) in [
            (codec::ENDPOINTS, codec::decode_endpoints(Packed { type_url: codec::ENDPOINTS, bytes: &whole }).map(drop)),
            (codec::CLUSTER, codec::decode_cluster(Packed { type_url: codec::CLUSTER, bytes: &whole }).map(drop)),
            (codec::ROUTES, codec::decode_routes(Packed { type_url: codec::ROUTES, bytes: &whole }).map(drop)),
            (codec::LISTENER, codec::decode_listener(Packed { type_url: codec::LISTENER, bytes: &whole }).map(drop)),
        ] {
            let error = decoded.unwrap_err();
            assert!(error.to_string().contains("more than 1048576 parts"), "{type_url}: {error}");
        }
    }

    /// A packed message is one of its own: its levels begin anew.
    #[test]
    fn a_packed_message_has_a_bound_of_its_own() {
        let manager = |hosts: usize| {
            let table = [part(1, b"t"), [0x12, 0].repeat(hosts)].concat();
            let value = part(4, &table);
            let any = [part(1, codec::extension::url::HCM.as_bytes()), part(2, &value)].concat();
            [part(1, b"name"), part(19, &part(1, &any))].concat()
        };
        let decoded = |bytes: &[u8]| codec::decode_listener(Packed { type_url: codec::LISTENER, bytes });
        let error = decoded(&manager(MAX_OUTER)).map(|decoded| matches!(decoded.value, AnyListener::Outbound(_)));
        assert!(error.as_ref().is_err_and(|error| error.to_string().contains("parts")), "{error:?}");
        // Control: a few of them are read, and refused for what they are.
        let error = decoded(&manager(1)).unwrap_err();
        assert!(!error.to_string().contains("parts"), "{error}");
    }

    #[test]
    fn two_hundred_thousand_endpoints_are_not_too_many() {
        let mut endpoints = Endpoints::at("c", [SocketAddr::from(([10, 0, 0, 1], 80))]);
        let facts = EndpointMetadata {
            mesh_tls: true,
            hostname: Some("reviews-v1-7d4d6b8c9-x2x4z.reviews.default.svc.cluster.local".into()),
            lb: [("canary".to_owned(), "true".to_owned())].into(),
            ..EndpointMetadata::default()
        };
        endpoints.localities[0].endpoints[0].metadata = facts.into();
        let one = codec::encode_endpoints(&endpoints).value;
        // The locality and the endpoint in it.
        let mut rest = &one[..];
        let inner = |bytes: &mut &[u8]| loop {
            if let Some((18, part)) = field(bytes) {
                break part.to_vec();
            }
        };
        let locality = inner(&mut rest);
        let endpoint = part(2, &inner(&mut &locality[..]));
        assert!(endpoint.len() > 100, "it says where it is and what it is");
        let all = part(2, &endpoint.repeat(200_000));
        assert!(!refused(&all) && refused(&part(2, &endpoint.repeat(400_000))));
        // In a cluster they lie one level deeper.
        assert!(!refused(&part(33, &all)));
    }
}
