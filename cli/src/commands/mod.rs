//! The commands, a file for each word after `imt`.

mod chaos;
pub(crate) mod config;
pub(crate) mod db;
pub(crate) mod node;
pub(crate) mod order;
pub(crate) mod ring;
pub(crate) mod sim;
pub(crate) mod tuning;
