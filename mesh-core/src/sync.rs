//! The atomics of what threads share on the request path. The feature `_loom` puts loom's in their place, for the test
//! `interleavings`, which plays every order in which threads may come.

#[cfg(feature = "_loom")]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(feature = "_loom"))]
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
