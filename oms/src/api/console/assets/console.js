// The state of the cluster: received, kept, shown.

const GROUPS = [
  ["place order", "c1", ["POST /order"]],
  ["pay", "c3", ["POST /order/{id}/payment-callback"]],
  ["read orders", "c5", ["GET /order/{id}", "GET /order/{id}/history", "GET /orders"]],
  ["statistics", "c2", ["GET /aggregate-stats/{product}", "GET /aggregate-stats"]],
  ["stock", "c4", ["PUT /stocks", "PATCH /stocks", "GET /stocks/{product}", "GET /stores/{store}"]],
  ["cancel and lists", "c8", ["POST /order/{id}/cancel", "GET /reservations", "GET /outbox", "POST /outbox/{order}/{kind}/retry"]],
];
const ALL_ROUTES = "all routes";
const STATUS = {
  serving: ["good", "serving"], joining: ["warn", "joining"], leaving: ["warn", "leaving"],
  degraded: ["bad", "degraded"], silent: ["bad", "not answering"], died: ["bad", "died"], stopped: ["warn", "stopped"],
};
const GLYPHS = {
  "node-joined": ["+", "good"], "node-restarted": ["↻", "warn"], "node-stopped": ["−", "warn"], "node-died": ["×", "bad"],
  "node-leaving": ["→", "warn"], "node-left": ["−", "warn"], "volume-served": ["⇄", ""], "move-begun": ["→", ""],
  "move-undone": ["↶", "warn"], "ring-changed": ["◔", ""], "warehouse-away": ["!", "bad"], "warehouse-back": ["✓", "good"],
  "dead-letters": ["✉", "bad"], "volume-failed": ["!", "bad"], "volume-recovered": ["✓", "good"],
};
const EVENTS_SHOWN = 100;
/** Time without a `state` event, sent about once a second, after which the page connects again. */
const SILENCE_MS = 8000;

const model = { state: null, ring: null, seconds: new Map(), events: [], gauges: [], hadNodes: null };
const charts = {
  throughput: new Chart($("throughput"), {
    stacked: true, scale: linearScale, tick: count, empty: "No requests of clients in the last minutes",
    reading: (value) => (value ? `${rate(value)}/s` : null),
  }),
  latency: new Chart($("latency"), {
    stacked: false, scale: logScale, tick: (us) => (us < 1e3 ? `${us} µs` : us < 1e6 ? `${us / 1e3} ms` : `${us / 1e6} s`), empty: "No requests on this route in the last minutes",
    reading: (value) => (value === null ? null : latencyText(value)),
  }),
};

function take(state) {
  if (state.ring) {
    model.ring = state.ring;
    state.ring.members.forEach(colour);
  }
  state.nodes.forEach((node) => colour(node.name));
  model.state = state;
  for (const sample of state.samples) model.seconds.set(sample.second, sample);
  // Seconds more than 5 s ahead are from before the node's clock was set back.
  const now = Math.floor(state.now_ms / 1000);
  for (const second of model.seconds.keys()) if (second > now + 5) model.seconds.delete(second);
  const newest = lastSecond();
  for (const second of model.seconds.keys()) if (second <= newest - WINDOW) model.seconds.delete(second);
  if (state.events.length) {
    announce(state.events);
    model.events = [...state.events, ...model.events].sort((one, other) => other.at_ms - one.at_ms || other.id - one.id).slice(0, 256);
  }
  keepGauges(state);
  show();
}

