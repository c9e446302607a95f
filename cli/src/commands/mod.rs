//! The commands of `imt`, in files that are named after them. The file `node_args` has flags that
//! several commands share.

pub(crate) mod audit;
mod chaos;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod db;
pub(crate) mod engine;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod node_args;
pub(crate) mod order;
pub(crate) mod ring;
pub(crate) mod sim;
pub(crate) mod volume;
