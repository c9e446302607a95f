//! Saves a picture of the view at the current moment in the run's folder: as SVG for readers, and
//! as JSON from which the picture can be drawn again.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Size;

use crate::draw;
use crate::state::{Overlay, Recording, State};
use crate::svg::{self, Paper};
use crate::theme::{Palette, Theme};

/// Maximum number of pictures of one run.
const PICTURES_MAX: u32 = 99;
/// Title of a picture, which screen readers read aloud.
const TITLE: &str = "Live view of a run: requests, orders, ring, warehouse, events and log";

/// Draws a state into a new buffer of the given size.
///
/// # Errors
///
/// Returns no error in practice, because the buffer is in memory.
pub fn drawn(state: &State, size: Size) -> io::Result<Buffer> {
    let backend = TestBackend::new(size.width, size.height);
    let mut screen = Terminal::new(backend).map_err(io::Error::other)?;
    screen
        .draw(|frame| draw(frame, state, Theme::new(Palette::Indexed)))
        .map_err(io::Error::other)?;
    Ok(screen.backend().buffer().clone())
}

/// Returns the picture of a state as an SVG document.
///
/// # Errors
///
/// Returns the errors of [`drawn`].
pub fn svg_of(state: &State, size: Size, paper: Paper) -> io::Result<String> {
    Ok(svg::render(&drawn(state, size)?, paper, TITLE))
}

/// Writes `view-N.svg` and `view-N.json` into a folder and returns the path of the SVG. `N` is the
/// first number from 1 for which no SVG exists.
///
/// # Errors
///
/// Returns an error if a file cannot be written, or if the folder already has 99 pictures.
pub fn save(folder: &Path, state: &State, size: Size) -> io::Result<PathBuf> {
    // The picture is saved without the help window, which would cover it.
    let state = State {
        overlay: Overlay::None,
        ..state.clone()
    };
    let picture = svg_of(&state, size, Paper::Dark)?;
    for number in 1..=PICTURES_MAX {
        let path = folder.join(format!("view-{number}.svg"));
        let mut file = match File::create_new(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        let saved = file.write_all(picture.as_bytes()).and_then(|()| {
            let recording = serde_json::to_string(&Recording::from(state))?;
            std::fs::write(path.with_extension("json"), recording)
        });
        if let Err(error) = saved {
            // An incomplete picture would use up its number, and a reader could take it for whole.
            let _ = std::fs::remove_file(path.with_extension("json"));
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        return Ok(path);
    }
    let text = format!("{} has {PICTURES_MAX} pictures already", folder.display());
    Err(io::Error::other(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_numbered_and_can_be_drawn_again() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size::new(100, 30);
        let mut state = State::default();
        state.run.scenario = "calm".to_owned();
        let first = save(folder.path(), &state, size).unwrap();
        state.run.seed = 7;
        state.overlay = Overlay::Help;
        let second = save(folder.path(), &state, size).unwrap();
        assert!(first.ends_with("view-1.svg") && second.ends_with("view-2.svg"));
        let json = std::fs::read_to_string(second.with_extension("json")).unwrap();
        let again: Recording = serde_json::from_str(&json).unwrap();
        assert_eq!((again.run.scenario.as_str(), again.run.seed), ("calm", 7));
        let drawn = svg_of(&State::from(again), size, Paper::Dark).unwrap();
        assert_eq!(drawn, std::fs::read_to_string(second).unwrap());
    }

    #[test]
    fn a_picture_that_cannot_be_saved_leaves_no_file_and_its_number_free() {
        let folder = tempfile::tempdir().unwrap();
        // A folder has the name of the JSON file, so that file cannot be written.
        let obstacle = folder.path().join("view-1.json");
        std::fs::create_dir(&obstacle).unwrap();
        let size = Size::new(80, 24);
        save(folder.path(), &State::default(), size).unwrap_err();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        std::fs::remove_dir(obstacle).unwrap();
        let saved = save(folder.path(), &State::default(), size).unwrap();
        assert!(saved.ends_with("view-1.svg"), "{saved:?}");
    }

    #[test]
    fn the_picture_of_the_documents_is_drawn_from_its_recording() {
        let recording = include_str!("../../docs/images/live.json");
        let recording: Recording = serde_json::from_str(recording).unwrap();
        let drawn = svg_of(&recording.into(), Size::new(120, 40), Paper::Dark).unwrap();
        // docs/live-view.md has the command that draws the picture again.
        assert!(
            drawn == include_str!("../../docs/images/live.svg"),
            "docs/images/live.svg is not the picture of docs/images/live.json"
        );
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = save(&folder.path().join("none"), &State::default(), Size::new(80, 24));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
