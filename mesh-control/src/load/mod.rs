//! Load reports (LRS): what clients say of the requests they sent, kept as last said and shown to
//! operators.
//!
//! Refuses to know what is made of them: they decide nothing here.

mod book;
mod decode;
mod service;

pub use self::book::LoadReport;
pub(crate) use self::book::{LoadBook, Totals};
pub(crate) use self::service::LoadService;