/** Keeps, by second, the sums over all volumes for the tiles, the order states and the outbox. */
function keepGauges(state) {
  const second = Math.floor(state.now_ms / 1000);
  const sums = { second, orders: {}, outbox: 0, inFlight: 0, dead: 0, refunds: 0, queue: 0, snapshots: 0, stores: 0, files: 0, transactors: 0, away: [], failing: [], unknown: [] };
  for (const volume of state.volumes) {
    const figures = volume.figures;
    if (!figures) {
      if (volume.slots > 0) sums.unknown.push(volume.name);
      continue;
    }
    for (const [name, number] of Object.entries(figures.orders)) sums.orders[name] = (sums.orders[name] ?? 0) + number;
    sums.outbox += figures.outbox;
    sums.inFlight += figures.outbox_in_flight;
    sums.dead += figures.outbox_dead;
    sums.refunds += figures.refunds_wanted;
    sums.queue += figures.commit_queue;
    sums.snapshots = Math.max(sums.snapshots, figures.stock_snapshots);
    sums.stores += figures.stores;
    sums.files += figures.stat_files;
    sums.transactors += figures.transactors;
    if (figures.warehouse_away) sums.away.push(volume.name);
    else if (figures.warehouse_failing) sums.failing.push(volume.name);
  }
  sums.open = ["received", "reserved", "announced", "paid", "delivering"].reduce((sum, name) => sum + (sums.orders[name] ?? 0), 0);
  if (model.gauges.at(-1)?.second === second) model.gauges.pop();
  model.gauges.push(sums);
  if (model.gauges.length > WINDOW) model.gauges.shift();
}

function lastSecond() {
  return model.seconds.size ? Math.max(...model.seconds.keys()) : Math.floor(model.state.now_ms / 1000);
}

/** Number of seconds that the charts show: 60 or 120 if no more are known, otherwise `WINDOW`. */
function span() {
  const known = model.seconds.size ? lastSecond() - Math.min(...model.seconds.keys()) + 1 : 0;
  return [60, 120].find((seconds) => seconds >= known) ?? WINDOW;
}

/** Values of the seconds that the charts show; seconds without a sample are `null`. */
function valuesOf(read) {
  const [last, length] = [lastSecond(), span()];
  return Array.from({ length }, (_, at) => {
    const sample = model.seconds.get(last - (length - 1) + at);
    return sample ? read(sample) : null;
  });
}

