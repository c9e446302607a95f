//! What stands in a path and behind its question mark, with faults answered as problems like all others.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Most entries of a page.
const PAGE_MAX: usize = 10_000;
/// Entries of a page that asks for no number.
const PAGE_USUAL: usize = 1_000;

/// The parts of a path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(path)| Path(path))
            .map_err(|fault| Problem::field("path", fault.body_text()))
    }
}

/// The parameters of a query.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Problem> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|axum::extract::Query(query)| Query(query))
            .map_err(|fault| Problem::field("query", fault.body_text()))
    }
}

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
    text.map(|text| text.parse())
        .transpose()
        .map_err(|_| Problem::field(field, "must be a whole number in range"))
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
