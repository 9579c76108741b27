//! What the outcome of a try says of the endpoint that was tried.

use http::StatusCode;

use crate::retry::{FailureKind, TryOutcome};

/// Evidence for or against an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// None: nothing was sent for reasons of our own, the endpoint refused work before beginning it, or its
    /// word is still to come.
    Nothing,
    /// An answer with this HTTP status.
    Status(u16),
    /// An answer with this gRPC status.
    Grpc(i32),
    /// No connection, or it broke.
    Lost,
    /// No answer in time.
    Late,
}

impl Evidence {
    /// What `outcome` says; `grpc` for gRPC requests, whose word is the gRPC status.
    pub fn of(outcome: &TryOutcome<'_>, grpc: bool) -> Self {
        match *outcome {
            TryOutcome::Answer { status, grpc_status, .. } if grpc && status == StatusCode::OK => {
                grpc_status.map_or(Self::Nothing, Self::Grpc)
            }
            TryOutcome::Answer { status, .. } => Self::Status(status.as_u16()),
            TryOutcome::Failure(FailureKind::Refused | FailureKind::Local) => Self::Nothing,
            TryOutcome::Failure(FailureKind::PerTryTimeout) => Self::Late,
            TryOutcome::Failure(FailureKind::ConnectFailed | FailureKind::ResetBeforeRequest | FailureKind::Reset) => {
                Self::Lost
            }
        }
    }

    /// Whether Linkerd's failure accrual counts it as a failure: 5xx, and the gRPC statuses UNKNOWN,
    /// DEADLINE_EXCEEDED, PERMISSION_DENIED, INTERNAL, UNAVAILABLE and DATA_LOSS, as its proxies do unless told otherwise. `None` = it says nothing.
    pub fn is_failure(self) -> Option<bool> {
        match self {
            Self::Nothing => None,
            Self::Status(status) => Some(status >= 500),
            Self::Grpc(status) => Some(matches!(status, 2 | 4 | 7 | 13 | 14 | 15)),
            Self::Lost | Self::Late => Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::retry::http_status_of;

    #[test]
    fn a_host_is_not_blamed_for_what_it_has_not_got() {
        let accrued = |status| Evidence::Grpc(status).is_failure() == Some(true);
        for (status, http, failure) in [
            (0, 200, false),
            (1, 499, false),
            (2, 500, true),
            (3, 400, false),
            (4, 504, true),
            (5, 404, false),
            (7, 403, true),
            (8, 429, false),
            (12, 501, false),
            (13, 500, true),
            (14, 503, true),
            (15, 500, true),
            (16, 401, false),
            (-1, 500, false),
            (99, 500, false),
        ] {
            assert_eq!((http_status_of(status).as_u16(), accrued(status)), (http, failure), "gRPC status {status}");
        }
    }

    #[test]
    fn an_outcome_is_evidence_only_if_the_endpoint_had_its_say() {
        let headers = HeaderMap::new();
        let answer = |status: u16, grpc_status| TryOutcome::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
            grpc_status,
        };
        let failure = TryOutcome::Failure;
        for (outcome, grpc, want) in [
            (answer(503, None), false, Evidence::Status(503)),
            (answer(200, None), true, Evidence::Nothing),
            (answer(200, Some(5)), true, Evidence::Grpc(5)),
            // Not a gRPC server at all: a proxy on the way, say.
            (answer(502, None), true, Evidence::Status(502)),
            (failure(FailureKind::ConnectFailed), false, Evidence::Lost),
            (failure(FailureKind::Reset), false, Evidence::Lost),
            (failure(FailureKind::PerTryTimeout), false, Evidence::Late),
            (failure(FailureKind::Refused), false, Evidence::Nothing),
            (failure(FailureKind::Local), true, Evidence::Nothing),
        ] {
            assert_eq!(Evidence::of(&outcome, grpc), want, "{outcome:?}");
        }
    }
}
