//! Destinations of one xDS authority (gRFC A47): what is dialled as `xds://NAME/host:port`.
//!
//! Each authority has a client of its own, because `reviews:9080` of one authority and of another are two
//! destinations. The clients share everything else.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_client::{Client, ClientDump};
use mesh_core::id::{InvalidTarget, Target};
use mesh_core::policy::DestinationState;
use mesh_core::source::{DestinationSource, Watched};

/// The client of each authority that the bootstrap declares.
pub(crate) type Authorities = BTreeMap<String, Client>;

/// Asks one authority about every destination.
pub(crate) struct OfAuthority {
    pub(crate) name: String,
    pub(crate) source: Arc<dyn DestinationSource>,
}

impl DestinationSource for OfAuthority {
    fn destination(&self, target: &Target) -> Watched<DestinationState> {
        match target.with_authority(&self.name) {
            Ok(target) => self.source.destination(&target),
            Err(error) => Watched::fixed(DestinationState::Failed(error.to_string().into())),
        }
    }
}

/// The client to dial `target` with.
pub(crate) fn choose<'a>(
    target: &Target,
    plain: &'a Client,
    authorities: &'a Authorities,
) -> Result<&'a Client, InvalidTarget> {
    let Some(name) = target.authority() else { return Ok(plain) };
    authorities.get(name).ok_or_else(|| {
        let known: Vec<_> = authorities.keys().map(String::as_str).collect();
        let reason = match &known[..] {
            [] => "the bootstrap declares no authorities".to_owned(),
            known => format!("the authorities of the bootstrap are {}", known.join(", ")),
        };
        InvalidTarget::new(target.to_string(), reason)
    })
}

/// Everything the clients hold, the authority before the name of the destination.
pub(crate) fn dump(plain: &Client, authorities: &Authorities) -> ClientDump {
    let mut dump = plain.dump();
    for (name, client) in authorities {
        for mut destination in client.dump().destinations {
            destination.target = format!("xds://{name}/{}", destination.target);
            dump.destinations.push(destination);
        }
    }
    dump
}
