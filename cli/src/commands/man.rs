//! `imt man`: the manual pages, generated from the definitions of the commands.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use clap::Command;
use clap_mangen::Man;
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `imt man`.
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Words of a command, such as `sim run` [default: imt itself]
    #[arg(value_name = "COMMAND", conflicts_with = "to")]
    words: Vec<String>,
    /// Write the pages of all commands to this folder
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

impl ManArgs {
    pub(crate) fn run(&self, root: Command, output: OutputFormat) -> Result<ExitCode, CliError> {
        match &self.to {
            Some(folder) => write_all(root, folder, output)?,
            None => self.print_one(root)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print_one(&self, root: Command) -> Result<(), CliError> {
        let mut root = root.disable_help_subcommand(true);
        root.build();
        let mut command = &root;
        for word in &self.words {
            command = command.find_subcommand(word).ok_or_else(|| {
                CliError::Usage(format!(
                    "there is no command {:?}; imt --help lists all",
                    format!("imt {}", self.words.join(" "))
                ))
            })?;
        }
        let mut page = Vec::new();
        let rendered = page_of(command.clone()).render(&mut page);
        rendered.map_err(|error| CliError::because("cannot make the page", error))?;
        if std::io::stdout().is_terminal() {
            output::remark("this is the source of the page; to read it: imt man | man -l -");
        }
        output::print_bytes(&page)
    }
}

fn page_of(command: Command) -> Man {
    Man::new(command).source(concat!("imt ", env!("CARGO_PKG_VERSION")))
}

fn write_all(root: Command, folder: &Path, output: OutputFormat) -> Result<(), CliError> {
    let failed = |error| CliError::because(format!("cannot write pages to {}", folder.display()), error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut root = root.disable_help_subcommand(true);
    root.build();
    let mut files = Vec::new();
    let mut open = vec![root];
    while let Some(command) = open.pop() {
        open.extend(
            command
                .get_subcommands()
                .filter(|inner| !inner.is_hide_set())
                .cloned(),
        );
        files.push(page_of(command).generate_to(folder).map_err(failed)?);
    }
    files.sort();
    let text = format!(
        "{} in {}; add them to MANPATH as man1/",
        output::count(files.len(), "page"),
        folder.display()
    );
    output::print_either(output, &text, &json!({ "files": files }))
}
