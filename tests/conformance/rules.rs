//! What a control plane demands of every request on a stream, whatever the case is about.

use std::collections::{BTreeMap, VecDeque};

use mesh_discovery::xds::{Ask, Request, Response};

/// What has been said on one stream.
#[derive(Default)]
pub(crate) struct Rules {
    /// The node has been sent.
    introduced: bool,
    types: BTreeMap<&'static str, Talk>,
}

/// The same of one type.
#[derive(Default)]
struct Talk {
    /// A request has come.
    started: bool,
    /// Nonce and version of what was sent and has not been answered.
    open: VecDeque<(String, String)>,
    /// The newest nonce that was answered, and the version it was answered with (state of the world).
    nonce: String,
    version: String,
}

impl Rules {
    /// A response is sent.
    pub(crate) fn sends(&mut self, type_url: &'static str, response: &Response) {
        let talk = self.types.entry(type_url).or_default();
        talk.open.push_back((response.nonce.clone(), response.version.clone()));
    }

    /// Judges a request; the error names the rule and where it is from.
    pub(crate) fn hears(&mut self, request: &Request) -> Result<(), String> {
        if std::mem::replace(&mut self.introduced, true) == request.node.is_some() {
            return Err("gRFC A27: the node is in the first request of a stream and in no other".to_owned());
        }
        if request.error.is_some() && request.nonce.is_empty() {
            return Err("xDS, ACK and NACK: a refusal has the nonce of what it refuses".to_owned());
        }
        let talk = self.types.entry(request.type_url).or_default();
        let first = !std::mem::replace(&mut talk.started, true);
        match &request.ask {
            Ask::World { version, .. } => talk.world(request, version, first),
            Ask::Changes { initial_versions, .. } => {
                if !initial_versions.is_empty() && !first {
                    return Err(
                        "xDS, incremental: initial_resource_versions are in the first request of a type".to_owned()
                    );
                }
                talk.changes(request)
            }
        }
    }
}

impl Talk {
    /// Every response is answered once and in order; what changes the subscription has no nonce.
    fn changes(&mut self, request: &Request) -> Result<(), String> {
        if request.nonce.is_empty() {
            return Ok(());
        }
        let next = self.open.pop_front().map(|(nonce, _)| nonce);
        match next.as_ref() == Some(&request.nonce) {
            true => Ok(()),
            false => Err(format!("xDS, incremental: the next answer is to {next:?} and not to {:?}", request.nonce)),
        }
    }

    /// Every request repeats the newest nonce that the client has seen, and the newest version that it accepted.
    fn world(&mut self, request: &Request, version: &str, first: bool) -> Result<(), String> {
        if request.nonce == self.nonce {
            // Nothing new was answered: only the subscription may have changed.
            let before = std::mem::replace(&mut self.version, version.to_owned());
            return match first || version == before {
                true => Ok(()),
                false => Err(format!("xDS, version_info: {before:?} became {version:?} without a response")),
            };
        }
        let Some(at) = self.open.iter().position(|(nonce, _)| *nonce == request.nonce) else {
            return Err(format!("xDS, response_nonce: {:?} is old, or of another stream or type", request.nonce));
        };
        // Those before may be answered by this answer alone.
        let passed: Vec<String> = self.open.drain(..at).map(|(_, version)| version).collect();
        let (nonce, sent) = self.open.pop_front().unwrap_or_default();
        let before = std::mem::replace(&mut self.version, version.to_owned());
        self.nonce = nonce;
        let held = version == before || passed.iter().any(|passed| passed == version);
        match &request.error {
            None if version == sent => Ok(()),
            None => Err(format!("xDS, ACK: the version is {sent:?}, and {version:?} was repeated")),
            Some(_) if held => Ok(()),
            Some(_) => Err(format!("xDS, NACK: {version:?} was not accepted before; that was {before:?}")),
        }
    }
}
