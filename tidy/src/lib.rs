//! Reads and measures the sources of this project, so that a test can check them against the
//! project's rules.
//!
//! - [`comments`] finds the comments of a Rust file and their prose.
//! - [`imports`] finds the modules of a crate that each file names.
//! - [`markdown`] finds links, headings, inline code and names with a prefix in a document.
//! - [`prose`] counts the words of a text, and finds the paragraphs of a Markdown text.
//!
//! The crate only reads files. The limits, and the exceptions for crates and documents that do not
//! meet them yet, are in `tests/tidy.rs`.

pub mod comments;
pub mod imports;
pub mod markdown;
pub mod prose;

use std::path::{Path, PathBuf};

/// Returns the root folder of the workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Returns all files below `folder` with this extension, sorted by path. Folders named `target` are
/// skipped.
///
/// # Errors
/// Returns an error if a folder cannot be read.
pub fn files_below(folder: &Path, extension: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
