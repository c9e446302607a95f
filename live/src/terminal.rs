//! Takes the terminal over and gives it back.
//!
//! Invariants:
//! - [`restore`] restores the terminal once, at the first of these calls: the view's end, an error,
//!   a panic anywhere, or the exit on a second signal.
//! - Nothing is drawn after [`restore`]: [`is_taken`] is asked before each picture.

use std::io::{self, Stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// `true` while the view has the terminal.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
static PANIC_HOOK: Once = Once::new();

/// Takes the terminal over: raw mode and a screen of its own.
///
/// # Errors
///
/// The terminal refuses a mode; it is given back then.
pub fn take() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    PANIC_HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The message would be lost on the screen that goes away.
            restore();
            usual(panic);
        }));
    });
    IS_TAKEN.store(true, Ordering::SeqCst);
    let taken = enable_raw_mode()
        .and_then(|()| execute!(io::stdout(), EnterAlternateScreen))
        .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
    if taken.is_err() {
        restore();
    }
    taken
}

/// Returns `true` while the view has the terminal.
pub fn is_taken() -> bool {
    IS_TAKEN.load(Ordering::SeqCst)
}

/// Gives the terminal back; does nothing without a view.
pub fn restore() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // Nothing can be done for a terminal that has gone.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}
