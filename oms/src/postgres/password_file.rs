//! Reads the password file that PostgreSQL's clients use, with lines of
//! `host:port:database:user:password`.
//!
//! **Invariants**
//! - A file to which users other than its owner have access is refused.
//! - A backslash escapes the next character. Each of the first four fields matches every value if
//!   it is a single `*` without a backslash.
//!
//! libpq's default path in the home folder is not used. The file must be named by `passfile=` or
//! `PGPASSFILE`.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::runtime::regular_file;

/// Maximum size of a password file in bytes. A typical line has less than a hundred bytes.
const FILE_BYTES_MAX: u64 = 256 * 1_024;

/// Reads a password file. Fails if users other than its owner have access to it.
pub(super) fn read(path: &Path) -> std::io::Result<String> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            "others can read it; run chmod 600 on it",
        ));
    }
    let bytes = regular_file::read(path, FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// Returns the password of the first line that matches host, port, database and user, in this
/// order in `wanted`. `None` if no line matches.
pub(super) fn find(lines: &str, wanted: [&str; 4]) -> Option<String> {
    let rest_of = |line: &str| {
        let mut fields = fields_of(line).into_iter();
        let matches = wanted.iter().all(|wanted| {
            fields
                .next()
                .is_some_and(|field| field == Field::Any || field == Field::Text((*wanted).to_owned()))
        });
        match fields.next() {
            Some(Field::Text(password)) if matches => Some(password),
            Some(Field::Any) if matches => Some("*".to_owned()),
            _ => None,
        }
    };
    let is_entry = |line: &&str| !line.is_empty() && !line.starts_with('#');
    lines.lines().filter(is_entry).find_map(rest_of)
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Any,
    Text(String),
}

/// Splits a line at colons that are not escaped by a backslash.
fn fields_of(line: &str) -> Vec<Field> {
    let (mut fields, mut text, mut is_escaped) = (Vec::new(), String::new(), false);
    let mut has_escape = false;
    for character in line.chars() {
        match character {
            '\\' if !is_escaped => {
                is_escaped = true;
                has_escape = true;
                continue;
            }
            ':' if !is_escaped => {
                fields.push(field_of(std::mem::take(&mut text), has_escape));
                has_escape = false;
            }
            _ => text.push(character),
        }
        is_escaped = false;
    }
    fields.push(field_of(text, has_escape));
    fields
}

fn field_of(text: String, has_escape: bool) -> Field {
    if text == "*" && !has_escape {
        Field::Any
    } else {
        Field::Text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_line_gives_the_password() {
        let lines = "# comment\n\ndb1:5432:shop:ann:one\ndb1:*:*:ann:two\\:with\\\\both\n*:*:*:*:*\nbroken\n";
        for (wanted, expected) in [
            (["db1", "5432", "shop", "ann"], "one"),
            (["db1", "1", "shop", "ann"], "two:with\\both"),
            (["db2", "1", "shop", "ann"], "*"),
        ] {
            assert_eq!(find(lines, wanted).as_deref(), Some(expected), "{wanted:?}");
        }
        assert_eq!(find("db1:1:shop:ann:x", ["db1", "1", "shop", "bob"]), None);
        assert_eq!(find("\\*:1:shop:ann:x", ["db1", "1", "shop", "ann"]), None);
        assert_eq!(find("db1:1:shop", ["db1", "1", "shop", "ann"]), None);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwords");
        std::fs::write(&path, "a:1:b:c:d").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap(), "a:1:b:c:d");
    }
}
