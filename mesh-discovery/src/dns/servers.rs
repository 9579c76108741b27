//! The name servers, asked in the order in which they are written, as glibc, Go and c-ares do: the first one alone, and the next
//! one only where it is silent or in trouble. What one says of a name (that there is none, too) is the answer.
//!
//! hickory would ask two at once and take whichever answer comes first: that of a public server, which knows no internal name.
//! Where it asks one after another it ends at a failure, and its time is over at the first silence. So it knows one server at
//! a time here.
//!
//! Refuses to know what is kept, and where else a name may be looked for.

use std::iter::repeat_n;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use mesh_core::source::ResolveError;
use tokio::time::timeout;

/// The name servers of one resolver.
pub(super) struct Servers {
    each: Vec<TokioResolver>,
    attempts: usize,
    /// With whatever is asked on the way: aliases, and over TCP what is too long for UDP.
    patience: Duration,
}

impl Servers {
    /// Each of `servers` is asked as `options` say.
    ///
    /// # Errors
    /// hickory cannot make a resolver of them.
    pub(super) fn new(servers: Vec<NameServerConfig>, options: &ResolverOpts) -> Result<Self, NetError> {
        let attempts = options.attempts.max(1);
        let times = u32::try_from(attempts.saturating_mul(servers.len())).unwrap_or(u32::MAX);
        let patience = options.timeout.saturating_mul(times).min(super::FOREVER);
        let alone = |server| {
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let mut options = options.clone();
            // Before it is asked once more the others are.
            options.attempts = 0;
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options).build()
        };
        let each = servers.into_iter().map(alone).collect::<Result<_, _>>()?;
        Ok(Self { each, attempts, patience })
    }

    /// What the first of them that is not in trouble says of one complete name, with the aliases on the way.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, ResolveError> {
        timeout(self.patience, self.in_order(name, kind)).await.unwrap_or(Err(ResolveError::Timeout))
    }

    async fn in_order(&self, name: &Name, kind: RecordType) -> Result<Lookup, ResolveError> {
        let mut failed = ResolveError::Timeout;
        for server in repeat_n(&self.each, self.attempts).flatten() {
            match ask_one(server, name, kind).await {
                Err(failure @ (ResolveError::Timeout | ResolveError::Failed(_))) => failed = failure,
                answer => return answer,
            }
        }
        Err(failed)
    }
}

async fn ask_one(server: &TokioResolver, name: &Name, kind: RecordType) -> Result<Lookup, ResolveError> {
    let none = match server.lookup(name.clone(), kind).await {
        Ok(found) => return Ok(found),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => none,
        Err(NetError::Timeout) => return Err(ResolveError::Timeout),
        Err(error) => return Err(ResolveError::Failed(error.to_string().into())),
    };
    match none.response_code {
        ResponseCode::NXDomain => Err(ResolveError::NotFound),
        ResponseCode::NoError if ends_in_an_alias(server, &none).await => {
            Err(ResolveError::Failed(format!("the aliases of {name} go round, or are too many").into()))
        }
        ResponseCode::NoError => Err(ResolveError::NoRecords),
        code => Err(ResolveError::Failed(code.to_string().into())),
    }
}

/// Whether nobody knows what the name stands for: hickory follows a few aliases, and says then that there are no records. Who
/// means that adds the zone's SOA record (RFC 2308), mostly; where there is none the name is asked about once more.
async fn ends_in_an_alias(server: &TokioResolver, none: &NoRecords) -> bool {
    let Query { name, .. } = &*none.query;
    none.soa.is_none() && server.lookup(name.clone(), RecordType::CNAME).await.is_ok()
}
