//! Parses a scenario from TOML.
//!
//! The file is parsed into `serde` types that reject unknown keys. Values that are checked
//! afterwards, or their tables, have the type `Spanned`, which keeps their position in the text. So
//! every error of a check names the line of the value, of its table, or of another value in this
//! table.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{
    NODES_MAX, NodeAction, NodeEvent, RandomEvents, Scenario, ScenarioFault, WarehouseFault, WarehousePlan,
};
use crate::thresholds::Threshold;
use crate::warehouse::{Profile, StockShape};
use crate::workload::{Arrivals, Customers, Habits, Load, LoadPhase, Popularity, Zipf};

/// Maximum length of a time in a scenario, in days: the maximum length of a run. Sums of such times
/// do not overflow.
const DAYS_MAX: u64 = 30;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    description: String,
    seed: Option<u64>,
    warm_up: Option<Spanned<String>>,
    nodes: Option<Spanned<u32>>,
    #[serde(default)]
    route: bool,
    #[serde(default)]
    thresholds: Vec<Spanned<String>>,
    load: Spanned<Vec<LoadTable>>,
    customers: Option<Spanned<CustomersTable>>,
    warehouse: Option<Spanned<WarehouseTable>>,
    #[serde(default)]
    fault: Vec<FaultTable>,
    #[serde(default)]
    event: Vec<EventTable>,
    random_events: Option<RandomEventsTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadTable {
    name: String,
    duration: Spanned<String>,
    rate: Spanned<f64>,
    rate_end: Option<Spanned<f64>>,
    arrivals: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CustomersTable {
    stats_parts: Option<u32>,
    order_parts: Option<u32>,
    products: Option<u32>,
    zipf: Option<f64>,
    basket: Option<[u32; 2]>,
    units: Option<u32>,
    #[serde(default)]
    never_paid: f64,
    #[serde(default)]
    paid_twice: f64,
    #[serde(default)]
    paid_late: f64,
    late_by: Option<Spanned<String>>,
    #[serde(default)]
    paid_before: f64,
    #[serde(default)]
    cancelled: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WarehouseTable {
    profile: Option<Spanned<String>>,
    products: Option<u32>,
    stores: Option<u32>,
    units: Option<u32>,
    restock: Option<bool>,
    snapshot_every: Option<Spanned<String>>,
    stat_file_every: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultTable {
    at: Spanned<String>,
    #[serde(rename = "for")]
    lasts: Spanned<String>,
    profile: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventTable {
    at: Spanned<String>,
    action: Spanned<String>,
    node: Spanned<u32>,
    #[serde(rename = "for")]
    lasts: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RandomEventsTable {
    every: Spanned<String>,
    actions: Vec<Spanned<String>>,
}

/// Checks the parsed tables and values, and converts them into the parts of a scenario. Computes
/// the line of a mistake from its position in the TOML text.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn fault_at(&self, offset: usize, problem: impl Into<String>) -> ScenarioFault {
        let before = self.text.get(..offset).unwrap_or(self.text);
        ScenarioFault {
            line: before.matches('\n').count() as u64 + 1,
            problem: problem.into(),
        }
    }

    fn fault<T>(&self, value: &Spanned<T>, field: &str, problem: impl std::fmt::Display) -> ScenarioFault {
        self.fault_at(value.span().start, format!("{field}: {problem}"))
    }

    fn duration(&self, value: &Spanned<String>, field: &str) -> Result<Duration, ScenarioFault> {
        let given = value.get_ref();
        let problem = match humantime::parse_duration(given) {
            Ok(duration) if duration <= Duration::from_secs(DAYS_MAX * 86_400) => return Ok(duration),
            Ok(_) => format!("{given:?} is longer than {DAYS_MAX} days"),
            Err(_) => format!("{given:?} is no duration such as 30s, 1m or 500ms"),
        };
        Err(self.fault(value, field, problem))
    }

    fn named<T: std::str::FromStr<Err = String>>(
        &self,
        value: &Spanned<String>,
        field: &str,
    ) -> Result<T, ScenarioFault> {
        value
            .get_ref()
            .parse()
            .map_err(|problem| self.fault(value, field, problem))
    }

    fn load(&self, tables: &Spanned<Vec<LoadTable>>) -> Result<Load, ScenarioFault> {
        let mut phases = Vec::new();
        for table in tables.get_ref() {
            let arrivals = match &table.arrivals {
                None => Arrivals::Poisson,
                Some(arrivals) => match arrivals.get_ref().as_str() {
                    "fixed" => Arrivals::Fixed,
                    "poisson" => Arrivals::Poisson,
                    _ => return Err(self.fault(arrivals, "arrivals", "must be fixed or poisson")),
                },
            };
            let rate = *table.rate.get_ref();
            let phase = LoadPhase {
                name: table.name.clone(),
                duration: self.duration(&table.duration, "duration")?,
                rate,
                rate_end: table.rate_end.as_ref().map_or(rate, |end| *end.get_ref()),
                arrivals,
            };
            if let Some((field, problem)) = Load::Phases(vec![phase.clone()]).fault() {
                let place = if field == "rate" {
                    table.rate.span()
                } else {
                    table.duration.span()
                };
                return Err(self.fault_at(place.start, format!("{field}: {problem}")));
            }
            phases.push(phase);
        }
        let load = Load::Phases(phases);
        match load.fault() {
            None => Ok(load),
            Some((field, problem)) => Err(self.fault(tables, field, problem)),
        }
    }

    fn customers(&self, table: &Spanned<CustomersTable>) -> Result<Customers, ScenarioFault> {
        let place = table.span().start;
        let table = table.get_ref();
        let usual = Customers::default();
        let products = table.products.unwrap_or(usual.products);
        let zipf = |exponent| Popularity::Zipf(Zipf::new(products.min(10_000_000), exponent));
        let late_by = table
            .late_by
            .as_ref()
            .map(|value| self.duration(value, "late_by"));
        let [basket_min, basket_max] = table.basket.unwrap_or([usual.basket_min, usual.basket_max]);
        let customers = Customers {
            stats_parts: table.stats_parts.unwrap_or(usual.stats_parts),
            order_parts: table.order_parts.unwrap_or(usual.order_parts),
            products,
            popularity: table.zipf.map_or(Popularity::Uniform, zipf),
            basket_min,
            basket_max,
            units_max: table.units.unwrap_or(usual.units_max),
            habits: Habits {
                never_paid: table.never_paid,
                paid_twice: table.paid_twice,
                paid_late: table.paid_late,
                late_by: late_by.unwrap_or(Ok(Duration::from_secs(10)))?,
                paid_before: table.paid_before,
                cancelled: table.cancelled,
            },
        };
        match customers.fault() {
            None => Ok(customers),
            Some((field, problem)) => Err(self.fault_at(place, format!("customers, {field}: {problem}"))),
        }
    }

    fn warehouse(
        &self,
        table: Option<&Spanned<WarehouseTable>>,
        faults: &[FaultTable],
    ) -> Result<WarehousePlan, ScenarioFault> {
        let mut plan = WarehousePlan::default();
        if let Some(spanned) = table {
            let table = spanned.get_ref();
            if let Some(profile) = &table.profile {
                plan.profile = self.named(profile, "profile")?;
            }
            plan.shape = StockShape {
                products: table.products.unwrap_or(plan.shape.products),
                stores: table.stores.unwrap_or(plan.shape.stores),
                units: table.units.unwrap_or(plan.shape.units),
            };
            if let Some(problem) = plan.shape.fault() {
                return Err(self.fault(spanned, "warehouse", problem));
            }
            plan.restock = table.restock.unwrap_or(plan.restock);
            let every = |value: &Option<Spanned<String>>, field: &str, usual| match value {
                None => Ok(usual),
                Some(value) => match self.duration(value, field)? {
                    Duration::ZERO => Err(self.fault(value, field, "must be above 0")),
                    every => Ok(every),
                },
            };
            plan.snapshot_every = every(&table.snapshot_every, "snapshot_every", plan.snapshot_every)?;
            plan.stat_file_every = every(&table.stat_file_every, "stat_file_every", plan.stat_file_every)?;
        }
        for fault in faults {
            plan.faults.push(WarehouseFault {
                at: self.duration(&fault.at, "at")?,
                lasts: self.duration(&fault.lasts, "for")?,
                profile: self.named::<Profile>(&fault.profile, "profile")?,
            });
        }
        plan.faults.sort_by_key(|fault| fault.at);
        Ok(plan)
    }

    fn events(&self, tables: &[EventTable], nodes: u32) -> Result<Vec<NodeEvent>, ScenarioFault> {
        let mut events = Vec::new();
        for table in tables {
            let node = *table.node.get_ref();
            let action: NodeAction = self.named(&table.action, "action")?;
            let is_further = action == NodeAction::Join && node <= NODES_MAX;
            if node == 0 || (node > nodes && !is_further) {
                let problem = format!("must be from 1 to the number of nodes, which is {nodes}");
                return Err(self.fault(&table.node, "node", problem));
            }
            let lasts = table.lasts.as_ref().map(|value| self.duration(value, "for"));
            events.push(NodeEvent {
                at: self.duration(&table.at, "at")?,
                action,
                node,
                lasts: lasts.unwrap_or(Ok(Duration::ZERO))?,
            });
        }
        events.sort_by_key(|event| event.at);
        Ok(events)
    }

    fn random_events(&self, table: &RandomEventsTable, nodes: u32) -> Result<RandomEvents, ScenarioFault> {
        let every = self.duration(&table.every, "every")?;
        if every.is_zero() {
            return Err(self.fault(&table.every, "every", "must be above 0"));
        }
        if nodes == 0 {
            return Err(self.fault(&table.every, "random_events", "needs nodes = 1 or more"));
        }
        let actions: Vec<NodeAction> = table
            .actions
            .iter()
            .map(|action| self.named(action, "actions"))
            .collect::<Result<_, _>>()?;
        match actions.is_empty() {
            true => Err(self.fault(&table.every, "actions", "must name at least one action")),
            false => Ok(RandomEvents { every, actions }),
        }
    }
}

impl Scenario {
    /// Parses a scenario from the text of a TOML file.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, ScenarioFault> {
        let reader = Reader { text };
        let file: File = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or(0, |span| span.start);
            reader.fault_at(place, error.message())
        })?;
        let nodes = file.nodes.as_ref().map_or(0, |nodes| *nodes.get_ref());
        if let Some(given) = file.nodes.as_ref().filter(|_| nodes > NODES_MAX) {
            return Err(reader.fault(given, "nodes", format!("must be at most {NODES_MAX}")));
        }
        let load = reader.load(&file.load)?;
        let warm_up = match &file.warm_up {
            None => Duration::ZERO,
            Some(value) => reader.duration(value, "warm_up")?,
        };
        if let Some(given) = file.warm_up.as_ref().filter(|_| warm_up >= load.duration()) {
            return Err(reader.fault(given, "warm_up", "must be shorter than the load"));
        }
        let random_events = file
            .random_events
            .as_ref()
            .map(|table| reader.random_events(table, nodes));
        let thresholds = file.thresholds.iter().map(|text| {
            let parsed: Result<Threshold, _> = text.get_ref().parse();
            parsed.map_err(|error| reader.fault(text, "thresholds", error))
        });
        Ok(Self {
            name: name.to_owned(),
            description: file.description,
            seed: file.seed,
            warm_up,
            nodes,
            route: file.route,
            customers: match &file.customers {
                None => Customers::default(),
                Some(table) => reader.customers(table)?,
            },
            warehouse: reader.warehouse(file.warehouse.as_ref(), &file.fault)?,
            events: reader.events(&file.event, nodes)?,
            random_events: random_events.transpose()?,
            thresholds: thresholds.collect::<Result<_, _>>()?,
            load,
            toml: text.to_owned(),
        })
    }
}
