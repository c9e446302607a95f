//! Suggestions for mistyped words.
//!
//! clap compares words by common letters, which misses letters that changed places in short words
//! (`rnu` for `run`). This module counts edits instead.

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Returns the known word that needs the fewest edits to become `word`. Returns `None` if even this
/// word needs too many edits.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = match word.chars().count() {
        0..=2 => 1,
        3..=7 => 2,
        _ => 3,
    };
    let distance = |known: &&str| strsim::osa_distance(word, known);
    let found = known.min_by_key(distance)?;
    // A word that needs as many edits as the typed word has letters has nothing in common with it.
    (distance(&found) <= edits_max && distance(&found) < word.chars().count()).then_some(found)
}

/// Adds the nearest subcommand to an error about an unknown subcommand. Adds nothing if no
/// subcommand is near. Suggestions of clap are kept, and other errors are unchanged.
pub(crate) fn improve(mut error: Error, root: &Command, args: &[std::ffi::OsString]) -> Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand).cloned() else {
        return error;
    };
    let has_some = matches!(
        error.get(ContextKind::SuggestedSubcommand),
        Some(ContextValue::Strings(known)) if !known.is_empty()
    );
    if error.kind() != ErrorKind::InvalidSubcommand || has_some {
        return error;
    }
    let mut parent = root;
    for arg in args.iter().skip(1).map_while(|arg| arg.to_str()) {
        if arg == word {
            break;
        }
        parent = parent.find_subcommand(arg).unwrap_or(parent);
    }
    if let Some(nearest) = nearest(&word, parent.get_subcommands().map(Command::get_name)) {
        let suggested = ContextValue::Strings(vec![nearest.to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, suggested);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_swapped_or_missing_letters_finds_its_neighbour() {
        let known = || ["run", "report", "front", "chaos"].into_iter();
        assert_eq!(nearest("rnu", known()), Some("run"));
        assert_eq!(nearest("reprot", known()), Some("report"));
        assert_eq!(nearest("caos", known()), Some("chaos"));
        assert_eq!(nearest("x", known()), None);
        assert_eq!(nearest("frobnicate", known()), None);
        assert_eq!(nearest("", known()), None);
    }

    #[test]
    fn a_near_subcommand_of_the_right_command_is_suggested_and_no_other_one() {
        let root = Command::new("imt")
            .subcommand(Command::new("sim").subcommand(Command::new("run")))
            .subcommand(Command::new("db").subcommand(Command::new("verify")));
        for (args, expected) in [
            (["imt", "sim", "rnu"], Some("'run'")),
            (["imt", "db", "verfiy"], Some("'verify'")),
            (["imt", "db", "frob"], None),
        ] {
            let error = root.clone().try_get_matches_from(args).unwrap_err();
            let args = args.map(std::ffi::OsString::from);
            let text = improve(error, &root, &args).to_string();
            match expected {
                Some(expected) => assert!(text.contains(expected), "{text}"),
                None => assert!(!text.contains("tip") && !text.contains("verify"), "{text}"),
            }
        }
    }
}
