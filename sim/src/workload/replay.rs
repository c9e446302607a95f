//! Requests of an earlier run, read from its `stats.csv`, to be sent again. Requests that the
//! earlier run dropped are also in this file, and are sent too.
//!
//! The file has the start and the path of each request. The path of a payment or cancellation
//! contains the id of its order. The file has no bodies, so baskets and transaction ids are drawn
//! from the seed. Orders get new ids, because the order management would answer a known id with its
//! first answer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Result};

/// Maximum number of lines of a file: nearly three hours at 1,000 requests/s, 320 MB in memory
/// after the read.
const LINES_MAX: usize = 10_000_000;

/// A request of an earlier run. `number` identifies the order of the request. Orders are numbered
/// from 0, in the sequence in which their ids first appear in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replayed {
    Stats { product: u32 },
    Order { number: u64 },
    Payment { number: u64 },
    Cancel { number: u64 },
}

/// The requests of an earlier run, ordered by their start times.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    requests: Arc<[(Duration, Replayed)]>,
    /// For each order by number, `true` if the file has a payment of the order.
    paid: Arc<[bool]>,
}

impl Replay {
    /// Reads a file in the format of `stats.csv`.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, or has more than 10,000,000 lines, or if a line is
    /// malformed. The error of a malformed line contains its line number.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut requests = Vec::new();
        // Maps the id of each order in the file to the number of the order in the replay.
        let mut numbers: HashMap<String, u64> = HashMap::new();
        for (line, text) in (1..).zip(BufReader::new(file).lines()) {
            let text = text.map_err(Error::io("read", path))?;
            let malformed = |problem: &str| Error::Malformed {
                path: path.to_owned(),
                line,
                problem: problem.to_owned(),
            };
            if requests.len() == LINES_MAX {
                return Err(malformed("a replay has at most 10,000,000 requests"));
            }
            let (at_ms, id, request_path) = fields(&text).ok_or_else(|| {
                malformed("expected REQUEST_ID,TIMESTAMP_MS,PATH,DURATION_MS,ok|ko,STATUS_OR_REASON")
            })?;
            let mut number_of = |order: &str| {
                let next = numbers.len() as u64;
                *numbers.entry(order.to_owned()).or_insert(next)
            };
            let request = match request_path.split('/').collect::<Vec<_>>()[..] {
                ["", "order"] => Replayed::Order {
                    number: number_of(id),
                },
                ["", "order", order, "payment-callback"] => Replayed::Payment {
                    number: number_of(order),
                },
                ["", "order", order, "cancel"] => Replayed::Cancel {
                    number: number_of(order),
                },
                ["", "aggregate-stats", product] => Replayed::Stats {
                    product: product
                        .parse()
                        .map_err(|_| malformed("the product is not a number"))?,
                },
                _ => return Err(malformed("the path is none that the front sends")),
            };
            requests.push((at_ms, request));
        }
        requests.sort_by_key(|(at_ms, _)| *at_ms);
        let Some(first_ms) = requests.first().map(|(at_ms, _)| *at_ms) else {
            return Err(Error::Malformed {
                path: path.to_owned(),
                line: 1,
                problem: "there is no request to replay".to_owned(),
            });
        };
        let mut paid = vec![false; numbers.len()];
        for (_, request) in &requests {
            if let Replayed::Payment { number } = request {
                paid[*number as usize] = true;
            }
        }
        let requests = requests
            .into_iter()
            .map(|(at_ms, request)| (Duration::from_millis(at_ms - first_ms), request))
            .collect();
        Ok(Self {
            requests,
            paid: paid.into(),
        })
    }

    /// Returns the number of requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Returns `true` if there is no request.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Returns the time from the start of the first request to the start of the last request.
    pub fn duration(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// Returns `true` if the file has a payment of this order.
    pub(super) fn is_paid(&self, number: u64) -> bool {
        self.paid.get(number as usize).copied().unwrap_or_default()
    }

    pub(super) fn get(&self, place: usize) -> Option<(Duration, Replayed)> {
        self.requests.get(place).copied()
    }

    /// Returns the number of distinct orders. The number includes orders of which the file has only
    /// a payment or a cancellation.
    pub(super) fn orders(&self) -> u64 {
        let numbers = self.requests.iter().filter_map(|(_, request)| match request {
            Replayed::Stats { .. } => None,
            Replayed::Order { number } | Replayed::Payment { number } | Replayed::Cancel { number } => {
                Some(number + 1)
            }
        });
        numbers.max().unwrap_or(0)
    }
}

/// Returns time, request id and path of a line; `None` if the line does not have the format.
fn fields(text: &str) -> Option<(u64, &str, &str)> {
    let fields: Vec<&str> = text.split(',').collect();
    let [id, at_ms, path, took_ms, verdict, _] = fields[..] else {
        return None;
    };
    took_ms.parse::<f64>().ok()?;
    (matches!(verdict, "ok" | "ko") && !id.is_empty()).then_some(())?;
    Some((at_ms.parse().ok()?, id, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Replay> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.csv");
        std::fs::write(&path, text).unwrap();
        Replay::read(&path)
    }

    #[test]
    fn requests_come_in_the_order_of_their_starts_and_payments_know_their_order() {
        let replay = read(
            "7,1500,/order,3,ok,200\n\
             8,1000,/aggregate-stats/812,1,ok,200\n\
             900000007,3500,/order/7/payment-callback,2,ko,timed out\n\
             9,2000,/order,3,ko,409\n\
             9,2500,/order/9/cancel,3,ok,200\n",
        )
        .unwrap();
        let ms = Duration::from_millis;
        assert_eq!(
            replay.requests[..],
            [
                (ms(0), Replayed::Stats { product: 812 }),
                (ms(500), Replayed::Order { number: 0 }),
                (ms(1_000), Replayed::Order { number: 2 - 1 }),
                (ms(1_500), Replayed::Cancel { number: 1 }),
                (ms(2_500), Replayed::Payment { number: 0 }),
            ]
        );
        assert_eq!((replay.orders(), replay.duration()), (2, ms(2_500)));
        assert!(replay.is_paid(0) && !replay.is_paid(1));
    }

    #[test]
    fn a_line_that_is_not_of_the_format_is_named() {
        for (text, expected) in [
            ("", "line 1: there is no request"),
            (
                "1,2,/order,3,ok,200\n1,2,/order,3,ok\n",
                "line 2: expected REQUEST_ID",
            ),
            ("1,x,/order,3,ok,200\n", "line 1: expected"),
            ("1,2,/order,3,maybe,200\n", "line 1: expected"),
            ("1,2,/orders,3,ok,200\n", "line 1: the path"),
            ("1,2,/aggregate-stats/x,3,ok,200\n", "line 1: the product"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
