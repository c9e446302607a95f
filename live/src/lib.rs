//! Live view of a simulated run in the terminal.
//!
//! The view reads copies of a run's telemetry and draws them a few times a second. The run never
//! waits for the view.
//!
//! - [`state`]: everything that is drawn, as plain data.
//! - [`draw`](mod@draw): draws it; pure.
//! - [`keys`]: keys and their meaning; pure.
//! - [`log_lines`]: the newest lines of the log, which must not tear the picture.
//! - [`theme`]: colours for light and dark terminals, and for none.
//! - [`svg`], [`picture`]: pictures of the view for documents.
//! - [`terminal`]: takes the terminal over and gives it back, also on a panic.
//! - [`view`]: the loop.
//!
//! Absent on purpose: measurements. `imt-sim` measures and works without a terminal.
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
