//! Whom CUSTOM policies ask: authorizers that the application brings along, then the services that the mesh's
//! `extensionProviders` name, asked through the mesh as any other service.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_client::Client;
use mesh_core::authz::{ExternalAuthorizer, ExternalAuthorizers};
use mesh_core::policy::AuthorizerProvider;
use mesh_server::ExtAuthz;

pub(crate) struct Authorizers {
    pub(crate) own: HashMap<String, Arc<dyn ExternalAuthorizer>>,
    pub(crate) client: Client,
}

impl ExternalAuthorizers for Authorizers {
    fn authorizer(&self, provider: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        if let Some(own) = self.own.get(&provider.name) {
            return Some(own.clone());
        }
        match ExtAuthz::new(self.client.clone(), provider.service.clone()?) {
            Ok(authorizer) => Some(Arc::new(authorizer)),
            Err(error) => {
                tracing::error!(target: "mesh::audit", provider = provider.name, %error, "what its policies match is denied");
                None
            }
        }
    }
}
