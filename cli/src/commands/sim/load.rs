//! Flags of the load and of the stock, and the scenario that these flags describe. All flags are
//! checked before a server starts or a request is sent.

use crate::error::CliError;
use crate::{args, completion};
use imt_sim::scenario::{Scenario, WarehousePlan};
use imt_sim::thresholds::Threshold;
use imt_sim::warehouse::{Profile, StockShape, UNITS_MAX};
use imt_sim::workload::{Arrivals, Customers, Habits, Load, LoadPhase, Popularity, Replay, Zipf};
use std::path::PathBuf;
use std::time::Duration;

/// Seed of a run if neither a flag nor the scenario gives a seed.
const USUAL_SEED: u64 = 1;
/// Sum of the weights of statistics requests and orders if `--orders` is given. A share therefore
/// has a precision of 0.01 %.
const PARTS: u32 = 10_000;
/// Maximum default warm-up. The default is a tenth of the run, up to this time.
const WARM_UP_MAX: Duration = Duration::from_secs(2);

/// Parses a rate in requests per second.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "not a number of requests per second; for example 100 or 0.5".to_owned())?;
    match rate > 0.0 && rate <= 1_000_000.0 {
        true => Ok(rate),
        false => Err("must be above 0 and at most 1000000 requests per second; for example 100".to_owned()),
    }
}

/// Parses a number above 0.
fn above_zero(text: &str) -> Result<f64, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "not a number; for example 1.1".to_owned())?;
    match number > 0.0 && number.is_finite() {
        true => Ok(number),
        false => Err("must be above 0; for example 1.1".to_owned()),
    }
}

/// Parses a share in percent, such as `5%`. Returns a number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.strip_suffix('%').and_then(|number| number.parse().ok());
    match number {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("must be from 0% to 100%, for example 5%".to_owned()),
    }
}

/// Minimum and maximum number of lines of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BasketSizes {
    min: u32,
    max: u32,
}

/// Parses the number of lines of an order, such as `2` or `1-4`.
fn basket(text: &str) -> Result<BasketSizes, String> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let sizes = min.parse().ok().zip(max.parse().ok());
    let largest = imt_sim::workload::BASKET_MAX as u32;
    match sizes {
        Some((min, max)) if min >= 1 && min <= max && max <= largest => Ok(BasketSizes { min, max }),
        _ => Err(format!("must be from 1 to {largest} lines, for example 2 or 1-4")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ArrivalsArg {
    /// Equal times between requests
    Fixed,
    /// Exponentially distributed times between requests, as of independent customers
    Poisson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ShapeArg {
    /// Constant rate
    Steady,
    /// Rate that grows from a tenth to the full rate
    Ramp,
    /// Peak in the middle fifth of the run
    Spike,
}

/// Flags of the load, shared by all commands that run a shop front.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::commands) struct LoadArgs {
    /// Time during which requests start; requests in flight are finished after it
    #[arg(long, env = "IMT_DURATION", default_value = "30s", value_name = "TIME", value_parser = args::positive_duration, allow_negative_numbers = true)]
    duration: Duration,
    /// Requests per second, independent of the answers
    #[arg(short, long, env = "IMT_RATE", default_value = "100", value_name = "N", value_parser = rate, allow_negative_numbers = true)]
    rate: f64,
    /// Seed of all random choices; the same seed gives the same requests [default: 1]
    #[arg(long, env = "IMT_SEED", value_name = "N", value_parser = args::seed, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Times between requests
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Poisson)]
    arrivals: ArrivalsArg,
    /// Course of the rate over the run
    #[arg(long, value_enum, default_value_t = ShapeArg::Steady)]
    shape: ShapeArg,
    /// Rate of the peak of --shape spike, as a multiple of --rate
    #[arg(long, default_value = "5", value_name = "N", value_parser = above_zero)]
    peak: f64,
    /// Send the requests of a stats.csv again, at the same intervals
    #[arg(long, value_name = "FILE", conflicts_with_all = ["duration", "rate", "arrivals", "shape", "peak"])]
    replay: Option<PathBuf>,
    /// Time from the start that is left out of the latencies [default: a tenth of the run, at most
    /// 2s]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    warm_up: Option<Duration>,
    /// Condition that fails the run, for example 'p99(order) > 5ms'; may be repeated
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<Threshold>,
    /// Send each request to the node that owns its order or the statistics (found by GET /ring),
    /// not all to one node
    #[arg(long)]
    route: bool,
    #[command(flatten)]
    customers: CustomerArgs,
}

