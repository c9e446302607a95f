//! What may stand behind the question mark of a list.

use serde::Deserialize;

use super::problem::Problem;

/// Most entries of a page.
const PAGE_MAX: usize = 10_000;
/// Entries of a page that asks for no number.
const PAGE_USUAL: usize = 1_000;

/// The parameters of all lists, as text, so that a wrong one can be named.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    pub(super) state: Option<String>,
    store: Option<String>,
    since: Option<String>,
    limit: Option<String>,
    pub(super) cursor: Option<String>,
    pub(super) top: Option<String>,
}

fn number<T: std::str::FromStr>(field: &'static str, text: Option<&String>) -> Result<Option<T>, Problem> {
    match text.map(String::as_str) {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Problem::field(field, "must be a whole number in range")),
    }
}

impl ListQuery {
    /// Entries wanted, 1 to 10,000.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        match number("limit", self.limit.as_ref())? {
            None => Ok(PAGE_USUAL),
            Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
            Some(_) => Err(Problem::field("limit", format!("must be 1 to {PAGE_MAX}"))),
        }
    }

    pub(super) fn store(&self) -> Result<Option<u32>, Problem> {
        number("store", self.store.as_ref())
    }

    pub(super) fn since(&self) -> Result<Option<u64>, Problem> {
        number("since", self.since.as_ref())
    }

    pub(super) fn top(&self) -> Result<Option<usize>, Problem> {
        number("top", self.top.as_ref())
    }
}
