//! The decisions of one node about the cluster: which node serves a volume, and to which node a
//! request is sent.
//!
//! **Invariants**
//! - Only the coordinator replaces the cluster's state, which contains the ring. Each change of
//!   ownership takes effect with such a replacement.
//! - Each try to execute a request uses one topology from its beginning to its end.
//! - A node opens and closes volumes only to match the cluster's state. When it stops, it closes
//!   all its volumes.
//!
//! Deliberately absent: locks and files, which the traits of `cluster` hide.

pub(crate) mod coordinator;
mod copying;
pub(crate) mod errand;
pub(crate) mod handle;
pub(crate) mod member;
mod openings;
pub(crate) mod reconciler;
pub(crate) mod remote_volumes;
pub(crate) mod stock_copies;
pub(crate) mod topology;
mod volume_steps;
