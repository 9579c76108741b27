//! mesh-client
