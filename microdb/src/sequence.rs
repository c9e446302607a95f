//! The number of a commit, as a type of its own.
//!
//! - Most internal code uses plain numbers. The public interface uses this type.
//!
//! Deliberately absent: the subtraction of two sequences. The result would be a count of commits,
//! not the number of a commit.

use std::fmt;
use std::ops::Add;

use serde::{Deserialize, Serialize};

/// The number of a commit: 1 for the first commit of a database, and 1 more for each later commit.
///
/// ```
/// use microdb::Sequence;
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path())?;
/// assert_eq!(db.sequence(), Sequence::ZERO); // no commit yet
/// let events = db.table("events")?;
/// let before = db.sequence();
/// events.put("k", "v")?;
/// assert_eq!(db.sequence(), before.next());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence before the first commit.
    pub const ZERO: Self = Self(0);

    /// Returns the number of the following commit.
    #[must_use]
    pub fn next(self) -> Self {
        self + 1
    }

    /// Returns the number of the commit that is `commits` commits earlier, or zero if there is no
    /// such commit.
    #[must_use]
    pub const fn saturating_sub(self, commits: u64) -> Self {
        Self(self.0.saturating_sub(commits))
    }
}

/// Returns the number of the commit that is `commits` commits later.
impl Add<u64> for Sequence {
    type Output = Self;

    fn add(self, commits: u64) -> Self {
        Self(self.0 + commits)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