/** The mean of the known values among the last three, or `null`. */
function recent(values) {
  const known = values.slice(-3).filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function tile(name, value, unit, more, values, level = null, moreLevel = null) {
  const found = document.querySelector(`[data-tile="${name}"]`);
  const line = found.querySelector(".value");
  setText(line.children[0], value);
  setText(line.children[1], unit);
  setAttribute(line, "data-level", level);
  setText(found.querySelector(".more"), more);
  setAttribute(found.querySelector(".more"), "data-level", moreLevel);
  if (values) drawSpark(found.querySelector(".spark"), values.slice(-120).map((item) => item ?? 0));
}

function showTiles() {
  const now = model.gauges.at(-1);
  const order = (sample) => sample.routes["POST /order"];
  const placed = valuesOf((sample) => { const found = order(sample); return found ? found.requests - found.refused - found.failed : 0; });
  const refused = recent(valuesOf((sample) => order(sample)?.refused ?? 0)) ?? 0;
  tile("orders", rate(recent(placed) ?? 0), "/s", refused ? `${rate(refused)}/s refused` : "none refused", placed);
  const requests = valuesOf((sample) => sample.clients.requests);
  const failed = recent(valuesOf((sample) => sample.clients.failed)) ?? 0;
  tile("requests", rate(recent(requests) ?? 0), "/s", failed ? `${rate(failed)}/s failed (5xx)` : "none failed", requests, null, failed ? "bad" : null);
  const p99 = valuesOf((sample) => order(sample)?.p99_us ?? null);
  const p50 = recent(valuesOf((sample) => order(sample)?.p50_us ?? null));
  const [value, unit] = latency(recent(p99));
  tile("latency", value, unit, p50 === null ? "no orders now" : `median ${latencyText(p50)}`, p99);
  const total = Object.values(now.orders).reduce((sum, number) => sum + number, 0);
  tile("open", count(now.open), "", `of ${plural(total, "order")} in all`, model.gauges.map((sums) => sums.open));
  const dead = now.dead ? plural(now.dead, "dead letter") : "no dead letters";
  tile("outbox", count(now.outbox), "waiting", `${count(now.inFlight)} in flight, ${dead}`, model.gauges.map((sums) => sums.outbox), null, now.dead ? "bad" : null);
  const known = model.state.volumes.some((volume) => volume.figures);
  const [word, level] = warehouseState(now);
  const trouble = now.away.length ? `breaker open at ${now.away.join(", ")}` : `calls fail at ${now.failing.join(", ")}`;
  const more = level === "bad" ? trouble : `${plural(now.snapshots, "snapshot")}, ${plural(now.stores, "store")}`;
  tile("warehouse", known ? word : "–", "", known ? more : "no volume answers", null, known ? level : null);
}

/** The state of the calls to the warehouse as a word and a level. */
function warehouseState(sums) {
  if (sums.away.length) return ["away", "bad"];
  return sums.failing.length ? ["failing", "bad"] : ["answering", "good"];
}

function showRing() {
  const { state, ring } = model;
  if (!ring) return;
  drawRing($("ring"), ring, state);
  setText($("ring-note"), `${count(ring.slots)} slots, epoch ${ring.epoch}`);
  const volumes = state.volumes.filter((volume) => ring.members.includes(volume.name));
  const share = (volume) => `${((volume.slots / ring.slots) * 100).toFixed(1)} %`;
  setText($("ring-text"), volumes.map((volume) => `${volume.name}: ${share(volume)}, served by ${volume.node ?? "no node"}`).join("; "));
  keyed($("shares"), volumes, (volume) => volume.name, () => element("li", {},
    element("span", { class: "swatch", "aria-hidden": "true" }), element("span", { class: "who" }), element("em"), element("span", { class: "pct" }),
  ), (item, volume) => {
    paintSwatch(item.children[0], volume.name);
    setText(item.children[1], volume.name);
    const elsewhere = volume.node === null ? "served by no node" : `served by ${volume.node}`;
    setText(item.children[2], volume.node === volume.name ? "" : elsewhere);
    setAttribute(item.children[2], "data-level", volume.node === null ? "bad" : volume.node === volume.name ? null : "warn");
    setText(item.children[3], share(volume));
  });
}

function marks() {
  return model.events.filter((event) => MARKS[event.kind]).reverse().map((event) => ({
    second: Math.ceil(event.at_ms / 1000), text: `${clock(event.at_ms)} ${event.text}`,
    label: event.kind === "ring-changed" ? "" : `${MARKS[event.kind]} ${event.node ?? ""}`.trim(),
  }));
}

function legend(list, series) {
  keyed(list, series, (one) => one.name, () => element("li", {}, element("span", { class: "line" }), element("span"), element("b")), (item, one) => {
    item.children[0].style.borderColor = one.colour;
    item.children[0].classList.toggle("dashed", Boolean(one.dashed));
    setText(item.children[1], one.name);
    setText(item.children[2], one.now);
  });
}

function showThroughput() {
  const requestsOf = (routes) => (sample) => routes.reduce((sum, name) => sum + (sample.routes[name]?.requests ?? 0), 0);
  const series = GROUPS.map(([name, paint, routes]) => ({ name, colour: `var(--${paint})`, values: valuesOf(requestsOf(routes)) }));
  series.push({ name: "failed (5xx)", colour: "var(--c6)", values: valuesOf((sample) => sample.clients.failed), dashed: true });
  const shown = series.filter((one, at) => at < 2 || one.values.some((value) => value));
  for (const one of shown) one.now = `${rate(recent(one.values) ?? 0)}/s`;
  legend($("throughput-key"), shown);
  setText($("throughput-note"), `requests a second, all nodes, last ${span() === 60 ? "minute" : `${span() / 60} minutes`}`);
  setText($("throughput-text"), `Now: ${shown.map((one) => `${one.name} ${one.now}`).join(", ")}`);
  charts.throughput.show({ span: span(), last: lastSecond(), series: shown, marks: marks() });
}

function routesSeen() {
  const names = new Set(["POST /order"]);
  for (const sample of model.seconds.values()) Object.keys(sample.routes).forEach((name) => names.add(name));
  names.delete("other");
  return [...names].sort((one, other) => (one === "POST /order" ? -1 : other === "POST /order" ? 1 : one.localeCompare(other)));
}

function showLatency() {
  const select = $("latency-route");
  const names = [...routesSeen(), ALL_ROUTES, "other"];
  keyed(select, names, (name) => name, (name) => element("option", { value: name }), (option, name) => setText(option, name === "other" ? "probes and calls between nodes" : name));
  const figures = (sample) => (select.value === ALL_ROUTES ? sample.clients : sample.routes[select.value]);
  const series = [["p99", "c6", "p99_us"], ["median", "c1", "p50_us"]].map(([name, paint, field]) => {
    const values = valuesOf((sample) => figures(sample)?.[field] ?? null);
    return { name, colour: `var(--${paint})`, values, now: latencyText(recent(values)) };
  });
  legend($("latency-key"), series);
  setText($("latency-text"), `Now: ${series.map((one) => `${one.name} ${one.now}`).join(", ")}`);
  charts.latency.show({ span: span(), last: lastSecond(), series, marks: marks() });
}

function showFunnel() {
  const { orders, refunds } = model.gauges.at(-1);
  const of = (...names) => names.reduce((sum, name) => sum + (orders[name] ?? 0), 0);
  const total = Object.values(orders).reduce((sum, number) => sum + number, 0);
  // An order with a wanted refund counts as reserved and paid.
  const steps = [
    ["placed", total],
    ["reserved", total - of("received", "rejected")],
    ["paid", of("paid", "delivering", "delivered", "refund_wanted")],
    ["delivered", of("delivered")],
  ];
  keyed($("funnel"), steps, ([name]) => name, () => element("li", {},
    element("span"), element("span", { class: "bar", "aria-hidden": "true" }, element("i")), element("span", {}, element("b"), element("span", { class: "pct" }))), (item, [name, number]) => {
    setText(item.children[0], name);
    item.children[1].firstChild.style.width = `${total ? (number / total) * 100 : 0}%`;
    setText(item.children[2].children[0], count(number));
    setText(item.children[2].children[1], total ? `${((number / total) * 100).toFixed(1)} %` : "");
  });
  const before = model.gauges.at(-4);
  const change = (name) => (before ? (orders[name] ?? 0) - (before.orders[name] ?? 0) : 0);
  const names = Object.keys(STATES);
  keyed($("states"), names, (name) => name, () => element("li", {}, element("span", { class: "swatch", "aria-hidden": "true" }), element("span"), element("em"), element("b")), (item, name) => {
    item.children[0].style.background = stateColour(name);
    setText(item.children[1], stateName(name).split(":")[0]);
    const number = change(name);
    setText(item.children[2], number ? `${number > 0 ? "▲" : "▼"} ${count(Math.abs(number))}` : "");
    setText(item.children[3], count(orders[name] ?? 0));
    item.classList.toggle("none", !orders[name]);
  });
  setText($("funnel-note"), refunds ? `${plural(refunds, "payment")} to be refunded` : "");
}

function showOutbox() {
  const now = model.gauges.at(-1);
  const figures = [
    ["Messages waiting", count(now.outbox)], ["Calls in flight", count(now.inFlight)], ["Dead letters", count(now.dead), now.dead ? "bad" : null],
    ["Warehouse", ...warehouseState(now)], ["Stock snapshots", count(now.snapshots)], ["Statistics files", count(now.files)],
  ];
  keyed($("outbox"), figures, ([name]) => name, () => element("div", {}, element("dt"), element("dd")), (item, [name, value, level]) => {
    setText(item.children[0], name);
    setText(item.children[1], value);
    setAttribute(item.children[1], "data-level", level);
  });
  keyed($("volumes").tBodies[0], model.state.volumes, (volume) => volume.name, () => {
    const row = element("tr", {}, element("td"), ...["num", "num", "num", "", "num"].map((name) => element("td", { class: name })));
    row.firstChild.append(element("span", { class: "swatch", "aria-hidden": "true" }), element("span", { class: "who" }));
    return row;
  }, (row, volume) => {
    const [name, ...cells] = row.children;
    paintSwatch(name.firstChild, volume.name);
    setText(name.lastChild, volume.name);
    const known = volume.figures;
    const texts = known ? [known.outbox, known.outbox_in_flight, known.outbox_dead].map(count) : ["–", "–", "–"];
    texts.push(known ? (known.warehouse_away ? "open" : "closed") : "–", known ? count(known.commit_queue) : "–");
    cells.forEach((cell, at) => setText(cell, texts[at]));
    setAttribute(cells[3], "data-level", known?.warehouse_away ? "bad" : null);
    setAttribute(cells[2], "data-level", known?.outbox_dead ? "bad" : null);
    row.title = volume.missing ?? known?.fault ?? "";
  });
  setText($("outbox-note"), now.unknown.length ? `no figures of ${now.unknown.join(", ")}` : "");
  setAttribute($("outbox-note"), "data-level", now.unknown.length ? "bad" : null);
}

function showEvents() {
  $("events-empty").hidden = model.events.length > 0;
  keyed($("events"), model.events.slice(0, EVENTS_SHOWN), (event) => event.id, (event) => {
    const [glyph, level] = GLYPHS[event.kind] ?? ["•", ""];
    const mark = element("span", { class: "glyph", "aria-hidden": "true", text: glyph });
    if (level) mark.dataset.level = level;
    const time = element("time", { datetime: new Date(event.at_ms).toISOString(), text: clock(event.at_ms) });
    return element("li", { "data-kind": event.kind }, mark, element("p", { text: event.text }), time);
  }, () => {});
}

/** Gives the events of the last 5 s to screen readers, and no older ones. */
function announce(events) {
  const fresh = events.filter((event) => event.at_ms > model.state.now_ms - 5000);
  if (fresh.length) setText($("events-live"), fresh.map((event) => event.text).join(" "));
}

const NODE_COLUMNS = ["node", "state", "console", "zone", "weight", "share", "serves", "requests/s", "p99", "errors/s", "up"];
const NODE_NUMBERS = new Set(["weight", "requests/s", "p99", "errors/s", "up"]);

function nodeRow(node) {
  const row = element("tr", { role: "row" }, ...NODE_COLUMNS.map((name) => element("td", { role: "cell", "data-label": name, class: NODE_NUMBERS.has(name) ? "num" : null })));
  const cells = row.children;
  cells[0].append(element("span", {}, element("span", { class: "swatch", "aria-hidden": "true" }), element("span", { class: "who", text: node.name })));
  cells[1].append(element("span", { class: "badge" }));
  cells[5].append(element("span", { class: "share" }, element("span", { class: "rail", "aria-hidden": "true" }, element("i")), element("span")));
  if (model.hadNodes && !model.hadNodes.has(node.name)) row.classList.add("new");
  return row;
}

function showNode(row, node) {
  const cells = row.children;
  const off = node.status === "died" || node.status === "stopped";
  row.classList.toggle("off", off);
  row.title = node.fault ?? "";
  paintSwatch(cells[0].firstChild.firstChild, node.name);
  const [level, word] = STATUS[node.status] ?? ["warn", node.status];
  setText(cells[1].firstChild, word);
  cells[1].firstChild.dataset.level = level;
  const url = node.address ? `${location.protocol}//${node.address}/` : null;
  if (cells[2].dataset.url !== String(url)) {
    cells[2].dataset.url = url;
    cells[2].replaceChildren(url && node.name !== model.state.node ? element("a", { href: url, text: node.address }) : node.address ?? "–");
  }
  const slots = model.ring?.slots ?? 1;
  const percent = (node.slots / slots) * 100;
  const bar = cells[5].querySelector("i");
  bar.style.width = `${percent}%`;
  bar.style.background = colour(node.name).css;
  setText(cells[5].querySelector(".share").lastChild, `${percent.toFixed(1)} %`);
  setText(cells[3], node.zone ?? "–");
  setText(cells[4], node.weight);
  setText(cells[6], node.serves.length ? node.serves.join(", ") : "nothing");
  setText(cells[7], node.requests ? count(node.requests.requests) : "–");
  setText(cells[8], node.requests ? latencyText(node.requests.p99_us) : "–");
  setText(cells[9], node.requests ? count(node.requests.failed) : "–");
  setText(cells[10], node.started_at_ms ? duration(Math.max(1000, Math.floor((model.state.now_ms - node.started_at_ms) / 1000) * 1000)) : "–");
}

function showNodes() {
  const nodes = model.state.nodes;
  keyed($("nodes").tBodies[0], nodes, (node) => node.name, nodeRow, showNode);
  model.hadNodes = new Set(nodes.map((node) => node.name));
  const live = nodes.filter((node) => !["died", "stopped"].includes(node.status)).length;
  setText($("nodes-note"), `${plural(live, "node")} of ${count(nodes.length)} in the cluster`);
}

function show() {
  setText($("me"), model.state.node);
  setText($("version"), `imt ${model.state.version}.`);
  document.title = `${model.state.node}: IMT Order console`;
  for (const draw of [showTiles, showRing, showThroughput, showLatency, showFunnel, showOutbox, showEvents, showNodes]) draw();
}

// The stream. This script opens it again, because a browser gives up after an error response.
let source = null;
let failures = 0;
let watchdog = 0;
let retry = 0;

function linkState(state, text) {
  $("link").dataset.state = state;
  setText($("link-text"), text);
}

function lost(reason) {
  source?.close();
  source = null;
  clearTimeout(watchdog);
  clearInterval(retry);
  const waitSeconds = Math.min(10, 2 ** Math.min(failures, 4));
  failures += 1;
  const until = Date.now() + waitSeconds * 1000;
  const others = (model.state?.nodes ?? []).filter((node) => node.address && node.name !== model.state.node);
  const banner = $("banner");
  banner.hidden = false;
  const links = others.flatMap((node) => [" ", element("a", { href: `${location.protocol}//${node.address}/`, text: node.name })]);
  banner.replaceChildren(`${reason} The figures are those of ${model.state ? clock(model.state.now_ms) : "no time yet"}. The page connects again by itself.`, ...(links.length ? [" Consoles of other nodes:", ...links] : []));
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    linkState("lost", left > 0 ? `lost, again in ${left} s` : "connecting");
    if (left <= 0) {
      clearInterval(retry);
      connect();
    }
  };
  tick();
  retry = setInterval(tick, 250);
}

function alive() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => lost("The node does not answer any more."), SILENCE_MS);
}

function connect() {
  source = new EventSource("/console/events");
  alive();
  let isFirst = true;
  source.addEventListener("state", (event) => {
    if (isFirst) model.events = [];
    isFirst = false;
    failures = 0;
    alive();
    linkState("live", "live");
    $("banner").hidden = true;
    take(JSON.parse(event.data));
  });
  source.addEventListener("end", () => lost("The node has stopped."));
  source.addEventListener("error", () => lost(model.state ? "The connection to the node was lost." : "The node takes no console now."));
}

$("latency-route").addEventListener("change", () => model.state && showLatency());
followAddress();
connect();
