//! Applies keys to the state of the view, without IO.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::state::{Overlay, Pane, State};

/// Effect of an input that remains for the loop of the view to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing remains for the loop to do.
    Nothing,
    /// The frame must be drawn again at once.
    Redraw,
    /// A picture of the current moment must be saved.
    Save,
    /// The end of the run must be requested, or after the run, the end of the view.
    End,
}

/// Applies an input to the state of the view.
pub fn apply(event: &Event, state: &mut State) -> Effect {
    match event {
        // Terminals with the enhanced keyboard protocol also report the release of a key, which is
        // ignored.
        Event::Key(key) if key.kind != KeyEventKind::Release => apply_key(*key, state),
        Event::Resize(..) => Effect::Redraw,
        _ => Effect::Nothing,
    }
}

fn apply_key(key: KeyEvent, state: &mut State) -> Effect {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Effect::End,
        KeyCode::Char('q' | 'Q') => Effect::End,
        KeyCode::Char('s' | 'S') => Effect::Save,
        KeyCode::Char('?' | 'h' | 'H') => {
            state.overlay = match state.overlay {
                Overlay::None => Overlay::Help,
                Overlay::Help => Overlay::None,
            };
            Effect::Redraw
        }
        KeyCode::Esc | KeyCode::Enter if state.overlay == Overlay::Help => {
            state.overlay = Overlay::None;
            Effect::Redraw
        }
        KeyCode::Char('l' | 'L') | KeyCode::Tab => {
            state.pane = match state.pane {
                Pane::Events => Pane::Log,
                Pane::Log => Pane::Events,
            };
            Effect::Redraw
        }
        _ => Effect::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: KeyCode, modifiers: KeyModifiers) -> Event {
        Event::Key(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn q_and_ctrl_c_end_the_run_and_s_saves() {
        let mut state = State::default();
        let none = KeyModifiers::NONE;
        assert_eq!(apply(&press(KeyCode::Char('q'), none), &mut state), Effect::End);
        assert_eq!(
            apply(&press(KeyCode::Char('c'), KeyModifiers::CONTROL), &mut state),
            Effect::End
        );
        assert_eq!(
            apply(&press(KeyCode::Char('c'), none), &mut state),
            Effect::Nothing
        );
        let mut release = KeyEvent::new(KeyCode::Char('q'), none);
        release.kind = KeyEventKind::Release;
        assert_eq!(apply(&Event::Key(release), &mut state), Effect::Nothing);
    }

    #[test]
    fn help_and_pane_are_toggled() {
        let mut state = State::default();
        let none = KeyModifiers::NONE;
        assert_eq!(
            apply(&press(KeyCode::Char('?'), none), &mut state),
            Effect::Redraw
        );
        assert_eq!(state.overlay, Overlay::Help);
        assert_eq!(apply(&press(KeyCode::Esc, none), &mut state), Effect::Redraw);
        assert_eq!(state.overlay, Overlay::None);
        assert_eq!(apply(&press(KeyCode::Esc, none), &mut state), Effect::Nothing);
        apply(&press(KeyCode::Char('l'), none), &mut state);
        assert_eq!(state.pane, Pane::Log);
        assert_eq!(apply(&Event::Resize(80, 24), &mut state), Effect::Redraw);
    }
}
