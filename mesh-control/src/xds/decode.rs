//! [`RequestCodec`]: reads requests, once it is known that they do not become much larger than they came. An empty message
//! in a list takes two bytes on the wire and two hundred where it is kept, so lists are counted before they are read.
//!
//! Refuses to know what requests say.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::session::Refused;
use super::stream::Asked;
use super::unread::Unread;
use super::{Kind, Limits};

/// Bytes of the messages in a request together: its node, the error but for its text, which takes what it came with and is cut,
/// locators, which nobody reads. An Envoy lists its extensions in its node, which takes 80 KiB.
const MESSAGES: usize = 256 << 10;

/// Where the fields of a request are that can become large.
pub(super) struct Fields {
    /// Lists of names.
    pub(super) names: &'static [u32],
    /// The versions of an earlier stream.
    pub(super) versions: Option<u32>,
    pub(super) messages: &'static [u32],
    /// Which of these is the error.
    pub(super) error: u32,
    pub(super) type_url: u32,
}

/// The codec of one stream.
pub(super) struct RequestCodec<R> {
    unread: Unread,
    limits: Limits,
    of: PhantomData<fn() -> R>,
}

pub(super) struct RequestDecoder<R> {
    unread: Unread,
    limits: Limits,
    inner: ProstDecoder<R>,
}

impl<R> RequestCodec<R> {
    pub(super) fn new(unread: Unread, limits: Limits) -> Self {
        Self { unread, limits, of: PhantomData }
    }
}

impl<R: Asked> Codec for RequestCodec<R> {
    type Encode = R::Answer;
    type Decode = R;
    type Encoder = ProstEncoder<R::Answer>;
    type Decoder = RequestDecoder<R>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<R::Answer, R>::new().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        let inner = ProstCodec::<R::Answer, R>::new().decoder();
        RequestDecoder { unread: self.unread.clone(), limits: self.limits, inner }
    }
}

impl<R: Asked> Decoder for RequestDecoder<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        look(src.chunk(), &R::FIELDS, &self.limits).map_err(|refused| self.unread.refuse(refused))?;
        self.inner.decode(src)
    }
}

/// What was seen of a request.
#[derive(Default)]
struct Seen {
    /// Entries of each list of names.
    names: [usize; 2],
    versions: usize,
    messages: usize,
    type_url: &'static str,
}

/// Whether a request may be read. What is wrong with its bytes is left to whoever reads it, who stops at the same byte.
fn look(bytes: &[u8], fields: &Fields, limits: &Limits) -> Result<(), Refused> {
    let mut seen = Seen { type_url: "unknown", ..Seen::default() };
    let mut rest = bytes;
    while !rest.is_empty() && field(&mut rest, fields, &mut seen).is_some() {}
    let type_url = seen.type_url;
    let lists = seen.names.map(|listed| (listed, 2 * limits.names));
    if let Some((listed, most)) =
        lists.into_iter().chain([(seen.versions, limits.versions)]).find(|(listed, most)| listed > most)
    {
        return Err(Refused::TooLong { listed, most, type_url });
    }
    if seen.messages > MESSAGES {
        return Err(Refused::TooLarge { bytes: seen.messages, limit: MESSAGES, type_url });
    }
    Ok(())
}

/// Counts one field.
fn field(rest: &mut &[u8], fields: &Fields, seen: &mut Seen) -> Option<()> {
    let (tag, wire) = decode_key(rest).ok()?;
    if wire != WireType::LengthDelimited {
        return skip_field(wire, tag, rest, DecodeContext::default()).ok();
    }
    // Counted as it says, whether or not all of it has come: of what is cut off the beginning is read, too.
    let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let content = rest.get(..len);
    if let Some(list) = fields.names.iter().position(|at| *at == tag) {
        seen.names[list] += 1;
    } else if fields.versions == Some(tag) {
        seen.versions += 1;
    } else if fields.messages.contains(&tag) {
        let text = content.filter(|_| tag == fields.error).map_or(0, text_of);
        seen.messages = seen.messages.saturating_add(len.min(rest.len()) - text);
    } else if fields.type_url == tag {
        let kind = content.and_then(|url| Kind::from_type_url(std::str::from_utf8(url).ok()?));
        seen.type_url = kind.map_or("unknown", Kind::type_url);
    }
    *rest = rest.get(content?.len()..)?;
    Some(())
}

