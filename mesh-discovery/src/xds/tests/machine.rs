//! The protocol alone, with resources that are plain text `name=value`.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::ads::{Ads, Codec, Entry, Known, Retry, Server, Servers, Topology};
use super::super::kind::{Key, Kind};
use super::super::message::{Ask, Body, Request, Resource, Response, StreamError, Variant};
use super::strs;
use crate::bootstrap::{Node, ServerFeatures};

pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const BOTH: [Variant; 2] = [Variant::StateOfTheWorld, Variant::Delta];

#[derive(Clone, Default)]
pub(super) struct Text {
    pub(super) decoded: Rc<Cell<usize>>,
}

impl Codec for Text {
    type Value = String;

    fn name<'a>(&self, _: Kind, body: &'a Body) -> Option<Cow<'a, str>> {
        let (name, _) = std::str::from_utf8(&body.bytes).ok()?.split_once('=')?;
        assert_ne!(name, "panic", "on purpose");
        Some(Cow::Borrowed(name))
    }

    fn decode(&self, _: Kind, name: &str, body: &Body, _: ServerFeatures) -> Result<String, String> {
        self.decoded.set(self.decoded.get() + 1);
        let text = String::from_utf8_lossy(&body.bytes);
        match text.split_once('=').expect("its name has been read").1 {
            "bad" | "bad again" => Err(format!("{name}: field: bad")),
            "panic" => panic!("on purpose"),
            good => Ok(good.to_owned()),
        }
    }

    fn is_empty(&self, value: &String) -> bool {
        assert_ne!(value, "odd", "on purpose");
        value.is_empty()
    }
}

/// The protocol with as many control planes as are needed, all of them of each authority: that of names without one, and
/// `other`.
pub(super) struct Machine {
    pub(super) ads: Ads<Text>,
    pub(super) codec: Text,
    pub(super) now: Instant,
}

impl Machine {
    pub(super) fn new(variant: Option<Variant>, features: ServerFeatures, servers: u16) -> Self {
        let topology = Self::topology(variant, features, servers);
        let (codec, now) = (Text::default(), Instant::now());
        Self { ads: Ads::new(codec.clone(), topology, now), codec, now }
    }

    pub(super) fn topology(variant: Option<Variant>, features: ServerFeatures, servers: u16) -> Topology {
        let server = |id| Server { name: format!("s{id}"), features, variant };
        let authority = Servers { ordered: (0..servers).collect(), on_reachability_only: false };
        Topology {
            node: Arc::new(Node { id: "me".to_owned(), ..Default::default() }),
            servers: (0..servers).map(server).collect(),
            authorities: vec![authority.clone(), authority],
            by_name: HashMap::from([("other".to_owned(), 1)]),
            resource_timeout: TIMEOUT,
            transient_timeout: 2 * TIMEOUT,
        }
    }

    /// With two control planes, one of names without an authority and one of `other`.
    pub(super) fn apart(variant: Variant) -> Self {
        let mut machine = Self::new(Some(variant), ServerFeatures::default(), 2);
        let mut topology = Self::topology(Some(variant), ServerFeatures::default(), 2);
        for (authority, server) in topology.authorities.iter_mut().zip([0, 1]) {
            authority.ordered = vec![server];
        }
        machine.ads = Ads::new(machine.codec.clone(), topology, machine.now);
        machine
    }

    pub(super) fn of(variant: Variant) -> Self {
        Self::new(Some(variant), ServerFeatures::default(), 1)
    }

    pub(super) fn subscribe(&mut self, keys: &[Key]) {
        keys.iter().for_each(|key| _ = self.ads.want(1, key.kind, &key.name));
    }

    pub(super) fn unsubscribe(&mut self, keys: &[Key]) {
        keys.iter().for_each(|key| self.ads.release(1, key));
    }

    pub(super) fn opened(&mut self) {
        self.ads.opened(0, self.now);
    }

    pub(super) fn closed(&mut self) {
        self.close(None);
    }

    pub(super) fn close(&mut self, error: Option<StreamError>) -> Retry {
        self.ads.closed(0, error, self.now)
    }

    pub(super) fn is_silent(&self) -> bool {
        !self.ads.has_request(0)
    }

    /// The next request, which there must be.
    pub(super) fn request(&mut self) -> Request {
        assert!(self.ads.has_request(0), "there is nothing to say");
        self.ads.take_request(0, self.now).unwrap()
    }

    /// Everything that is to be said.
    pub(super) fn drain(&mut self, server: u16) -> Vec<Request> {
        std::iter::from_fn(|| self.ads.take_request(server, self.now)).collect()
    }

    /// Takes a response whose version and nonce are `mark`; gives what readers see changed.
    pub(super) fn respond(&mut self, kind: Kind, mark: &str, resources: &[&str]) -> Vec<Key> {
        self.take(0, response(kind, mark, resources))
    }

    pub(super) fn take(&mut self, server: u16, response: Response) -> Vec<Key> {
        self.ads.response(server, response, self.now);
        self.ads.conclude();
        self.ads.take_changed()
    }

    pub(super) fn known(&self, key: &Key) -> Known<'_, String> {
        self.ads.known(key.kind, &key.name)
    }

    pub(super) fn value(&self, key: &Key) -> Option<&str> {
        match self.known(key) {
            Known::Value(value, _) => Some(value),
            _ => None,
        }
    }

    pub(super) fn missing(&self, key: &Key) -> Option<&str> {
        match self.known(key) {
            Known::Missing(reason, _) => Some(reason),
            _ => None,
        }
    }

    pub(super) fn entry(&self, key: &Key) -> &Entry<String> {
        self.ads.entry(key).expect("it is wanted")
    }

    pub(super) fn held_version(&self, key: &Key) -> &str {
        &self.entry(key).good.as_ref().unwrap().version
    }

    pub(super) fn pass(&mut self, time: Duration) -> Vec<Key> {
        self.now += time;
        self.ads.expire(self.now);
        self.ads.take_changed()
    }
}

pub(super) fn response(kind: Kind, mark: &str, resources: &[&str]) -> Response {
    let body = |text: &&str| Body::new(kind.type_url(), text.as_bytes().to_vec());
    Response {
        type_url: kind.type_url().to_owned(),
        version: mark.to_owned(),
        nonce: mark.to_owned(),
        resources: resources
            .iter()
            .map(|text| Resource { version: String::new(), name: String::new(), ttl: None, body: Some(body(text)) })
            .collect(),
        ..Default::default()
    }
}

pub(super) fn listener(name: &str) -> Key {
    Key::new(Kind::Listener, name)
}

pub(super) fn removed(request: &Request) -> Vec<&str> {
    match &request.ask {
        Ask::Changes { unsubscribe, .. } => strs(unsubscribe),
        Ask::World { .. } => panic!("not delta"),
    }
}

pub(super) fn initial(request: &Request) -> Vec<(&str, &str)> {
    match &request.ask {
        Ask::Changes { initial_versions, .. } => initial_versions.iter().map(|(n, v)| (&**n, &**v)).collect(),
        Ask::World { .. } => panic!("not delta"),
    }
}

/// Data errors cost the last good value (gRFC A88).
pub(super) fn strict() -> ServerFeatures {
    ServerFeatures { fail_on_data_errors: true, ..ServerFeatures::default() }
}
