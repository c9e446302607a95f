//! The periodic tasks of a volume that is being served.
//!
//! **Invariants**
//! - A job stops when the server of its volume stops. All work that it leaves behind is committed.
//! - A failed pass is logged and repeated, so no job ends early.
//!
//! Deliberately absent: a common scheduler. Each job has its own interval, for its own reason.

pub(crate) mod dispatcher;
pub(crate) mod expiry;
pub(crate) mod retention;
pub(crate) mod stat_import;
