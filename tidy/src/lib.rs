//! Reads the sources of this project and measures them, so that a test can hold them to its rules.
//!
//! - [`comments`] finds the comments of a Rust file and their prose.
//! - [`imports`] finds the modules of a crate that each file names.
//! - [`markdown`] finds links, headings and inline code of a document.
//! - [`prose`] counts words and finds long paragraphs, in comments and in Markdown.
//!
//! The crate only reads. It changes no file and knows no exception: the limits, and the crates that
//! do not meet them yet, stand in `tests/tidy.rs`.

pub mod comments;
pub mod imports;
pub mod markdown;
pub mod prose;

use std::path::{Path, PathBuf};

/// The root folder of the workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// All files below `folder` with this extension, sorted by path. Folders named `target` are
/// skipped.
///
/// # Errors
/// Those of reading a folder.
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
