//! Tests that the built-in scenarios can be used, and that mistakes in a scenario file are reported
//! with line and field.

use super::*;
use crate::workload::{Arrivals, Popularity};

const MINIMAL: &str = "description = \"d\"\n[[load]]\nname = \"a\"\nduration = \"30s\"\nrate = 100\n";

fn parse(text: &str) -> Scenario {
    Scenario::parse("test", text).unwrap()
}

fn check(text: &str, line: u64, problem: &str) {
    let fault = Scenario::parse("test", text).unwrap_err();
    assert_eq!(fault.line, line, "{fault:?}");
    assert!(fault.problem.contains(problem), "{fault:?}");
}

#[test]
fn every_built_in_scenario_can_be_used_and_judges_the_audit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/scenarios");
    let files = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(files, BUILT_IN.len(), "each file is compiled in");
    for (name, text) in BUILT_IN {
        let scenario = Scenario::find(name).unwrap();
        assert_eq!((scenario.name.as_str(), scenario.toml.as_str()), (name, text));
        assert!(
            !scenario.description.is_empty() && scenario.description.len() <= 100,
            "{name}"
        );
        let judges = scenario
            .thresholds
            .iter()
            .any(|t| t.to_string() == "findings > 0");
        assert!(judges, "{name}");
        let ends = scenario
            .warehouse
            .faults
            .iter()
            .map(|fault| fault.at + fault.lasts);
        assert!(
            ends.max().unwrap_or_default() < scenario.load.duration(),
            "{name} ends calmly"
        );
    }
    assert!(Scenario::find("node-kill").unwrap().nodes > 0);
}

#[test]
fn absent_values_are_the_originals() {
    let scenario = parse(MINIMAL);
    assert_eq!(scenario.customers, Customers::default());
    assert_eq!(scenario.warehouse, WarehousePlan::default());
    assert_eq!((scenario.nodes, scenario.seed), (0, None));
    let Load::Phases(phases) = &scenario.load else {
        panic!("{scenario:?}");
    };
    assert_eq!(phases[0].arrivals, Arrivals::Poisson);
}

#[test]
fn every_key_of_a_scenario_is_read() {
    let scenario = parse(
        "description = 'd'\nseed = 9\nwarm_up = '1s'\nnodes = 2\nroute = true\nthresholds = ['late > 5']\n\
         [[load]]\nname = 'a'\nduration = '10s'\nrate = 1\nrate_end = 50\narrivals = 'fixed'\n\
         [customers]\nstats_parts = 3\norder_parts = 4\nproducts = 50\nzipf = 1.5\nbasket = [1, 5]\n\
         units = 7\nnever_paid = 0.1\npaid_twice = 0.2\npaid_late = 0.3\nlate_by = '40s'\n\
         paid_before = 0.4\ncancelled = 0.5\n\
         [warehouse]\nprofile = 'fast'\nproducts = 60\nstores = 3\nunits = 900\nrestock = false\n\
         snapshot_every = '2s'\nstat_file_every = '3s'\n\
         [[fault]]\nat = '4s'\nfor = '1s'\nprofile = 'brownout'\n\
         [[fault]]\nat = '2s'\nfor = '1s'\nprofile = 'blackout'\n\
         [[event]]\nat = '5s'\naction = 'kill'\nnode = 2\nfor = '1s'\n\
         [[event]]\nat = '3s'\naction = 'join'\nnode = 3\n",
    );
    assert_eq!(
        (scenario.seed, scenario.warm_up),
        (Some(9), Duration::from_secs(1))
    );
    assert_eq!(scenario.thresholds.len(), 1);
    assert!(scenario.route);
    let customers = &scenario.customers;
    assert_eq!(
        (customers.stats_parts, customers.order_parts, customers.products),
        (3, 4, 50)
    );
    assert!(matches!(&customers.popularity, Popularity::Zipf(zipf) if zipf.exponent() == 1.5));
    assert_eq!(
        (customers.basket_min, customers.basket_max, customers.units_max),
        (1, 5, 7)
    );
    assert_eq!(customers.habits.late_by, Duration::from_secs(40));
    assert_eq!(
        (customers.habits.paid_before, customers.habits.cancelled),
        (0.4, 0.5)
    );
    let profiles: Vec<Profile> = scenario.warehouse.faults.iter().map(|f| f.profile).collect();
    assert_eq!(
        profiles,
        [Profile::Blackout, Profile::Brownout],
        "by their beginnings"
    );
    assert_eq!(scenario.warehouse.shape.cells(), 180);
    assert_eq!(scenario.warehouse.shape.units, 900);
    let actions: Vec<NodeAction> = scenario.node_events(1).iter().map(|e| e.action).collect();
    assert_eq!(actions, [NodeAction::Join, NodeAction::Kill]);
}

