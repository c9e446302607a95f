//! The periodic tasks of a served volume.
//!
//! **Invariants**
//! - A job stops when its volume stops, and leaves only committed work behind.
//! - A failed pass is logged and repeated, so that no job ends early.
//!
//! Deliberately absent: a common scheduler. Each job has its own pace and its own reason for it.

pub(crate) mod dispatcher;
pub(crate) mod expiry;
pub(crate) mod retention;
pub(crate) mod stat_import;
