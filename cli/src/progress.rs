//! Progress displays: a bar if standard error is a terminal, otherwise a log line at intervals.
//! With `--quiet`, nothing is shown. Nothing is ever written to standard output.

use crate::{logging, output};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Minimum time between two log lines about progress, if standard error is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A progress display. Dropping it removes the bar from the terminal.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    lined: Instant,
}

impl Display {
    /// Starts a display of work in `total` units.
    pub(crate) fn new(total: u64) -> Self {
        let is_shown = std::io::stderr().is_terminal() && !output::is_quiet();
        let bar = is_shown.then(|| {
            let bar = logging::progress_display().add(ProgressBar::new(total));
            let template = match output::is_coloured(&std::io::stderr()) {
                true => "[{bar:30.cyan/dim}] {wide_msg}",
                false => "[{bar:30}] {wide_msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self {
            bar,
            lined: Instant::now(),
        }
    }

    /// Shows that `done` of `total` units are finished, with a text. Without a bar, logs only the
    /// text, and at most once in [`LINE_EVERY`].
    pub(crate) fn show(&mut self, done: u64, total: u64, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total.max(1));
                bar.set_position(done.min(total));
                bar.set_message(text.to_owned());
            }
            None if self.lined.elapsed() >= LINE_EVERY => {
                self.lined = Instant::now();
                tracing::info!("{text}");
            }
            None => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
