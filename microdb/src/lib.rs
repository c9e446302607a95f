//! Under construction.

mod directory;
mod raw;
