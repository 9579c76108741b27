//! What went wrong, whose fault it is and whether trying again is safe.
//!
//! Every failure of the data path is one small struct that implements [`Fault`]; it becomes an HTTP or
//! gRPC status once, at the top of the stack. Refuses to know which transport carries the answer.

use std::error::Error as StdError;
use std::fmt;

/// A boxed error, as Tower uses them.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Whose doing a failure is: decides ejection, retry and alerting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The caller's request or its deadline.
    Caller,
    /// The endpoint or the way to it.
    Upstream,
    /// Our own limits (breaker, queue, budget).
    Local,
    /// Configuration: no route, no such cluster, refused resource.
    Configuration,
}

/// Whether the request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Nothing was sent or the peer said it was not processed.
    Safe,
    /// The peer may have processed it: only for idempotent requests.
    Unsafe,
    /// Sending again cannot help.
    Never,
}

macro_rules! codes {
    ($( $(#[doc = $doc:expr])* $name:ident = $number:literal, $status:literal, $grpc:literal, $flag:literal, $remedy:literal; )*) => {
        /// A stable error code, printed as `MESH-nnnn`; the catalogue is [`Code::ALL`].
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct Code(u16);

        impl Code {
            $( $(#[doc = $doc])* pub const $name: Code = Code($number); )*

            /// Every code with its name, for the catalogue page.
            pub const ALL: &'static [(&'static str, Code)] = &[ $( (stringify!($name), Code::$name) ),* ];

            /// The HTTP status this failure becomes.
            pub fn http_status(self) -> http::StatusCode {
                let status: u16 = match self.0 { $( $number => $status, )* _ => 500 };
                http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// The gRPC status code this failure becomes.
            pub fn grpc_status(self) -> i32 {
                match self.0 { $( $number => $grpc, )* _ => 13 }
            }

            /// Envoy's response flag for access logs and metrics; `-` if none applies.
            pub fn response_flag(self) -> &'static str {
                match self.0 { $( $number => $flag, )* _ => "-" }
            }

            /// What an operator does next.
            pub fn remedy(self) -> &'static str {
                match self.0 { $( $number => $remedy, )* _ => "" }
            }
        }
    };
}

codes! {
    /// The request has no host, or one that cannot be dialled.
    BAD_TARGET = 1001, 400, 3, "-", "name the destination as host:port in the request's URI or Host header";
    /// The control plane knows no such destination.
    NO_LISTENER = 1002, 502, 14, "NR", "check the name and the namespace it is dialled from, and that a Service or ServiceEntry exists";
    /// No configuration arrived in time for this destination.
    CONFIG_PENDING = 1003, 503, 14, "NC", "check that the control plane is reachable; its address and last error are in /config_dump";
    /// The destination has routes and none matches the request.
    NO_ROUTE = 1004, 404, 14, "NR", "add a catch-all route, or ask explain which condition failed";
    /// The route names a cluster that does not exist or was refused.
    NO_CLUSTER = 1005, 503, 14, "NC", "create the subset in a DestinationRule, or fix the destination host of the route";
    /// The route carries an action this library does not perform.
    UNSUPPORTED_ACTION = 1006, 501, 14, "NR", "see the not-enforced report in /config_dump for the route";
    /// Nothing is known of the destination and no control plane could be asked.
    CONTROL_PLANE_UNREACHABLE = 1007, 503, 14, "NC", "check the control plane's address and this process's proof of identity; it is asked again by itself";
    /// A composite filter does not know which filters the request is to pass (gRFC A103).
    NO_FILTERS = 1008, 503, 14, "NC", "give the composite filter's matcher an on_no_match, and this side's filters only; ask explain what it finds";
    /// The cluster has no usable endpoint.
    NO_ENDPOINT = 1101, 503, 14, "UH", "check that the service has ready endpoints and that the subset's labels match";
    /// The connection to the endpoint could not be made.
    CONNECT_FAILED = 1102, 503, 14, "UF", "check that the endpoint listens and that the network lets it through";
    /// Connecting took longer than the connect timeout.
    CONNECT_TIMEOUT = 1103, 503, 14, "UF", "raise connectTimeout or check the network";
    /// The TLS handshake failed.
    TLS_HANDSHAKE = 1104, 503, 14, "UF", "compare both sides' mTLS mode, trust domain and certificate dates";
    /// The peer proved another identity than the policy expects.
    WRONG_PEER_IDENTITY = 1105, 503, 14, "UF", "the endpoint is not who the service says: check its service account";
    /// Policy demands TLS and this process has no certificate yet.
    NO_IDENTITY = 1106, 503, 14, "UF", "wait for the first certificate, or check the CA address and the join token";
    /// The connection broke before an answer came.
    CONNECTION_LOST = 1107, 503, 14, "UC", "the endpoint closed the connection; see its log";
    /// The peer refused the stream before processing it.
    STREAM_REFUSED = 1108, 503, 14, "UR", "safe to retry; the endpoint is draining or at its stream limit";
    /// The names of the cluster's endpoints could not be looked up.
    NAME_UNRESOLVED = 1109, 503, 14, "DF", "check the host name and the DNS servers of this process; it is looked up again within seconds";
    /// Policy says plaintext and the endpoint's own policy mutual TLS. Nothing is sent.
    PLAINTEXT_TO_STRICT = 1110, 503, 14, "UF", "take tls.mode DISABLE out of the DestinationRule, or set PeerAuthentication to PERMISSIVE for the endpoint's port";
    /// The request's scheme is https, and policy says plaintext. Nothing is sent.
    HTTPS_TO_PLAINTEXT = 1111, 503, 14, "UF", "give the destination TLS (tls.mode of a DestinationRule), or ask for http";
    /// The route's timeout ran out.
    TIMEOUT = 1201, 504, 4, "UT", "raise the route's timeout or look at the endpoint's latency";
    /// The caller's own deadline ran out.
    DEADLINE = 1202, 504, 4, "DT", "the caller allowed too little time";
    /// A circuit breaker limit is reached.
    BREAKER_OPEN = 1301, 503, 14, "UO", "raise connectionPool limits or add endpoints";
    /// The local rate limit has no token left.
    RATE_LIMITED = 1302, 429, 14, "RL", "send fewer requests, or raise the token bucket of the local rate limit";
    /// Client-side throttling refused the request: too many of the last ones failed.
    THROTTLED = 1303, 503, 14, "-", "see why the destination's answers fail; requests pass again as they succeed";
    /// As many requests are in flight as the destination's latency allows.
    CONCURRENCY_LIMITED = 1304, 503, 14, "-", "add endpoints, or look at why their latency rose";
    /// The control plane wants this share of requests dropped.
    DROPPED = 1305, 503, 14, "DO", "the control plane sheds load: see drop_overloads of the cluster's endpoints";
    /// The request body failed while being sent.
    REQUEST_BODY = 1401, 400, 1, "DC", "the application's request body returned an error";
    /// The mesh is shutting down.
    DRAINING = 1501, 503, 14, "-", "send to another instance";
    /// A plaintext peer at a port that demands mutual TLS.
    PLAINTEXT_REFUSED = 2001, 403, 16, "-", "give the caller a mesh identity or set PeerAuthentication to PERMISSIVE";
    /// A peer without an acceptable certificate.
    PEER_REFUSED = 2002, 403, 16, "-", "the caller's certificate does not chain to this mesh's trust bundle, or was taken back";
    /// The port demands the word of an external authorizer that nobody knows. What is governed by it is denied.
    AUTHORIZATION_UNENFORCED = 2003, 403, 7, "-", "name the CUSTOM AuthorizationPolicy's provider in the mesh's extensionProviders; see /config_dump";
    /// An authorization policy denies the request. The caller is told no more; the server's log names the rule.
    ACCESS_DENIED = 2004, 403, 7, "-", "see the server's log for the rule that decided, and add the caller to an ALLOW policy";
    /// The target or a header of the request has more than one meaning, so that policy and application might
    /// disagree about it.
    MALFORMED_REQUEST = 2005, 400, 3, "-", "send the path in its normal form, one Host, only hop-by-hop names in Connection, and once what chooses a route";
    /// Routes are attached to the port, and the request has none of them (Linkerd: HTTPRoutes of a Server).
    NO_SERVED_ROUTE = 2006, 404, 12, "NR", "add a rule for this request to an HTTPRoute of the Server";
    /// An external authorizer gave no answer, and its provider does not fail open. The status is the provider's
    /// `statusOnError`, by default this one.
    AUTHORIZER_UNAVAILABLE = 2007, 403, 7, "-", "check that the provider's service runs and answers in time; the server's log has the reason";
    /// A token of the request does not hold, or one is demanded and there is none (RequestAuthentication). The answer says
    /// which, in Envoy's words.
    TOKEN_REFUSED = 2008, 401, 16, "-", "send one token of an issuer that the RequestAuthentication names, signed, in date and for its audience; the server's log has the reason";
    /// The listener has routes, and the request's is none that serves: no virtual host or route matches, or the one that
    /// does has another action than `non_forwarding_action` (gRFC A36).
    NO_INBOUND_ROUTE = 2009, 404, 14, "NR", "have the control plane send a route with non_forwarding_action for this authority and path";
    /// This process listens where the mesh enforces no policy, and was told to be alone. No answer to a request has it:
    /// `/readyz` and the log do.
    OTHER_LISTENERS = 2010, 503, 14, "-", "serve these sockets with the mesh, close them, or list them in MESH_ALLOWED_LISTENERS";
    /// A composite filter of the listener does not know which filters the request is to pass (gRFC A103).
    NO_INBOUND_FILTERS = 2011, 503, 14, "-", "give the composite filter's matcher an on_no_match, and a server's filters only";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MESH-{:04}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A failure with a stable code, a blame and a verdict on retrying.
pub trait Fault: StdError + Send + Sync + 'static {
    /// The stable code.
    fn code(&self) -> Code;
    /// Whose fault it is.
    fn blame(&self) -> Blame;
    /// Whether sending again is safe.
    fn retry(&self) -> Retry;
}
