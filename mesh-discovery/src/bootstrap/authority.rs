//! One entry of `authorities`: who speaks for the resources of an `xdstp` authority (gRFC A47).

use super::{XdsServer, name};
use crate::json::{At, Invalid};

/// An authority of `xdstp` names, and of dialled destinations of the form `xds://NAME/host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// `client_listener_resource_name_template`: `%s` is the dialled `host:port`, percent-encoded. Default
    /// `xdstp://NAME/envoy.config.listener.v3.Listener/%s`.
    pub client_listener_template: String,
    /// Its control planes in order of preference. Empty = those of the bootstrap's top level.
    pub servers: Vec<XdsServer>,
    /// `fallback_on_reachability_only` (gRFC A95): the next server is used as soon as the one before cannot
    /// be reached, even if every resource is cached. Default false.
    pub fallback_on_reachability_only: bool,
}

impl Authority {
    pub(super) fn read(authority: &str, at: &At<'_>) -> Result<Self, Invalid> {
        at.object()?;
        let client_listener_template = match at.text("client_listener_resource_name_template")? {
            None => name::default_template(authority),
            Some(template) => {
                let begins = name::authority(&template).is_some_and(|named| named == authority);
                if !begins || !template[name::SCHEME.len()..].contains('/') {
                    let field = at.at("client_listener_resource_name_template");
                    return Err(field.invalid(format!("it must begin with xdstp://{authority}/ (gRFC A47)")));
                }
                template
            }
        };
        let servers = at.optional("xds_servers").map(|servers| XdsServer::read_all(&servers)).transpose()?;
        Ok(Self {
            client_listener_template,
            servers: servers.unwrap_or_default(),
            fallback_on_reachability_only: at.boolean("fallback_on_reachability_only")?.unwrap_or_default(),
        })
    }
}
