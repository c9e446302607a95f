//! A whole node over real HTTP, with a warehouse of its own.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api;
mod common;
mod faults;
mod hostile;
mod idempotency;
mod mistakes;
mod restart;
mod slow;
