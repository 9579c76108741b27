//! mesh-discovery
