//! Checks the documents against the source tree: linked files and headings, named paths and
//! metrics, and the sections that alerts name must exist. The operations guide must describe all
//! exposed metrics, and the dashboard must draw all of them except for two metrics of the process.
//!
//! Dated notes under `docs/log/` are left out, because they name files that existed on that date.

#![allow(clippy::unwrap_used, reason = "a test stops where it cannot read its input")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use imt_tidy::markdown::{anchors, inline_code, links, names_with_prefix};
use imt_tidy::{files_below, workspace_root};

/// Folders of the source tree. A piece of inline code that begins with one of them is a path,
/// unless it contains a space or `*`.
const FOLDERS: [&str; 14] = [
    ".ci/",
    ".github/",
    "benches/",
    "cli/",
    "data/",
    "docs/",
    "fuzz/",
    "live/",
    "microdb/",
    "oms/",
    "packaging/",
    "ring/",
    "sim/",
    "tidy/",
];

/// Suffixes of the names of a histogram's series.
const HISTOGRAM_ENDINGS: [&str; 3] = ["_bucket", "_count", "_sum"];

fn documents() -> Vec<PathBuf> {
    let root = workspace_root();
    let mut paths = files_below(&root.join("docs"), "md").unwrap();
    paths.retain(|path| !path.starts_with(root.join("docs/log")));
    let others = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    paths.extend(others.map(|name| root.join(name)));
    paths.extend(["microdb", "ring"].map(|name| root.join(name).join("README.md")));
    paths
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace_root())
        .unwrap_or(path)
        .display()
        .to_string()
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut report = String::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            let target = match link.file.as_str() {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let leads = target.exists()
                && (link.anchor.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(&link.anchor));
            if !leads {
                let _ = writeln!(
                    report,
                    "{}:{}: {}#{}",
                    shown(&path),
                    link.line,
                    link.file,
                    link.anchor
                );
            }
        }
    }
    assert!(report.is_empty(), "links without a target:\n{report}");
}

#[test]
fn paths_in_documents_exist() {
    let root = workspace_root();
    let mut report = String::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for (line, code) in inline_code(&text) {
            let is_path = FOLDERS.iter().any(|folder| code.starts_with(folder))
                && !code.contains(|letter: char| letter.is_whitespace() || letter == '*');
            if is_path && !root.join(&code).exists() {
                let _ = writeln!(report, "{}:{line}: {code}", shown(&path));
            }
        }
    }
    assert!(report.is_empty(), "paths that are not in the tree:\n{report}");
}

/// Prefixes of this project's metrics, and of the standard metrics of a process.
const METRIC_PREFIXES: [&str; 2] = ["imt_", "process_"];

/// Returns the metrics that the order management exposes: all string literals that are names with a
/// known prefix.
fn exposed_metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in files_below(&workspace_root().join("oms/src"), "rs").unwrap() {
        let source = fs::read_to_string(&path).unwrap();
        // Names with the prefix `process_` are metrics only in `process_metrics.rs`. In other files
        // such a name may have any meaning.
        let is_of_process = path.ends_with("process_metrics.rs");
        for piece in source.split('"') {
            let is_name = |prefix: &&str| names_with_prefix(piece, prefix) == [piece];
            let prefixes = if is_of_process {
                &METRIC_PREFIXES[..]
            } else {
                &METRIC_PREFIXES[..1]
            };
            if prefixes.iter().any(is_name) {
                names.insert(family(piece));
            }
        }
    }
    names
}

/// Returns the metric of a series: its name without the suffix of a histogram.
fn family(series: &str) -> String {
    let ending = HISTOGRAM_ENDINGS
        .iter()
        .find_map(|ending| series.strip_suffix(ending));
    ending.unwrap_or(series).to_owned()
}

#[test]
fn documents_describe_the_metrics_that_exist() {
    let exposed = exposed_metrics();
    assert!(
        exposed.contains("imt_volume_ready"),
        "metrics were not found: {exposed:?}"
    );
    let read = |name: &str| fs::read_to_string(workspace_root().join("docs").join(name)).unwrap();
    let named = |text: &str| -> BTreeSet<String> {
        let names = METRIC_PREFIXES
            .iter()
            .flat_map(|prefix| names_with_prefix(text, prefix));
        names
            .map(|name| family(&name))
            .filter(|name| name != "imt_oms")
            .collect()
    };
    let described = named(&read("operations.md"));
    let unknown: Vec<_> = described.difference(&exposed).collect();
    assert!(
        unknown.is_empty(),
        "operations.md names metrics that do not exist: {unknown:?}"
    );
    let missing: Vec<_> = exposed.difference(&described).collect();
    assert!(missing.is_empty(), "operations.md lacks metrics: {missing:?}");
    let alerts = named(&read("alerts.yml"));
    let unknown: Vec<_> = alerts.difference(&exposed).collect();
    assert!(
        unknown.is_empty(),
        "alerts.yml names metrics that do not exist: {unknown:?}"
    );
    let drawn = named(&read("grafana/imt-order.json"));
    let unknown: Vec<_> = drawn.difference(&exposed).collect();
    assert!(
        unknown.is_empty(),
        "the dashboard draws metrics that do not exist: {unknown:?}"
    );
    // Operators find a metric on the dashboard. Without a panel, they would have to know its name.
    let missing: Vec<_> = exposed.difference(&drawn).collect();
    let left_out = ["process_threads", "process_virtual_memory_bytes"];
    let missing: Vec<_> = missing
        .into_iter()
        .filter(|name| !left_out.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "the dashboard lacks metrics: {missing:?}");
}

#[test]
fn alerts_name_sections_of_the_operations_guide() {
    let docs = workspace_root().join("docs");
    let alerts = fs::read_to_string(docs.join("alerts.yml")).unwrap();
    let guide = fs::read_to_string(docs.join("operations.md")).unwrap();
    let headings: Vec<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("## ").or(line.strip_prefix("### ")))
        .collect();
    let sections: Vec<&str> = alerts
        .split("Section: ")
        .skip(1)
        .map(|rest| rest.split('.').next().unwrap_or_default())
        .collect();
    assert!(sections.len() > 5, "sections were not found");
    for section in sections {
        assert!(
            headings.contains(&section),
            "operations.md has no section {section:?}"
        );
    }
}
