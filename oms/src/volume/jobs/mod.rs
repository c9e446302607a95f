//! The periodic tasks of a volume that is being served, and the task that sends its messages to the
//! warehouse.
//!
//! **Invariants**
//! - A job stops when the server of its volume stops. The next server continues from the committed
//!   rows.
//! - A failed pass is repeated at the next interval, so an error does not end a job.
//!
//! Deliberately absent: a common scheduler. Each job has its own interval, for its own reason.

pub(crate) mod dispatcher;
pub(crate) mod expiry;
pub(crate) mod retention;
pub(crate) mod stat_import;