/// Bytes of the text in a `google.rpc.Status`.
fn text_of(mut error: &[u8]) -> usize {
    const MESSAGE: u32 = 2;
    let mut bytes = 0;
    while let Ok((tag, wire)) = decode_key(&mut error) {
        if (tag, wire) != (MESSAGE, WireType::LengthDelimited) {
            if skip_field(wire, tag, &mut error, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        }
        let Ok(Ok(len)) = decode_varint(&mut error).map(usize::try_from) else { break };
        let Some(rest) = error.get(len..) else { break };
        bytes += len;
        error = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{Extension, Node};
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, ResourceLocator};
    use envoy_types::pb::google::protobuf::Any;
    use envoy_types::pb::google::rpc;
    use prost::Message;

    use super::*;

    const LIMITS: fn() -> Limits = || Limits { names: 2, versions: 5, ..Limits::default() };

    fn seen<R: Asked>(request: &R) -> Result<(), String> {
        look(&request.encode_to_vec(), &R::FIELDS, &LIMITS()).map_err(|refused| refused.to_string())
    }

    fn type_url() -> String {
        Kind::Cluster.type_url().to_owned()
    }

    #[test]
    fn lists_that_are_longer_than_any_subscription_are_refused_unread() {
        let names = |count| vec![String::new(); count];
        let state = |count| DiscoveryRequest {
            type_url: type_url(),
            resource_names: names(count),
            ..DiscoveryRequest::default()
        };
        let delta = |subscribe, unsubscribe, versions: usize| DeltaDiscoveryRequest {
            type_url: type_url(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            initial_resource_versions: (0..versions).map(|n| (n.to_string(), String::new())).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        for refused in
            [seen(&state(5)), seen(&delta(5, 0, 0)), seen(&delta(0, 5, 0))].map(|refused| refused.unwrap_err())
        {
            assert!(
                refused.contains("lists 5 names") && refused.contains("at most 4") && refused.contains("v3.Cluster"),
                "{refused}"
            );
        }
        // What `*` covers is not bound by the names that may be subscribed to, so neither are its versions.
        assert!(seen(&delta(1, 0, 6)).unwrap_err().contains("lists 6 names"));
        seen(&delta(4, 4, 5)).unwrap();
        seen(&state(4)).unwrap();
    }

    #[test]
    fn messages_that_would_become_far_larger_than_they_came_are_refused_unread() {
        let many = MESSAGES / 2 + 1;
        let node = Node { extensions: vec![Extension::default(); many], ..Node::default() };
        let error = rpc::Status { details: vec![Any::default(); many], ..rpc::Status::default() };
        let locators = || vec![ResourceLocator { name: "a".repeat(1 << 16), ..ResourceLocator::default() }; 5];
        let of = DeltaDiscoveryRequest::default;
        for request in [
            DeltaDiscoveryRequest { node: Some(node.clone()), ..of() },
            DeltaDiscoveryRequest { error_detail: Some(error.clone()), ..of() },
            DeltaDiscoveryRequest { resource_locators_subscribe: locators(), ..of() },
            DeltaDiscoveryRequest { resource_locators_unsubscribe: locators(), ..of() },
        ] {
            assert!(seen(&request).unwrap_err().contains("at most 262144"));
        }
        let of = DiscoveryRequest::default;
        for request in [
            DiscoveryRequest { node: Some(node), ..of() },
            DiscoveryRequest { error_detail: Some(error), ..of() },
            DiscoveryRequest { resource_locators: locators(), ..of() },
        ] {
            assert!(seen(&request).unwrap_err().contains("at most 262144"));
        }
        // The text of an error takes no more than it came with; what stands around it may, before and after.
        let text = rpc::Status { message: "x".repeat(2 * MESSAGES), ..rpc::Status::default() };
        seen(&DiscoveryRequest { error_detail: Some(text.clone()), ..of() }).unwrap();
        seen(&DeltaDiscoveryRequest { error_detail: Some(text.clone()), ..DeltaDiscoveryRequest::default() }).unwrap();
        let both = rpc::Status { details: vec![Any::default(); many], ..text.clone() };
        assert!(seen(&DiscoveryRequest { error_detail: Some(both), ..of() }).is_err());
        // No other message has such a text.
        let node = Node { cluster: text.message, ..Node::default() };
        assert!(seen(&DiscoveryRequest { node: Some(node), ..of() }).is_err());
        // A field of which several come is read into one.
        let part = Node { extensions: vec![Extension::default(); many / 2], ..Node::default() };
        let part = DiscoveryRequest { node: Some(part), ..of() }.encode_to_vec();
        let look = |bytes: &[u8]| look(bytes, &DiscoveryRequest::FIELDS, &LIMITS());
        assert!(look(&part.repeat(3)).is_err());
        // Whatever else is wrong with it does not hide it.
        assert!(look(&[&part.repeat(3)[..], &[0xff]].concat()).is_err());
        assert!(look(&part.repeat(3)[..part.len() * 3 - 1]).is_err());
        // The control: an Envoy with all its extensions, and bytes that are no request.
        let extension = Extension { name: "envoy.filters.http.ext_authz".repeat(4), ..Extension::default() };
        let node = Node { extensions: vec![extension; 600], ..Node::default() };
        seen(&DiscoveryRequest { node: Some(node), ..of() }).unwrap();
        for bytes in [&[][..], &[0xff; 20], &[0x12], &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x00], &[0x0b, 0x0b, 0x0c]] {
            look(bytes).unwrap();
        }
    }
}