#[test]
fn faults_name_their_line_and_field() {
    check("description = 'd'\nspeed = 3\n", 2, "unknown field `speed`");
    check(&format!("{MINIMAL}burst = 2\n"), 6, "unknown field `burst`");
    check(
        &MINIMAL.replace("\"30s\"", "\"soon\""),
        4,
        "duration: \"soon\" is no duration",
    );
    check(&MINIMAL.replace("= 100", "= 0"), 5, "rate: must be above 0");
    check(&MINIMAL.replace("= 100", "= \"fast\""), 5, "invalid type");
    check(
        &MINIMAL.replace("\"30s\"", "\"0s\""),
        4,
        "duration: must be above 0",
    );
    check(
        &format!("{MINIMAL}arrivals = 'bursty'\n"),
        6,
        "arrivals: must be fixed or poisson",
    );
    check(
        &format!("warm_up = '30s'\n{MINIMAL}"),
        1,
        "warm_up: must be shorter",
    );
    check(&format!("nodes = 17\n{MINIMAL}"), 1, "nodes: must be at most 16");
    check(
        &format!("thresholds = ['late > x']\n{MINIMAL}"),
        1,
        "column 8: expected a number",
    );
    let tail = |text: &str| format!("{MINIMAL}{text}");
    check(
        &tail("[customers]\ncancelled = 2.0\n"),
        6,
        "customers, cancelled: 2 is not a share",
    );
    check(
        &tail("[warehouse]\nprofile = 'slow'\n"),
        7,
        "profile: \"slow\" is no warehouse profile",
    );
    check(
        &tail("[warehouse]\nproducts = 0\n"),
        6,
        "warehouse: products x stores",
    );
    for units in ["0", "65536"] {
        check(
            &tail(&format!("[warehouse]\nunits = {units}\n")),
            6,
            "warehouse: units must be from 1 to 65535",
        );
    }
    check(
        &tail("[warehouse]\nsnapshot_every = '0s'\n"),
        7,
        "snapshot_every: must be above 0",
    );
    let event = "[[event]]\nat = '1s'\naction = 'explode'\nnode = 1\n";
    check(&tail(event), 8, "action: \"explode\" is no node action");
    check(
        &tail(&event.replace("explode", "kill")),
        9,
        "node: must be from 1 to the number of nodes",
    );
    let random = "[random_events]\nevery = '1s'\nactions = ['kill']\n";
    check(&tail(random), 7, "random_events: needs nodes");
    let long = "'500000000000years'";
    for (line, field, text) in [
        (7, "every", random.replace("'1s'", long)),
        (7, "late_by", format!("[customers]\nlate_by = {long}\n")),
        (
            7,
            "at",
            format!("[[fault]]\nat = {long}\nfor = '1s'\nprofile = 'blackout'\n"),
        ),
        (
            7,
            "snapshot_every",
            format!("[warehouse]\nsnapshot_every = {long}\n"),
        ),
    ] {
        let problem = format!("{field}: \"500000000000years\" is longer than 30 days");
        check(&tail(&text), line, &problem);
    }
    check(
        &MINIMAL.replace("\"30s\"", long),
        4,
        "duration: \"500000000000years\" is longer than 30 days",
    );
}

#[test]
fn random_events_follow_from_the_seed() {
    let chaos = Scenario::find("chaos").unwrap();
    let events = chaos.node_events(1);
    assert_eq!(events, chaos.node_events(1));
    assert_ne!(events, chaos.node_events(2));
    assert!(events.len() > 10 && events.iter().all(|event| (1..=4).contains(&event.node)));
    assert!(
        events
            .iter()
            .all(|event| event.at + Duration::from_secs(3) <= Duration::from_secs(60))
    );
}

#[test]
fn a_scenario_is_found_by_name_or_path() {
    let error = Scenario::find("calmer").unwrap_err().to_string();
    assert!(error.contains("there is no scenario \"calmer\"") && error.contains("calm, black-friday"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, MINIMAL).unwrap();
    let found = Scenario::find(path.to_str().unwrap()).unwrap();
    assert_eq!(found.name, "mine");
    std::fs::write(&path, "description = 3\n").unwrap();
    let error = Scenario::find(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("mine.toml, line 1"), "{error}");
}
