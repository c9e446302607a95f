//! Tests that the text of `/metrics` follows rules like those of `promtool check metrics`.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::World;

/// Suffixes that the samples of a histogram add to its name.
const HISTOGRAM_ENDINGS: [&str; 3] = ["_bucket", "_count", "_sum"];
/// Words that no metric name may have: abbreviated units, units that are no base units, and types
/// of metrics.
const WRONG_WORDS: [&str; 14] = [
    "ms",
    "us",
    "ns",
    "milliseconds",
    "microseconds",
    "minutes",
    "hours",
    "kb",
    "mb",
    "kilobytes",
    "counter",
    "gauge",
    "histogram",
    "summary",
];

#[tokio::test]
async fn metrics_follow_the_conventions_of_prometheus() {
    let world = World::start().await;
    world.shop.stocks("7,1,10\n", None).await;
    assert_eq!(world.shop.order("1", &[(7, 1)]).await.status, 200);
    let reply = world.shop.get("/metrics").await;
    assert_eq!(
        reply.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helps = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && helps.insert(name), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helps.contains(name), "HELP comes first: {line}");
            assert_eq!(types.insert(name, kind), None, "{line}");
        } else {
            let (labelled, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(labelled), "a series twice: {line}");
        }
    }
    for labelled in &series {
        let name = labelled.split('{').next().unwrap();
        let ending = HISTOGRAM_ENDINGS
            .iter()
            .find_map(|ending| name.strip_suffix(ending));
        let family = ending.filter(|family| types.get(family) == Some(&"histogram"));
        let family = family.unwrap_or(name);
        let kind = types.get(family).unwrap_or_else(|| panic!("{name} has no TYPE"));
        assert_eq!(
            family.ends_with("_total"),
            *kind == "counter",
            "{family} is a {kind}"
        );
        let wrong = family.split('_').find(|part| WRONG_WORDS.contains(part));
        assert_eq!(wrong, None, "{family}");
        assert!(
            family
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{family}"
        );
    }
    for name in [
        "imt_build_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "imt_request_duration_seconds",
    ] {
        assert!(types.contains_key(name), "{name} is missing");
    }
}
