//! `imt order list`: lists orders by state, store and time, and follows new orders.
//!
//! The API returns no cursor with the newest order, so a later request cannot continue after this
//! order. To follow, each poll reads all orders since a few seconds before the newest known order,
//! and leaves out the orders that were printed before. The overlap is needed because an order may
//! appear in the list a moment after a younger order of another volume.

use super::{percent_encode, text, time};
use crate::args;
use crate::cluster::NodeAddress;
use crate::error::CliError;
use crate::http::Api;
use crate::output::{self, OutputFormat, TableArgs};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use imt_oms::order::State;
use serde_json::Value;
use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Maximum number of orders that one request returns.
const PAGE_MAX: u64 = 10_000;
/// Length of the period before the newest printed order that each poll reads again, in
/// milliseconds. An order may be missed if it appears in the list after an order that is younger by
/// more than this period.
const OVERLAP_MS: u64 = 5_000;
/// Minimum widths in characters of all columns but the last one with `--follow`. The widths are
/// constants, because later rows are not known yet. A longer cell is not cut and shifts the rest of
/// its row.
const FOLLOWED_WIDTHS: [usize; 5] = [20, 13, 5, 24, 24];

/// Parses the name of an order's state.
fn state() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(State::ALL.map(State::name))
}

/// Arguments of `imt order list`.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Only orders in this state
    #[arg(long, value_parser = state(), hide_possible_values = true)]
    state: Option<String>,
    /// Only orders of this store
    #[arg(long, value_name = "N")]
    store: Option<u32>,
    /// Only orders since this time: a duration before now, such as 10m, or a date
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    since: Option<u64>,
    /// Maximum number of orders
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Print new orders as they arrive, until stopped
    #[arg(short, long, conflicts_with_all = ["limit", "full", "fields", "csv"])]
    follow: bool,
    /// Time between two polls of a followed list, at least 50ms
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = args::interval)]
    interval: Duration,
    #[command(flatten)]
    node: NodeAddress,
    #[command(flatten)]
    table: TableArgs,
}

impl ListArgs {
    fn path(&self, since_ms: Option<u64>, limit: u64, cursor: Option<&str>) -> String {
        let mut path = format!("/orders?limit={limit}");
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", percent_encode(&value)));
            }
        };
        add("state", self.state.clone());
        add("store", self.store.map(|store| store.to_string()));
        add("since", since_ms.map(|since| since.to_string()));
        add("cursor", cursor.map(str::to_owned));
        path
    }
}

pub(super) async fn run(args: &ListArgs, output: OutputFormat) -> Result<(), CliError> {
    let api = super::api(&args.node).await?;
    if args.follow {
        return follow(args, &api, output).await;
    }
    let Listed { orders, has_more } = read(args, &api, args.since, args.limit).await?;
    match output {
        OutputFormat::Json => output::print_json(&orders)?,
        OutputFormat::Table => {
            let mut rows = vec![COLUMNS.map(str::to_owned).to_vec()];
            rows.extend(orders.iter().map(|order| row(order).to_vec()));
            output::print_text(&args.table.render(rows)?)?;
        }
    }
    if has_more {
        output::remark(&format!(
            "there are more than {}; --limit N shows more, --since 10m the latest",
            output::count(args.limit, "order")
        ));
    }
    Ok(())
}

/// Orders in the form in which the API returned them.
struct Listed {
    orders: Vec<Value>,
    /// `true` if further orders match, or if the nodes have not read all orders after these.
    has_more: bool,
}

/// Returns up to `limit` orders that match the state and the store in `args`, created at `since_ms`
/// or later. Reads as many pages as needed.
async fn read(args: &ListArgs, api: &Api, since_ms: Option<u64>, limit: u64) -> Result<Listed, CliError> {
    let (mut orders, mut cursor): (Vec<Value>, Option<String>) = (Vec::new(), None);
    loop {
        let wanted = (limit - orders.len() as u64).min(PAGE_MAX);
        let mut page = api.get(&args.path(since_ms, wanted, cursor.as_deref())).await?;
        if let Some(found) = page["orders"].as_array_mut() {
            orders.append(found);
        }
        match page["next"].as_str() {
            Some(next) if (orders.len() as u64) < limit => cursor = Some(next.to_owned()),
            next => {
                let has_more = next.is_some();
                return Ok(Listed { orders, has_more });
            }
        }
    }
}

