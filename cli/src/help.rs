//! Layout of help texts.
//!
//! Invariants:
//! - No line is wider than 78 columns, so that help fits a terminal of 80.
//! - `-h` is short: it leaves out the environment variables, and rarely used flags such as the
//!   limits of a node. `--help` shows them.

use clap::Command;
use std::ffi::OsString;

/// Maximum width of a line of a help text, in columns.
pub(crate) const WIDTH: usize = 78;

/// Returns the command with help texts of at most [`WIDTH`] columns. If `-h` is in `args`, the
/// texts do not name environment variables.
pub(crate) fn shaped(command: Command, args: &[OsString]) -> Command {
    let is_short = args.iter().any(|arg| arg == "-h");
    shaped_below(command.max_term_width(WIDTH), is_short)
}

fn shaped_below(command: Command, is_short: bool) -> Command {
    command
        .mut_args(|arg| arg.hide_env_values(true).hide_env(is_short))
        .mut_subcommands(|inner| shaped_below(inner, is_short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Calls `visit` with each command and its path.
    fn for_each(command: &Command, path: &str, visit: &mut impl FnMut(&Command, &str)) {
        visit(command, path);
        for inner in command.get_subcommands() {
            for_each(inner, &format!("{path} {}", inner.get_name()), visit);
        }
    }

    fn whole(args: &[&str]) -> Command {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        let mut command = shaped(crate::Cli::command(), &args);
        command.build();
        command
    }

    #[test]
    fn no_help_text_is_wider_than_78_columns() {
        for args in [&["imt", "-h"][..], &["imt", "--help"]] {
            for_each(&whole(args), "imt", &mut |command, path| {
                let mut command = command.clone();
                for help in [command.render_help(), command.render_long_help()] {
                    for line in help.to_string().lines() {
                        assert!(line.chars().count() <= WIDTH, "{path}: {line}");
                    }
                }
                // The text after the options has the examples. clap would break a wider line in the
                // middle of an example.
                let written = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                for line in written.lines() {
                    assert!(line.chars().count() <= WIDTH, "{path}: {line}");
                }
            });
        }
    }

    #[test]
    fn the_short_help_of_a_run_fits_a_screen_and_names_no_variable() {
        let mut command = whole(&["imt", "-h"]);
        let sim = command.find_subcommand_mut("sim").unwrap();
        let help = sim.find_subcommand_mut("run").unwrap().render_help().to_string();
        assert!(!help.contains("IMT_"), "{help}");
        assert!(
            help.lines().count() <= 70,
            "{} lines: {help}",
            help.lines().count()
        );
        let mut command = whole(&["imt", "--help"]);
        let sim = command.find_subcommand_mut("sim").unwrap();
        let help = sim
            .find_subcommand_mut("run")
            .unwrap()
            .render_long_help()
            .to_string();
        assert!(
            help.contains("[env: IMT_RATE]") && help.contains("--payment-timeout"),
            "{help}"
        );
    }

    /// Splits an example into words as a shell does. An explanation after three blanks is dropped.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        let (mut word, mut quote, mut is_open) = (String::new(), None, false);
        let end = line.find("   ").unwrap_or(line.len());
        for c in line[..end].chars().chain([' ']) {
            match (quote, c) {
                (None, '\'' | '"') => (quote, is_open) = (Some(c), true),
                (Some(open), c) if open == c => quote = None,
                (None, ' ') if is_open || !word.is_empty() => {
                    words.push(std::mem::take(&mut word));
                    is_open = false;
                }
                (None, ' ') => {}
                _ => word.push(c),
            }
        }
        words
    }

    #[test]
    fn every_example_is_accepted() {
        let root = whole(&["imt", "--help"]);
        let mut count = 0;
        for_each(&root, "imt", &mut |command, path| {
            let text = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            // A backslash at the end of a line continues an example on the next line.
            let text = text.replace("\\\n", "");
            for line in text.lines().filter_map(|line| line.strip_prefix("  imt ")) {
                let line = line.split(" | ").next().unwrap_or(line);
                for part in line.split(" && ") {
                    let part = part.strip_prefix("imt ").unwrap_or(part);
                    let shell = |word: &String| matches!(word.as_str(), ">" | "<" | ">>" | "#");
                    let args = words(part).into_iter().take_while(|word| !shell(word));
                    let args: Vec<String> = std::iter::once("imt".to_owned()).chain(args).collect();
                    // Environment variables of the test process must not set flags.
                    let plain = plain(crate::Cli::command());
                    if let Err(error) = plain.try_get_matches_from(&args) {
                        panic!("an example of {path}: {args:?}: {error}");
                    }
                    count += 1;
                }
            }
        });
        assert!(count > 60, "{count} examples were found");
    }

    fn plain(command: Command) -> Command {
        command
            .mut_args(|arg| arg.env(None::<&str>))
            .mut_subcommands(plain)
    }
}