/// Flags of the customers.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Customers")]
struct CustomerArgs {
    /// Share of requests that place an order; the others read statistics [default: 2 of 12]
    #[arg(long, hide_short_help = true, value_name = "SHARE", value_parser = share)]
    orders: Option<f64>,
    /// Make product k as popular as 1 / k^S [default: all products are equally popular]
    #[arg(long, hide_short_help = true, value_name = "S", value_parser = above_zero)]
    zipf: Option<f64>,
    /// Lines of an order, for example 2 or 1-4
    #[arg(long, hide_short_help = true, default_value = "2", value_name = "N-M", value_parser = basket)]
    basket: BasketSizes,
    /// Share of orders that are never paid
    #[arg(long, hide_short_help = true, default_value = "0%", value_name = "SHARE", value_parser = share)]
    never_paid: f64,
    /// Share of orders with a payment that is sent twice
    #[arg(long, hide_short_help = true, default_value = "0%", value_name = "SHARE", value_parser = share)]
    paid_twice: f64,
    /// Share of orders with a payment that comes 10 s late
    #[arg(long, hide_short_help = true, default_value = "0%", value_name = "SHARE", value_parser = share)]
    paid_late: f64,
    /// Share of orders with a payment that comes before the order
    #[arg(long, hide_short_help = true, default_value = "0%", value_name = "SHARE", value_parser = share)]
    paid_before: f64,
    /// Share of orders that are cancelled
    #[arg(long, hide_short_help = true, default_value = "0%", value_name = "SHARE", value_parser = share)]
    cancelled: f64,
}

/// Flags of the simulated warehouse's stock.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Stock of a new warehouse")]
pub(in crate::commands) struct StockArgs {
    /// Number of stores [default: 200]
    #[arg(long, hide_short_help = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    stores: Option<u32>,
    /// Maximum units of a product in a store [default: 15]; half of the quantities are 0, the
    /// others random from 1 to N
    #[arg(long, hide_short_help = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(UNITS_MAX)))]
    units: Option<u32>,
}

impl StockArgs {
    /// Returns the shape of the stock with which a new ledger of the warehouse begins.
    pub(in crate::commands) fn shape(&self) -> StockShape {
        let usual = StockShape::default();
        StockShape {
            stores: self.stores.unwrap_or(usual.stores),
            units: self.units.unwrap_or(usual.units),
            ..usual
        }
    }
}

/// Flags that cannot be combined with `--scenario`, because the scenario has these settings.
const DESCRIBED_BY_SCENARIO: [&str; 17] = [
    "duration",
    "rate",
    "arrivals",
    "shape",
    "peak",
    "replay",
    "warm_up",
    "orders",
    "zipf",
    "basket",
    "never_paid",
    "paid_twice",
    "paid_late",
    "paid_before",
    "cancelled",
    "stores",
    "units",
];

/// The flag `--scenario`, and the flags of the load and of the stock, which describe the run if no
/// scenario is named. `--seed`, `--fail-if` and `--route` also apply to a named scenario.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::commands) struct ScenarioArgs {
    /// Built-in scenario (see `imt sim scenarios`) or file, instead of the flags of the load, of
    /// the customers and of the stock; only --seed, --fail-if and --route still apply
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = DESCRIBED_BY_SCENARIO, add = completion::scenarios())]
    scenario: Option<String>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    stock: StockArgs,
}

impl CustomerArgs {
    fn customers(&self) -> Customers {
        let usual = Customers::default();
        let order_parts = |share: f64| (share * f64::from(PARTS)).round() as u32;
        let (stats_parts, order_parts) = match self.orders.map(order_parts) {
            Some(order_parts) => (PARTS - order_parts, order_parts),
            None => (usual.stats_parts, usual.order_parts),
        };
        let zipf = |exponent| Popularity::Zipf(Zipf::new(usual.products, exponent));
        Customers {
            stats_parts,
            order_parts,
            popularity: self.zipf.map_or(Popularity::Uniform, zipf),
            basket_min: self.basket.min,
            basket_max: self.basket.max,
            habits: Habits {
                never_paid: self.never_paid,
                paid_twice: self.paid_twice,
                paid_late: self.paid_late,
                late_by: Duration::from_secs(10),
                paid_before: self.paid_before,
                cancelled: self.cancelled,
            },
            ..usual
        }
    }
}

