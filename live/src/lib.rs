//! Live view of a simulated run in the terminal.
//!
//! The view reads copies of a run's telemetry and draws them a few times a second. The run does not
//! wait while the view draws.
//!
//! - [`state`]: everything that is drawn, as plain data.
//! - [`draw`](mod@draw): draws the state, without IO.
//! - [`keys`]: keys and their effects, without IO.
//! - [`log_lines`]: collects the newest log lines. A line that a program printed directly would
//!   damage the drawn view.
//! - [`theme`]: colours for light and dark terminals, and for terminals without colours.
//! - [`svg`], [`picture`]: pictures of the view for documents.
//! - [`terminal`]: switches the terminal to the view and restores it, also on a panic.
//! - [`view`]: the loop that reads input and draws.
//!
//! This crate measures nothing. `imt-sim` measures, and works without a terminal.
#![forbid(unsafe_code)]

pub mod draw;
mod figures;
pub mod keys;
pub mod log_lines;
pub mod picture;
pub mod state;
pub mod svg;
pub mod terminal;
pub mod theme;
pub mod view;

pub use draw::draw;
pub use log_lines::LogLines;
pub use state::State;
pub use theme::Theme;
pub use view::View;
