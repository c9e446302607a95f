//! The loop of the view, in a thread of its own: reads input and state, and draws.
//!
//! Invariants:
//! - The run does not wait while the view draws: the thread draws copies of the run's state.
//! - A change of the view by a key, a saved picture or a new terminal size is drawn at once. All
//!   other changes are drawn with the next of the `PICTURES_PER_SECOND` frames.
//! - The terminal is restored before [`View::close`] returns, and on every error.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use imt_sim::Telemetry;
use parking_lot::Mutex;
use ratatui::Terminal;
use ratatui::backend::Backend;
use ratatui::crossterm::event;
use ratatui::layout::Size;

use crate::keys::{self, Effect};
use crate::state::{Ending, LINES_SHOWN, Outcome, SECONDS_SHOWN, State};
use crate::{LogLines, Theme, draw, picture, terminal};

/// Number of frames drawn per second. Drawing them takes about 1 % of a processor core.
const PICTURES_PER_SECOND: u32 = 5;
/// Longest wait for an input, after which the loop checks if the view must end.
const INPUT_WAIT: Duration = Duration::from_millis(50);

/// Time for which the message about saving a picture is shown, long enough to read a path.
const NOTICE: Duration = Duration::from_secs(4);

/// Sources of the shown data, and settings of a view.
pub struct ViewConfig {
    /// Telemetry of the run to show.
    pub telemetry: Telemetry,
    /// Source of the shown log lines.
    pub log: LogLines,
    /// Colours and styles of the view.
    pub theme: Theme,
    /// Address of the web console, if there is one.
    pub console: Option<String>,
    /// Function that is called each time the user presses `q` or Ctrl-C, to end the run, or to
    /// leave the view after the run.
    pub on_end: Box<dyn Fn() + Send>,
}

/// Facts about a run that its telemetry does not contain. The view and its handles share them.
#[derive(Debug, Default)]
struct News {
    ending: Ending,
    outcome: Option<Outcome>,
    folder: Option<PathBuf>,
    is_over: bool,
}

/// An open view, which uses the terminal until it is closed.
pub struct View {
    news: Arc<Mutex<News>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl View {
    /// Switches the terminal to the view and shows the run until [`View::close`].
    ///
    /// # Errors
    ///
    /// Returns an error if the terminal cannot be switched or no thread can be started.
    pub fn open(config: ViewConfig) -> io::Result<Self> {
        let news = Arc::new(Mutex::new(News::default()));
        let screen = terminal::take()?;
        let shared = Arc::clone(&news);
        let thread = std::thread::Builder::new()
            .name("live-view".to_owned())
            .spawn(move || {
                let outcome = show(screen, &config, &shared);
                terminal::restore();
                outcome
            })
            .inspect_err(|_| terminal::restore())?;
        Ok(Self {
            news,
            thread: Some(thread),
        })
    }

    /// Returns a handle that reports facts about the run to the view. The handle may outlive the
    /// view.
    pub fn handle(&self) -> ViewHandle {
        ViewHandle(Arc::clone(&self.news))
    }

    /// Ends the view and restores the terminal.
    ///
    /// # Errors
    ///
    /// Returns an error if the view ended earlier, because of an error of the terminal or a panic.
    pub fn close(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.news.lock().is_over = true;
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let outcome = thread.join();
        terminal::restore();
        outcome.unwrap_or_else(|_| Err(io::Error::other("the live view panicked")))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // An error of the view must not affect the run that drops the view.
        let _ = self.end();
    }
}

/// Reports facts about a run to its view. Clones report to the same view.
#[derive(Debug, Clone)]
pub struct ViewHandle(Arc<Mutex<News>>);

impl ViewHandle {
    /// Makes the view show that the end of the run was requested.
    pub fn set_ending(&self) {
        self.0.lock().ending = Ending::Asked;
    }

    /// Sets the folder in which pictures are saved from now on.
    pub fn set_folder(&self, folder: PathBuf) {
        self.0.lock().folder = Some(folder);
    }

    /// Makes the view show the result of the run.
    pub fn set_outcome(&self, outcome: Outcome) {
        self.0.lock().outcome = Some(outcome);
    }
}

fn show<B>(mut screen: Terminal<B>, config: &ViewConfig, news: &Mutex<News>) -> io::Result<()>
where
    B: Backend,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let period = Duration::from_secs(1) / PICTURES_PER_SECOND;
    let mut state = State {
        console: config.console.clone(),
        ..State::default()
    };
    let mut due = Instant::now();
    let mut notice_ends = due;
    while terminal::is_taken() {
        {
            let news = news.lock();
            if news.is_over {
                break;
            }
            state.ending = news.ending;
            state.outcome = news.outcome;
        }
        if Instant::now() >= due {
            due = Instant::now() + period;
            state.run = config.telemetry.snapshot(SECONDS_SHOWN, LINES_SHOWN);
            state.log = config.log.newest(LINES_SHOWN);
            if Instant::now() >= notice_ends {
                state.notice = None;
            }
            screen
                .draw(|frame| draw(frame, &state, config.theme))
                .map_err(io::Error::other)?;
        }
        if !event::poll(INPUT_WAIT)? {
            continue;
        }
        match keys::apply(&event::read()?, &mut state) {
            Effect::Nothing => {}
            Effect::Redraw => due = Instant::now(),
            Effect::End => (config.on_end)(),
            Effect::Save => {
                state.notice = Some(save(&state, screen.size().map_err(io::Error::other)?, news));
                notice_ends = Instant::now() + NOTICE;
                due = Instant::now();
            }
        }
    }
    Ok(())
}

/// Saves a picture of the view. Returns a message for the user.
fn save(state: &State, size: Size, news: &Mutex<News>) -> String {
    let Some(folder) = news.lock().folder.clone() else {
        return "The run has no folder yet.".to_owned();
    };
    match picture::save(&folder, state, size) {
        Ok(path) => format!("saved {}", path.display()),
        Err(error) => format!("not saved: {error}"),
    }
}
