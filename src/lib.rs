//! mesh

pub mod manual;
