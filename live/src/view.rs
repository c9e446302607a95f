//! The loop of the view, in a thread of its own: input, state, picture.
//!
//! Invariants:
//! - The run never waits for the view: the thread only reads copies.
//! - An input or a change of size is drawn at once, everything else `PICTURES_PER_SECOND` times a
//!   second.
//! - The terminal is given back before [`View::close`] returns, and on every error.

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

/// Pictures a second: smooth for the eye, about 1 % of a processor.
const PICTURES_PER_SECOND: u32 = 5;
/// Longest wait for an input, so that the end of the run is noticed soon.
const INPUT_WAIT: Duration = Duration::from_millis(50);

/// Time for which a notice is shown: long enough to read a path.
const NOTICE: Duration = Duration::from_secs(4);

/// Sources and looks of a view.
pub struct ViewConfig {
    /// The run.
    pub telemetry: Telemetry,
    /// The log.
    pub log: LogLines,
    /// Colours.
    pub theme: Theme,
    /// Address of the web console.
    pub console: Option<String>,
    /// Called when the user asks for the end of the run, each time.
    pub on_end: Box<dyn Fn() + Send>,
}

/// Facts about a run that its telemetry does not have.
#[derive(Debug, Default)]
struct News {
    ending: Ending,
    outcome: Option<Outcome>,
    folder: Option<PathBuf>,
    is_over: bool,
}

/// A view that has the terminal.
pub struct View {
    news: Arc<Mutex<News>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl View {
    /// Takes the terminal over and shows the run until [`View::close`].
    ///
    /// # Errors
    ///
    /// The terminal cannot be taken over, or no thread can be started.
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

    /// Returns a handle that can outlive the view.
    pub fn handle(&self) -> ViewHandle {
        ViewHandle(Arc::clone(&self.news))
    }

    /// Ends the view and gives the terminal back.
    ///
    /// # Errors
    ///
    /// The terminal could not be read or written at some time; the view ended then.
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
        // An error of the view is no error of the run that drops it.
        let _ = self.end();
    }
}

/// Tells a view about its run; clones tell the same view.
#[derive(Debug, Clone)]
pub struct ViewHandle(Arc<Mutex<News>>);

impl ViewHandle {
    /// Shows that the end of the run was asked for.
    pub fn set_ending(&self) {
        self.0.lock().ending = Ending::Asked;
    }

    /// Saves pictures in this folder from now on.
    pub fn set_folder(&self, folder: PathBuf) {
        self.0.lock().folder = Some(folder);
    }

    /// Shows the result of the run.
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

/// Saves the picture and returns a sentence about it.
fn save(state: &State, size: Size, news: &Mutex<News>) -> String {
    let Some(folder) = news.lock().folder.clone() else {
        return "The run has no folder yet.".to_owned();
    };
    match picture::save(&folder, state, size) {
        Ok(path) => format!("saved {}", path.display()),
        Err(error) => format!("not saved: {error}"),
    }
}
