//! The web console in a browser: it loads without script errors, shows a joining node, finds an
//! order, and names its controls for assistive technology. It connects again after a lost
//! connection, shows markup in an order id as text, and fits the window of a phone.

use crate::support::browser::Browser;
use crate::support::{Server, free_address, http, until};
use serde_json::{Value, json};

fn node(data: &str, name: &str, listen: &str, warehouse: &str) -> Server {
    Server::node(
        name,
        data,
        &["--listen", listen, "--warehouse", &format!("http://{warehouse}")],
    )
}

/// Searches for an order by keyboard only.
fn search(browser: &mut Browser, id: &str) {
    browser.value("document.activeElement.blur()");
    browser.press("/", "/");
    assert_eq!(browser.value("document.activeElement.id"), "order-id");
    browser.type_text(id);
    browser.press("Enter", "\r");
}

/// Returns the states that the table of nodes shows.
fn states(browser: &mut Browser) -> Value {
    browser.value("[...document.querySelectorAll('#nodes .badge')].map((one) => one.textContent)")
}

/// Returns the roles and names of the page's elements, as assistive technology sees them.
fn accessible(browser: &mut Browser) -> Vec<(String, String)> {
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().into_iter().flatten();
    let seen = nodes.filter(|node| node["ignored"] != true);
    let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
    seen.map(|node| (text(&node["role"]), text(&node["name"])))
        .collect()
}

#[test]
#[ignore = "needs Chromium"]
fn the_console_shows_joins_and_orders_without_a_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let (listen, warehouse) = (free_address(), free_address());
    let first = node(data, "alpha", &listen, &warehouse);
    let mut browser = Browser::start(1280, 800);
    browser.open(&first.url());
    until("the console is live", || browser.text("#link-text") == "live");
    assert_eq!(browser.text("#me"), "alpha");

    // Measures and prints the time from the first node's event about the join of the second node to
    // the new row in the table of nodes.
    browser.value(
        "globalThis.shownAt = new Promise((shown) => new MutationObserver(() => {
             if (document.querySelector('#nodes tr[data-key=beta]')) shown(Date.now());
         }).observe(document.querySelector('#nodes tbody'), { childList: true })); 0",
    );
    let second = node(data, "beta", "127.0.0.1:0", &warehouse);
    let lag = browser
        .value("shownAt.then((at) => at - model.events.find((one) => one.kind === 'node-joined').at_ms)");
    println!("shown {lag} ms after this node knew of it");
    until("both nodes serve", || {
        states(&mut browser) == json!(["serving", "serving"])
    });
    assert!(browser.text("#events").contains("beta joined."));

    // The page finds an order and follows its changes.
    http(
        &listen,
        "PUT",
        "/stocks",
        &[("content-type", "text/csv")],
        b"1,1,10\n2,1,10\n",
    );
    let order = br#"{"id":"shop:1","products":[{"id":1,"quantity":2},{"id":2,"quantity":1}]}"#;
    let placed = http(
        &listen,
        "POST",
        "/order",
        &[("content-type", "application/json")],
        order,
    );
    assert_eq!(placed.status, 200, "{}", placed.body);
    search(&mut browser, "shop:1");
    until("the order is found", || {
        browser.text("#order-state") == "stock reserved"
    });
    assert_eq!(
        browser.value("document.querySelectorAll('#order-events li').length"),
        2
    );
    assert!(browser.text("#order-facts").contains("2 × 1, 1 × 2"));
    http(&listen, "POST", "/order/shop:1/cancel", &[], b"");
    until("the order is followed", || {
        browser.text("#order-state") == "cancelled"
    });
    until("the requests are drawn", || {
        browser.text("#throughput-key").contains("place order")
    });

    let seen = accessible(&mut browser);
    for role in ["banner", "main", "contentinfo", "search", "status"] {
        assert!(
            seen.iter().any(|(known, _)| known == role),
            "no {role} in {seen:?}"
        );
    }
    for (role, name) in &seen {
        let is_control = [
            "button",
            "link",
            "searchbox",
            "combobox",
            "image",
            "table",
            "region",
        ];
        assert!(
            !is_control.contains(&role.as_str()) || !name.is_empty(),
            "a {role} without a name"
        );
    }
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");

    // Markup in an id is shown as text. The browser logs the rejected request, so this part comes
    // after the check for complaints.
    let markup = "<img src=x onerror=alert(1)>";
    search(&mut browser, markup);
    until("the id is refused", || {
        browser.text("#order-note").contains("order id")
    });
    assert_eq!(browser.text("#order-title"), format!("Order {markup}"));
    assert_eq!(browser.value("document.images.length"), 0);

    // After a node is killed, the page shows the loss, names the other node, and connects again
    // when the killed node is back.
    first.kill();
    until("the loss is shown", || {
        browser.text("#banner").contains("Consoles of other nodes: beta")
    });
    let first = node(data, "alpha", &listen, &warehouse);
    until("the console is live again", || {
        browser.text("#link-text") == "live"
    });
    until("both nodes serve again", || {
        states(&mut browser) == json!(["serving", "serving"])
    });
    assert_eq!(browser.value("document.querySelector('#banner').hidden"), true);
    drop((first, second));
}

#[test]
#[ignore = "needs Chromium"]
fn the_page_fits_a_phone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let server = node(data, "alpha", "127.0.0.1:0", &free_address());
    let mut browser = Browser::start(360, 740);
    browser.open(&server.url());
    until("the console is live", || browser.text("#link-text") == "live");
    let width = browser.value("document.documentElement.scrollWidth");
    assert_eq!(width, 360, "nothing is wider than the window");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}
