//! The commands of the binary that ask a running control plane.

pub(crate) mod ask;
pub(crate) mod status;