impl LoadArgs {
    fn phases(&self) -> Vec<LoadPhase> {
        let arrivals = match self.arrivals {
            ArrivalsArg::Fixed => Arrivals::Fixed,
            ArrivalsArg::Poisson => Arrivals::Poisson,
        };
        let steady = |name, rate, duration| LoadPhase::steady(name, rate, duration, arrivals);
        match self.shape {
            ShapeArg::Steady => vec![steady("steady", self.rate, self.duration)],
            ShapeArg::Ramp => vec![LoadPhase {
                rate_end: self.rate,
                ..steady("ramp", self.rate / 10.0, self.duration)
            }],
            ShapeArg::Spike => {
                let side = self.duration * 2 / 5;
                vec![
                    steady("before", self.rate, side),
                    steady("spike", self.rate * self.peak, self.duration - 2 * side),
                    steady("after", self.rate, side),
                ]
            }
        }
    }

    /// Returns the scenario, called `name`, that these flags describe.
    pub(in crate::commands) fn scenario(&self, name: &str) -> Result<Scenario, CliError> {
        let load = match &self.replay {
            Some(path) => Load::Replay(
                Replay::read(path)
                    .map_err(|error| CliError::Usage(format!("--replay {}: {error}", path.display())))?,
            ),
            None => Load::Phases(self.phases()),
        };
        let scenario = Scenario {
            name: name.to_owned(),
            description: String::new(),
            seed: self.seed,
            warm_up: self
                .warm_up
                .unwrap_or_else(|| (load.duration() / 10).min(WARM_UP_MAX)),
            nodes: 0,
            route: self.route,
            load,
            customers: self.customers.customers(),
            warehouse: WarehousePlan {
                profile: Profile::Original,
                ..WarehousePlan::default()
            },
            events: Vec::new(),
            random_events: None,
            thresholds: self.fail_if.clone(),
            toml: String::new(),
        };
        self.checked(scenario)
    }

    /// Returns the scenario, or an error if its load, its customers or its warm-up cannot be used.
    fn checked(&self, scenario: Scenario) -> Result<Scenario, CliError> {
        let fault = scenario.load.fault().or_else(|| scenario.customers.fault());
        if let Some((setting, problem)) = fault {
            return Err(CliError::Usage(format!("{setting}: {problem}")));
        }
        if scenario.warm_up >= scenario.load.duration() {
            let problem = "--warm-up must be shorter than the run, for example 2s of 30s";
            return Err(CliError::Usage(problem.to_owned()));
        }
        Ok(scenario)
    }

    /// Returns the seed that the flag gives, else that of the scenario, else the default.
    pub(in crate::commands) fn seed(&self, scenario: &Scenario) -> u64 {
        self.seed.or(scenario.seed).unwrap_or(USUAL_SEED)
    }
}

impl ScenarioArgs {
    /// Returns the scenario that `--scenario` names, with the thresholds of `--fail-if` added, and
    /// with routing if `--route` is given. Without `--scenario`, returns the scenario that the
    /// flags of the load and of the stock describe.
    pub(in crate::commands) fn scenario(&self) -> Result<Scenario, CliError> {
        let Some(name) = &self.scenario else {
            let mut scenario = self.load.scenario("run")?;
            scenario.warehouse.shape = self.stock.shape();
            return Ok(scenario);
        };
        let mut scenario = Scenario::find(name).map_err(|error| {
            let mut text = match &error {
                // The message below already begins with the flag, so only the problem is taken from
                // the error.
                imt_sim::Error::Config { problem, .. } => problem.clone(),
                error => error.to_string(),
            };
            if let Some(cause) = std::error::Error::source(&error) {
                text = format!("{text}: {cause}");
            }
            CliError::Usage(format!("--scenario: {text}"))
        })?;
        scenario.thresholds.extend(self.load.fail_if.iter().cloned());
        scenario.route |= self.load.route;
        Ok(scenario)
    }

