// The search for an order, and its history on a time line.

const STATES = {
  received: ["received", "c8"],
  reserved: ["stock reserved", "c5"],
  announced: ["announced", "c1"],
  paid: ["paid", "c2"],
  delivering: ["delivering", "c7"],
  delivered: ["delivered", "c3"],
  rejected: ["rejected: no store has it", "c8"],
  cancelled: ["cancelled", "c8"],
  expired: ["expired unpaid", "c8"],
  failed: ["failed", "c6"],
  refund_wanted: ["refund wanted", "c6"],
};
const ENDED = new Set(["delivered", "rejected", "cancelled", "expired", "failed", "refund_wanted"]);
const stateName = (state) => STATES[state]?.[0] ?? state;
const stateColour = (state) => `var(--${STATES[state]?.[1] ?? "c8"})`;
const REFRESH_MS = 1500;

let asked = null;
let trackEvents = [];
let refreshing = 0;

/** JSON with whole numbers beyond 2^53 kept as text, where the browser gives their source. */
function parseExactly(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && context?.source && Number.isInteger(value) && !Number.isSafeInteger(value) ? context.source : value);
}

async function getJson(path) {
  const response = await fetch(path, { headers: { accept: "application/json" }, cache: "no-store" });
  const text = await response.text();
  let body = null;
  try {
    body = parseExactly(text);
  } catch {
    throw new Error(`The node answered ${response.status}.`);
  }
  if (!response.ok) throw Object.assign(new Error(body.detail ?? body.title ?? `The node answered ${response.status}.`), { status: response.status });
  return body;
}

function note(text, level = null) {
  setText($("order-note"), text);
  setAttribute($("order-note"), "data-level", level);
}

function clearOrder() {
  trackEvents = [];
  for (const id of ["order-facts", "order-track", "order-events"]) $(id).replaceChildren();
  $("order-track").setAttribute("hidden", "");
  setText($("order-state"), "");
}

/** Shows an order, and requests it again every `REFRESH_MS` until it has ended. */
async function showOrder(id) {
  clearTimeout(refreshing);
  if (asked !== id) clearOrder();
  asked = id;
  $("order").hidden = false;
  setText($("order-title"), `Order ${id}`);
  if (!$("order-events").firstChild) note("Looking for it …");
  try {
    const path = `/order/${encodeURIComponent(id)}`;
    const order = await getJson(path);
    const history = await getJson(`${path}/history`);
    if (asked !== id) return;
    note("");
    drawOrder(order, history.events);
    if (!ENDED.has(order.state)) refreshing = setTimeout(() => showOrder(id), REFRESH_MS);
  } catch (error) {
    if (asked !== id) return;
    clearOrder();
    note(error instanceof TypeError ? "The node cannot be reached." : error.message, "bad");
  }
}

function fact(name, value) {
  return element("div", {}, element("dt", { text: name }), element("dd", { text: value }));
}

function drawOrder(order, events) {
  const badge = $("order-state");
  setText(badge, stateName(order.state));
  badge.style.setProperty("--tone", stateColour(order.state));
  const units = order.products.reduce((sum, line) => sum + Number(line.quantity), 0);
  const lines = order.products.slice(0, 12).map((line) => `${line.quantity} × ${line.id}`);
  if (order.products.length > lines.length) lines.push(`and ${order.products.length - lines.length} more`);
  const facts = [
    fact("Store", order.store_id ?? "none"),
    fact(`${plural(order.products.length, "product")}, ${plural(units, "unit")}`, lines.join(", ")),
    fact("Placed", new Date(order.created_at_ms).toLocaleString()),
  ];
  if (order.transaction_id !== undefined) facts.push(fact("Payment", order.transaction_id));
  if (order.refund_transaction_ids) facts.push(fact("To be refunded", order.refund_transaction_ids.join(", ")));
  const last = events[events.length - 1]?.at_ms ?? order.created_at_ms;
  if (ENDED.has(order.state)) facts.push(fact("Took", duration(last - order.created_at_ms)));
  $("order-facts").replaceChildren(...facts);
  drawTrack(events);
  keyed($("order-events"), events.map((event, at) => ({ event, at })), ({ at }) => at, () => {
    return element("li", {}, element("b"), element("span"), element("span"));
  }, (item, { event, at }) => {
    item.style.borderColor = stateColour(event.event);
    setText(item.children[0], stateName(event.event));
    const since = at ? ` · ${duration(event.at_ms - events[at - 1].at_ms)} later` : "";
    setText(item.children[1], `${clock(event.at_ms, true)}${since}`);
    const more = [];
    if (event.store_id !== undefined) more.push(`store ${event.store_id}`);
    if (event.transaction_id !== undefined) more.push(`payment ${event.transaction_id}`);
    if (event.stock_sequence !== undefined) more.push(`stock sequence ${event.stock_sequence}`);
    if (event.reason !== undefined) more.push(event.reason);
    setText(item.children[2], more.join(", "));
  });
}

/** Draws two or more events as dots at their times, from the left end to the right end. */
function drawTrack(events) {
  trackEvents = events;
  const track = $("order-track");
  if (events.length < 2) {
    track.setAttribute("hidden", "");
    return;
  }
  track.removeAttribute("hidden");
  const width = Math.max(200, $("order-facts").clientWidth);
  const from = events[0].at_ms;
  const span = Math.max(1, events[events.length - 1].at_ms - from);
  const x = (ms) => 10 + ((ms - from) / span) * (width - 20);
  const parts = [element("line", { x1: 10, x2: width - 10, y1: 16, y2: 16 })];
  events.slice(1).forEach((event, at) => {
    const part = element("line", { x1: x(events[at].at_ms), x2: x(event.at_ms), y1: 16, y2: 16 });
    part.style.stroke = stateColour(events[at].event);
    parts.push(part);
  });
  for (const event of events) {
    const dot = element("circle", { cx: x(event.at_ms), cy: 16, r: 8 }, element("title", { text: `${stateName(event.event)}, ${clock(event.at_ms, true)}` }));
    dot.style.fill = stateColour(event.event);
    parts.push(dot);
  }
  parts.push(element("text", { x: 2, y: 42, text: clock(from) }));
  parts.push(element("text", { x: width - 2, y: 42, "text-anchor": "end", text: `+${duration(span)}` }));
  setAttribute(track, "viewBox", `0 0 ${Math.round(width)} 46`);
  track.replaceChildren(...parts);
}

new ResizeObserver(() => drawTrack(trackEvents)).observe($("order-facts"));

/** The order id in the address (or an empty text), so that a link to an order can be shared. */
function orderOfAddress() {
  const text = location.hash.startsWith("#order=") ? location.hash.slice(7) : "";
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function followAddress() {
  const id = orderOfAddress();
  if (id) {
    $("order-id").value = id;
    showOrder(id);
  } else {
    closeOrder();
  }
}

function closeOrder() {
  asked = null;
  clearTimeout(refreshing);
  $("order").hidden = true;
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("order-id").value.trim();
  if (!id) return;
  const hash = `#order=${encodeURIComponent(id)}`;
  if (location.hash === hash) showOrder(id);
  else location.hash = hash;
  $("order").hidden = false;
  $("order").focus({ preventScroll: true });
  scrollTo({ top: 0 });
});
$("order-close").addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  closeOrder();
  $("order-id").focus();
});
addEventListener("hashchange", followAddress);
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("order-id").focus();
    $("order-id").select();
  }
});
