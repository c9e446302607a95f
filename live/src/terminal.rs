//! Switches the terminal to the view and restores it.
//!
//! Invariants:
//! - The first call of [`restore`] after [`take`] restores the terminal, and further calls have no
//!   effect. [`restore`] is called at the end of the view, on an error, and on a panic in any
//!   thread. The first signal (such as Ctrl-C) asks the run to end. A second signal ends the
//!   process at once, and [`restore`] is called before that too.
//! - The view checks [`is_taken`] before each frame, so it draws at most one frame after
//!   [`restore`].

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

/// `true` while the terminal is switched to the view.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
static PANIC_HOOK: Once = Once::new();

/// Switches the terminal to the view: raw mode and the alternate screen.
///
/// # Errors
///
/// Returns an error if the terminal refuses one of the two modes, or if its size is unknown. The
/// terminal is then restored.
pub fn take() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    PANIC_HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The terminal is restored before the message of the panic is printed. Otherwise the
            // message would disappear with the alternate screen.
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

/// Returns `true` while the terminal is switched to the view.
pub fn is_taken() -> bool {
    IS_TAKEN.load(Ordering::SeqCst)
}

/// Restores the terminal. Does nothing if the terminal is not switched to the view.
pub fn restore() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // Errors are ignored, because the terminal may have been closed.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}
