//! Under construction.

mod raw;
