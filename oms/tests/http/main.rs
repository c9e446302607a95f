//! Tests of a whole node over real HTTP, with a simulated warehouse.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod alike;
mod api;
mod codings;
mod common;
mod console;
mod direct;
mod documented;
mod faults;
mod hostile;
mod idempotency;
mod metrics;
mod mistakes;
mod pair;
mod refunds;
mod requests;
mod restart;
mod slow;
mod traces;
