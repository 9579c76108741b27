//! Tests of the codec: the law over generated policy, bytes that nobody meant well, and resources as
//! other control planes send them.

mod conformance;
mod conformance_cluster;
mod conformance_composite;
mod conformance_inbound_routes;
mod conformance_places;
mod conformance_server;
mod conformance_typed;
mod corpus;
mod envoy;
mod generate;
mod generate_cluster;
mod generate_composite;
mod generate_inbound;
mod golden;
mod hostile;
mod ignored;
mod law;
mod recorded;
mod refusals;
mod refusals_cluster;
mod rows;
mod tcp;
mod unmet;
