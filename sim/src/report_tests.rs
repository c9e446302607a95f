//! Tests that the report of a complete or killed run and the comparison of two runs can be drawn,
//! and that a report escapes the texts of the run's files.

use super::*;
use crate::telemetry::{EventKind, RouteSecond};

fn folder(data: &std::path::Path) -> RunFolder {
    let facts = RunFacts::new("<calm>", "", 7, "imt sim run --fail-if 'p99(order) > 5ms'");
    let folder = RunFolder::create(data, &facts).unwrap();
    let mut text = series::header();
    for second in 0..40 {
        let mut point = SecondPoint {
            second,
            sent: 100 + second,
            ok: 99,
            failed: 1,
            outbox: 5,
            ..SecondPoint::default()
        };
        point.routes[Route::Order.index()] = RouteSecond {
            requests: 20,
            failed: 0,
            p50_us: 900,
            p99_us: 3_000 + second * 100,
            max_us: 90_000,
        };
        text.push_str(&series::line(&point));
    }
    folder.write(series::FILE, text.as_bytes()).unwrap();
    folder
}

/// Checks that the tags of a page are properly nested and closed.
fn assert_well_formed(page: &str) {
    const EMPTY: [&str; 2] = ["meta", "!DOCTYPE"];
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let inside = tag.split('>').next().unwrap();
        let name = inside
            .split([' ', '/', '\n'])
            .find(|part| !part.is_empty())
            .unwrap();
        if inside.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "in {inside}");
        } else if !inside.ends_with('/') && !EMPTY.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_of_a_run_that_was_killed_shows_its_seconds() {
    let data = tempfile::tempdir().unwrap();
    let page = render(&folder(data.path())).unwrap();
    assert_well_formed(&page);
    for expected in [
        "&lt;calm&gt;",
        "killed before its end",
        "Requests per second",
        "Latency of POST /order",
        "&#39;p99(order) &gt; 5ms&#39;",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(
        !page.contains("Latency of POST /order/{id}/cancel"),
        "no chart without requests"
    );
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org").count()
    );
    assert!(!page.contains("<script"));
}

#[test]
fn the_page_of_a_whole_run_has_results_events_and_the_audit() {
    let data = tempfile::tempdir().unwrap();
    let folder = folder(data.path());
    let summary = serde_json::json!({
        "verdict": "findings", "requests": 4_000, "window_s": 40.0, "drain_s": 3.0, "rate": 100.0,
        "late": 1, "dropped": 0,
        "routes": [{"name": "order", "route": "POST /order", "requests": 800, "ok": 790, "mean_us": 950.0,
                    "errors": {"409 insufficient-stock": 10},
                    "latency": {"p50_us": 900, "p90_us": 1_200, "p99_us": 4_000, "p999_us": 9_000, "max_us": 90_000}}],
        "thresholds": [{"condition": "p99(order) > 5ms", "measured": "4.00ms", "is_missed": false}],
        "orders": {"delivered": 780, "rejected": 10},
        "nodes": [{"name": "node-1", "slots": 8_192}, {"name": "node-2", "slots": 8_192}],
        "warehouse": {"faults": {"504-after-acting": 9}},
        "audit": {"orders": 790, "findings": [{"finding": "order_missing", "order": "17"}],
                  "sentences": ["order 17 was acknowledged and is gone"],
                  "explained": {"17": ["12:00:00 <placed>", "12:00:01 announced"]}},
    });
    folder
        .write("summary.json", summary.to_string().as_bytes())
        .unwrap();
    let event = |kind: EventKind, subject: &str, offset_ms| {
        format!(
            "{offset_ms},{offset_ms},{},{subject},{subject} it was\n",
            kind.name()
        )
    };
    let events = String::from("head\n") + &event(EventKind::Kill, "node-1", 9_000);
    folder.write("events.csv", events.as_bytes()).unwrap();
    let buckets = "route,upto_us,count\norder,900,700\norder,4000,90\nstats,500,1\n";
    folder.write("histograms.csv", buckets.as_bytes()).unwrap();
    let page = render(&folder).unwrap();
    assert_well_formed(&page);
    for expected in [
        "<span class=\"verdict bad\">findings</span>",
        "4,000 requests in a window of 40.0 s (100.0/s)",
        "<td>10</td><td>0.95</td><td>0.90</td><td>1.20</td><td>4.00</td>",
        "kept</span> fail if <code>p99(order) &gt; 5ms</code>",
        "780 orders",
        "8,192 slots",
        "9 calls",
        "order 17 was acknowledged and is gone",
        "12:00:00 &lt;placed&gt;\n12:00:01 announced",
        "order: 409 insufficient-stock <em>10 requests</em>",
        "<dt>Thresholds</dt><dd>1 of 1<small>kept</small>",
        "kill node-1",
        "killed: 9.0 s to 40.0 s",
        "Latency by percentile",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn the_page_of_a_run_with_one_second_has_a_timeline() {
    let data = tempfile::tempdir().unwrap();
    let facts = RunFacts::new("short", "", 7, "imt sim run");
    let folder = RunFolder::create(data.path(), &facts).unwrap();
    let text = series::header() + &series::line(&SecondPoint::default());
    folder.write(series::FILE, text.as_bytes()).unwrap();
    let events = "head\n0,0,load,steady,steady load\n";
    folder.write("events.csv", events.as_bytes()).unwrap();
    let page = render(&folder).unwrap();
    assert!(page.contains("steady: 0.0 s to 1.0 s"), "{page}");
}

#[test]
fn the_page_of_two_runs_shows_both_and_marks_what_became_worse() {
    let data = tempfile::tempdir().unwrap();
    let run = |p99_us: u64| {
        let folder = folder(data.path());
        let summary = serde_json::json!({
            "verdict": "clean", "requests": 4_000, "rate": 100.0, "late": 0, "dropped": 0,
            "lag": {"p99_us": 100},
            "routes": [{"name": "order", "requests": 800, "ok": 800,
                        "latency": {"p50_us": 900, "p99_us": p99_us, "p999_us": 9_000, "max_us": 9_000}}],
            "audit": {"findings": []},
        });
        folder
            .write("summary.json", summary.to_string().as_bytes())
            .unwrap();
        let buckets = format!("route,upto_us,count\norder,900,700\norder,{p99_us},90\n");
        folder.write("histograms.csv", buckets.as_bytes()).unwrap();
        folder
    };
    let (first, second) = (run(4_000), run(8_000));
    let page = render_comparison(&first, &second).unwrap();
    assert_well_formed(&page);
    for expected in [
        "<td>4.00 ms</td><td>8.00 ms</td><td class=\"worse\">+100.0 %</td>",
        "POST /order by percentile",
        "p99 of POST /order",
        "Orders delivered",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    for folder in [&first, &second] {
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        assert!(page.contains(name), "{name}");
    }
}

#[test]
fn a_summary_with_more_good_requests_than_requests_has_no_errors() {
    let data = tempfile::tempdir().unwrap();
    let folder = folder(data.path());
    let summary = serde_json::json!({
        "verdict": "clean", "requests": 3,
        "routes": [{"name": "order", "route": "POST /order", "requests": 3, "ok": 5}],
    });
    folder
        .write("summary.json", summary.to_string().as_bytes())
        .unwrap();
    let page = render(&folder).unwrap();
    assert!(page.contains("<td>3</td><td>0</td>"), "{page}");
}
