//! [`Published`]: one revision of all resources, each encoded at most once per node scope.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use parking_lot::Mutex;

use super::{Kind, Resource, Resources};
use crate::translate::NodeScope;

/// Scopes remembered per revision. Clients choose their labels, so their number is not ours to trust.
const MAX_SCOPES: usize = 10_000;
/// Resources of one type remembered per scope; nor is the number of names, for hosts that nothing
/// defines can exist too.
const MAX_NAMES: usize = 20_000;

/// One revision of everything. Streams hold on to one and take the next as a whole, so a client never
/// sees parts of two.
pub(crate) struct Published {
    version: String,
    resources: Arc<dyn Resources>,
    scopes: Mutex<HashMap<Arc<NodeScope>, Arc<Scoped>>>,
}

/// What one scope's nodes were told so far.
#[derive(Default)]
struct Scoped {
    encoded: Mutex<[HashMap<Box<str>, Arc<Encoded>>; 4]>,
}

/// A resource with its bytes.
#[derive(Debug)]
pub(crate) struct Encoded {
    resource: Resource,
    any: Any,
}

impl Encoded {
    pub(crate) fn any(&self) -> &Any {
        &self.any
    }

    /// Whether both say the same. The policies are compared, for equal policies may encode to
    /// different bytes (protobuf maps have no order).
    pub(crate) fn same(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.resource == other.resource
    }
}

impl Published {
    /// `version` names the revision to clients and operators.
    pub(crate) fn new(version: String, resources: Arc<dyn Resources>) -> Self {
        Self { version, resources, scopes: Mutex::default() }
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// A view for nodes of one scope.
    pub(crate) fn view<'a>(&'a self, scope: &'a Arc<NodeScope>) -> View<'a> {
        let mut scopes = self.scopes.lock();
        if scopes.len() >= MAX_SCOPES && !scopes.contains_key(scope) {
            // Only a cache: those who use a forgotten part keep it.
            scopes.clear();
        }
        let scoped = scopes.entry(scope.clone()).or_default().clone();
        View { resources: &*self.resources, scope, scoped }
    }
}

/// The resources of one revision as one scope sees them.
pub(crate) struct View<'a> {
    resources: &'a dyn Resources,
    scope: &'a NodeScope,
    scoped: Arc<Scoped>,
}

impl View<'_> {
    /// The resource of that name, if it exists.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<Arc<Encoded>> {
        if let Some(known) = self.scoped.encoded.lock()[kind.index()].get(name) {
            return Some(known.clone());
        }
        let resource = self.resources.resource(self.scope, kind, name)?;
        let encoded = Arc::new(Encoded { any: resource.encode(self.scope.dialect), resource });
        let table = &mut self.scoped.encoded.lock()[kind.index()];
        if table.len() >= MAX_NAMES && !table.contains_key(name) {
            return Some(encoded);
        }
        Some(table.entry(name.into()).or_insert(encoded).clone())
    }
}

impl std::fmt::Debug for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Published").field("version", &self.version).finish_non_exhaustive()
    }
}
