//! Linkerd's inbound policy (`policy.linkerd.io`): which ports are guarded, what can be asked for at them, and who may.
//!
//! Only a Server closes anything. One that cannot be read closes what it selects; an authorization that cannot be read
//! opens nothing, so neither needs more care than that.

mod authorization;
mod grpc_route;
mod rate_limit;
mod route;
mod server;
mod values;

pub(crate) use self::authorization::{
    Authentication, LinkerdAuthorization, MeshTlsAuthentication, NetworkAuthentication, RouteKind, ServerAuthorization,
    ServerRef, Target,
};
pub(crate) use self::rate_limit::LinkerdRateLimit;
pub(crate) use self::route::{GatewayGrpcRoute, GatewayHttpRoute, LinkerdRoute};
pub use self::server::AccessPolicy;
pub(crate) use self::server::{DEFAULT_POLICY, Server, ServerPort};
pub(crate) use self::values::all_of_principals;