    /// Returns the seed of the run: that of the flag, else that of the scenario, else the default.
    pub(in crate::commands) fn seed(&self, scenario: &Scenario) -> u64 {
        self.load.seed(scenario)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(args: &[&str]) -> Result<Scenario, String> {
        let command =
            ScenarioArgs::augment_args(clap::Command::new("imt")).mut_args(|arg| arg.env(None::<&str>));
        let matches = command
            .try_get_matches_from([&["imt"], args].concat())
            .map_err(|error| error.to_string())?;
        let args = ScenarioArgs::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        args.scenario().map_err(|error| error.to_string())
    }

    #[test]
    fn values_that_cannot_be_used_are_refused_with_an_example() {
        for (args, example) in [
            (&["--rate", "0"][..], "for example 100"),
            (&["--rate", "nan"], "for example 100"),
            (&["--rate", "inf"], "for example 100"),
            (&["--rate", "-5"], "for example 100"),
            (&["--rate", "fast"], "for example 100 or 0.5"),
            (&["--duration", "0s"], "for example 30s"),
            (&["--duration", "10"], "for example 30s"),
            (&["--duration", "soon"], "for example 30s"),
            (&["--basket", "4-2"], "for example 2 or 1-4"),
            (&["--cancelled", "5"], "for example 5%"),
            (&["--zipf", "0"], "for example 1.1"),
            (&["--warm-up", "30s"], "for example 2s of 30s"),
            (&["--fail-if", "p99(ordr) > 5ms"], "column 5"),
            (
                &["--scenario", "calmer"],
                "--scenario: there is no scenario \"calmer\"; built in are calm",
            ),
            (&["--scenario", "calm", "--rate", "5"], "cannot be used with"),
            (&["--scenario", "calm", "--units", "5"], "cannot be used with"),
            (&["--replay", "/nonexistent"], "/nonexistent"),
            (&["--units", "0"], "1..=65535"),
            (&["--units", "65536"], "1..=65535"),
            (&["--stores", "10001"], "1..=10000"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(example), "{args:?}: {error}");
        }
    }

    #[test]
    fn shapes_have_the_rates_that_were_asked_for() {
        let rates = |args: &[&str]| match parse(args).unwrap().load {
            Load::Phases(phases) => phases
                .into_iter()
                .map(|p| (p.rate, p.rate_end))
                .collect::<Vec<_>>(),
            Load::Replay(_) => panic!("no replay was asked for"),
        };
        assert_eq!(rates(&[]), [(100.0, 100.0)]);
        assert_eq!(rates(&["--rate", "50", "--shape", "ramp"]), [(5.0, 50.0)]);
        let spike = ["--rate", "50", "--shape", "spike", "--peak", "4"];
        assert_eq!(rates(&spike), [(50.0, 50.0), (200.0, 200.0), (50.0, 50.0)]);
        let whole = parse(&spike).unwrap();
        assert_eq!(whole.load.duration(), Duration::from_secs(30));
        assert_eq!(whole.warm_up, Duration::from_secs(2));
    }

    #[test]
    fn a_share_of_orders_sets_the_mix() {
        let mix = |args: &[&str]| {
            let customers = parse(args).unwrap().customers;
            (customers.stats_parts, customers.order_parts)
        };
        assert_eq!(mix(&[]), (10, 2));
        assert_eq!(mix(&["--orders", "0%"]), (10_000, 0));
        assert_eq!(mix(&["--orders", "100%"]), (0, 10_000));
        assert_eq!(mix(&["--orders", "2.5%"]), (9_750, 250));
    }

    #[test]
    fn flags_set_the_stores_and_the_units_of_the_stock() {
        let shape = |args: &[&str]| parse(args).unwrap().warehouse.shape;
        assert_eq!(shape(&[]), StockShape::default());
        let shape = shape(&["--stores", "8", "--units", "50000"]);
        assert_eq!((shape.products, shape.stores, shape.units), (10_000, 8, 50_000));
    }

    #[test]
    fn a_scenario_keeps_its_thresholds_beside_those_of_flags() {
        let scenario = parse(&["--scenario", "calm", "--fail-if", "late > 9", "--seed", "4"]).unwrap();
        assert_eq!(scenario.name, "calm");
        let thresholds: Vec<String> = scenario.thresholds.iter().map(ToString::to_string).collect();
        assert!(
            thresholds.contains(&"findings > 0".to_owned()) && thresholds.contains(&"late > 9".to_owned())
        );
    }
}
