//! Endpoints straight from their bytes, where an assignment says no more than nearly all of them do: addresses, weights,
//! health, metadata. It is the resource that changes most, and messages would be half a dozen allocations for each
//! endpoint.
//!
//! What says more, and whatever is wrong, is left to [`endpoint`](super::endpoint), which knows it all and names the
//! fault. What is read here is what is read there, a property test says.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use foldhash::fast::RandomState;
use mesh_core::id::Locality;
use mesh_core::policy::{Address, Endpoint, EndpointMetadata, Endpoints, LocalityEndpoints};
use mesh_core::protobuf::{Value, field};
use prost::Message;

use super::common::socket_address;
use super::endpoint::{self, Shared};

/// Reads an assignment; `None` = the whole decoder is to look at it. Endpoints of which it says nothing but where they
/// are share `nothing`, the empty facts.
pub(super) fn read(mut bytes: &[u8], nothing: &Arc<EndpointMetadata>) -> Option<Endpoints> {
    let (mut cluster, mut localities) = ("", Vec::with_capacity(count(bytes, 2)?));
    let mut facts = Facts { known: Shared::default(), last: ("", None, nothing.clone()) };
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Value::Bytes(name)) => cluster = text(name)?,
            (2, Value::Bytes(group)) => localities.push(locality(group, &mut facts)?),
            _ => return None,
        }
    }
    let plain = !cluster.is_empty() && endpoint::has_orderly_priorities(&localities) && are_distinct(&localities);
    plain.then(|| Endpoints { cluster: cluster.to_owned(), localities, ..Endpoints::default() })
}

fn locality<'b>(mut bytes: &'b [u8], facts: &mut Facts<'b>) -> Option<LocalityEndpoints> {
    let (mut place, mut weight, mut priority) = (None, None, 0);
    let mut endpoints = Vec::with_capacity(count(bytes, 2)?);
    let mut sum = 0_u32;
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            // What is there twice is merged: not here.
            (1, Value::Bytes(bytes)) if place.is_none() => place = Some(where_it_is(bytes)?),
            (2, Value::Bytes(bytes)) => {
                let endpoint = one(bytes, facts)?;
                sum = sum.checked_add(endpoint.weight.get())?;
                endpoints.push(endpoint);
            }
            (3, Value::Bytes(bytes)) if weight.is_none() => weight = Some(wrapped(bytes)?),
            (5, Value::Number(number)) => priority = number as u32,
            _ => return None,
        }
    }
    Some(LocalityEndpoints { locality: place?, priority, weight: weight?, endpoints })
}

fn where_it_is(mut bytes: &[u8]) -> Option<Locality> {
    let mut locality = Locality::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Value::Bytes(region)) => locality.region = text(region)?.to_owned(),
            (2, Value::Bytes(zone)) => locality.zone = text(zone)?.to_owned(),
            (3, Value::Bytes(sub_zone)) => locality.sub_zone = text(sub_zone)?.to_owned(),
            _ => return None,
        }
    }
    Some(locality)
}

fn one<'b>(mut bytes: &'b [u8], facts: &mut Facts<'b>) -> Option<Endpoint> {
    let (mut host, mut health, mut metadata, mut weight) = (None, 0, None, None);
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Value::Bytes(bytes)) if host.is_none() => host = Some(bytes),
            (2, Value::Number(number)) => health = number as i32,
            (3, Value::Bytes(bytes)) if metadata.is_none() => metadata = Some(bytes),
            (4, Value::Bytes(bytes)) if weight.is_none() => weight = Some(wrapped(bytes)?),
            _ => return None,
        }
    }
    let (mut host, mut address, mut hostname) = (host?, None, "");
    while !host.is_empty() {
        match field(&mut host)? {
            (1, Value::Bytes(bytes)) if address.is_none() => address = Some(socket(bytes)?),
            (3, Value::Bytes(name)) => hostname = text(name)?,
            _ => return None,
        }
    }
    Some(Endpoint {
        address: address?,
        additional_addresses: Box::default(),
        weight: weight.unwrap_or(NonZeroU32::MIN),
        health: endpoint::read_health(health),
        metadata: facts.of(hostname, metadata)?,
    })
}

/// An `Address` that is a TCP socket's with a number for its port.
fn socket(mut bytes: &[u8]) -> Option<Address> {
    let (1, Value::Bytes(mut socket)) = field(&mut bytes)? else { return None };
    if !bytes.is_empty() {
        return None;
    }
    let (mut host, mut port) = ("", 0);
    while !socket.is_empty() {
        match field(&mut socket)? {
            (2, Value::Bytes(bytes)) => host = text(bytes)?,
            (3, Value::Number(number)) => port = number as u32,
            _ => return None,
        }
    }
    let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
    (!host.is_empty()).then(|| socket_address(host, port))
}

/// A weight in a `UInt32Value`.
fn wrapped(mut bytes: &[u8]) -> Option<NonZeroU32> {
    let (1, Value::Number(number)) = field(&mut bytes)? else { return None };
    NonZeroU32::new(number as u32).filter(|_| bytes.is_empty())
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// How many fields of that number there are, so that lists take no more room than they need.
fn count(mut bytes: &[u8], number: u64) -> Option<usize> {
    let mut count = 0;
    while !bytes.is_empty() {
        count += usize::from(field(&mut bytes)?.0 == number);
    }
    Some(count)
}

fn are_distinct(localities: &[LocalityEndpoints]) -> bool {
    let all = || localities.iter().flat_map(|group| &group.endpoints);
    let mut seen: HashSet<&Address, RandomState> =
        HashSet::with_capacity_and_hasher(all().count(), RandomState::default());
    all().all(|endpoint| seen.insert(&endpoint.address))
}

/// What the endpoints of one assignment share. Neighbours mostly say the same in the same bytes.
struct Facts<'b> {
    known: Shared,
    last: (&'b str, Option<&'b [u8]>, Arc<EndpointMetadata>),
}

impl<'b> Facts<'b> {
    fn of(&mut self, hostname: &'b str, metadata: Option<&'b [u8]>) -> Option<Arc<EndpointMetadata>> {
        let (name, bytes, facts) = &self.last;
        if (*name, *bytes) == (hostname, metadata) {
            return Some(facts.clone());
        }
        let read = metadata.map(Metadata::decode).transpose().ok()?;
        if read.as_ref().is_some_and(|metadata| !metadata.typed_filter_metadata.is_empty()) {
            return None;
        }
        let facts = self.known.metadata(endpoint::read_metadata(hostname, read.as_ref()));
        self.last = (hostname, metadata, facts.clone());
        Some(facts)
    }
}