async fn follow(args: &ListArgs, api: &Api, output: OutputFormat) -> Result<(), CliError> {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_millis() as u64);
    let mut followed = Followed::since(args.since.unwrap_or(now_ms));
    if output == OutputFormat::Table && !args.table.has_no_header() {
        output::print_text(&followed_line(&COLUMNS.map(str::to_owned)))?;
    }
    loop {
        let listed = read(args, api, Some(followed.since_ms()), u64::MAX).await?;
        for order in followed.new_of(listed.orders) {
            match output {
                OutputFormat::Json => output::print_json_line(&order)?,
                OutputFormat::Table => output::print_text(&followed_line(&row(&order)))?,
            }
        }
        tokio::time::sleep(args.interval).await;
    }
}

/// The orders that were already printed, without those that a later poll cannot return again.
struct Followed {
    start_ms: u64,
    newest_ms: u64,
    printed: HashSet<(u64, String)>,
}

impl Followed {
    fn since(start_ms: u64) -> Self {
        Self {
            start_ms,
            newest_ms: start_ms,
            printed: HashSet::new(),
        }
    }

    /// Returns the time from which the next poll reads orders, in milliseconds since 1970.
    fn since_ms(&self) -> u64 {
        self.newest_ms.saturating_sub(OVERLAP_MS).max(self.start_ms)
    }

    /// Returns those of `orders` that were not printed before, and marks them as printed.
    fn new_of(&mut self, orders: Vec<Value>) -> Vec<Value> {
        let mut new = Vec::new();
        for order in orders {
            let at_ms = order["created_at_ms"].as_u64().unwrap_or(0);
            if self.printed.insert((at_ms, text(&order["id"]))) {
                self.newest_ms = self.newest_ms.max(at_ms);
                new.push(order);
            }
        }
        let since_ms = self.since_ms();
        self.printed.retain(|(at_ms, _)| *at_ms >= since_ms);
        new
    }
}

const COLUMNS: [&str; 6] = ["order", "state", "store", "created", "updated", "products"];

fn row(order: &Value) -> [String; 6] {
    let products = order["products"].as_array().into_iter().flatten();
    let products = products.map(|line| format!("{}x{}", text(&line["quantity"]), text(&line["id"])));
    [
        text(&order["id"]),
        text(&order["state"]),
        text(&order["store_id"]),
        time(&order["created_at_ms"]),
        time(&order["updated_at_ms"]),
        products.collect::<Vec<_>>().join(" "),
    ]
}

fn followed_line(row: &[String; 6]) -> String {
    let cells = row.iter().zip(FOLLOWED_WIDTHS.into_iter().chain([0]));
    let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
    let line = cells.collect::<Vec<_>>().join("  ");
    let line = line.trim_end();
    output::width().map_or_else(|| line.to_owned(), |width| output::cut(line, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order(id: &str, at_ms: u64) -> Value {
        json!({ "id": id, "created_at_ms": at_ms })
    }

    #[test]
    fn a_followed_order_is_printed_once_although_it_is_read_again() {
        let mut followed = Followed::since(10_000);
        let ids = |orders: Vec<Value>| orders.iter().map(|order| text(&order["id"])).collect::<Vec<_>>();
        assert_eq!(followed.since_ms(), 10_000);
        let new = followed.new_of(vec![order("a", 10_000), order("b", 20_000)]);
        assert_eq!(ids(new), ["a", "b"]);
        assert_eq!(followed.since_ms(), 15_000);
        // Order `c` is of another volume. It becomes visible in the list later than the younger
        // order `b`.
        let new = followed.new_of(vec![order("c", 19_000), order("b", 20_000), order("d", 20_001)]);
        assert_eq!(ids(new), ["c", "d"]);
        assert_eq!(
            ids(followed.new_of(vec![order("c", 19_000), order("d", 20_001)])),
            [""; 0]
        );
        let new = followed.new_of(vec![order("e", 60_000)]);
        assert_eq!(ids(new), ["e"]);
        assert_eq!(followed.printed.len(), 1, "older orders are forgotten");
    }

    #[test]
    fn a_followed_line_has_its_columns_in_place() {
        let order = json!({ "id": "17", "state": "paid", "store_id": 4, "created_at_ms": 0, "updated_at_ms": 1,
            "products": [{ "id": 812, "quantity": 3 }] });
        assert_eq!(
            followed_line(&row(&order)),
            "17                    paid           4      1970-01-01T00:00:00.000Z  1970-01-01T00:00:00.001Z  3x812"
        );
    }
}
