// The ring, the charts, the small lines in the tiles.

/** The path of a ring's piece between two radii, from one share of the circle to another. */
function arc(inner, outer, from, to) {
  const full = to - from >= 0.99999;
  const end = full ? from + 0.99999 : to;
  const point = (radius, share) => {
    const angle = (share - 0.25) * 2 * Math.PI;
    return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
  };
  const large = end - from > 0.5 ? 1 : 0;
  return `M${point(outer, from)}A${outer} ${outer} 0 ${large} 1 ${point(outer, end)}L${point(inner, end)}A${inner} ${inner} 0 ${large} 0 ${point(inner, from)}Z`;
}

/** The fill of a volume: its colour, in stripes if the colour is used twice or `away` is true. */
function fillOf(defs, name, away) {
  const { css, stripes } = colour(name);
  if (!stripes && !away) return css;
  const id = `stripes-${colourOrder.indexOf(name)}-${away ? "away" : "here"}`;
  if (!defs.querySelector(`#${id}`)) {
    const pattern = element("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${away ? 45 : 135})` });
    const base = element("rect", { width: 6, height: 6 });
    base.style.fill = away ? "var(--card)" : css;
    const line = element("rect", { width: away ? 2.5 : 2, height: 6 });
    line.style.fill = away ? css : "var(--card)";
    pattern.append(base, line);
    defs.append(pattern);
  }
  return `url(#${id})`;
}

/** Draws the ring. From outside in: slots, shares of volumes, their serving nodes, a summary. */
function drawRing(svg, ring, state) {
  const defs = element("defs");
  const parts = [defs];
  const add = (name, attributes, fill) => {
    const made = element(name, attributes);
    if (fill) made.style.fill = fill;
    parts.push(made);
    return made;
  };
  const served = new Map(state.volumes.map((volume) => [volume.name, volume.node]));
  let slot = 0;
  for (const [member, run] of ring.runs) {
    const name = ring.members[member];
    add("path", { d: arc(160, 172, slot / ring.slots, (slot + run) / ring.slots) }, colour(name).css);
    slot += run;
  }
  const slots = ring.members.map((_, at) => ring.runs.reduce((sum, [member, run]) => sum + (member === at ? run : 0), 0));
  let before = 0;
  const labels = [];
  ring.members.forEach((name, at) => {
    const share = slots[at] / ring.slots;
    if (share === 0) return;
    const node = served.get(name);
    const piece = add("path", { class: "gap", d: arc(112, 152, before, before + share) }, fillOf(defs, name, node !== name));
    piece.append(element("title", { text: `${name}: ${count(slots[at])} slots (${(share * 100).toFixed(1)} %), served by ${node ?? "no node"}` }));
    add("path", { class: "gap", d: arc(98, 106, before, before + share) }, node ? colour(node).css : "var(--grid)");
    const angle = (before + share / 2 - 0.25) * 2 * Math.PI;
    if (share > 0.04) {
      const shown = name.length > 12 ? `${name.slice(0, 11)}…` : name;
      labels.push(element("text", { class: "name", x: (132 * Math.cos(angle)).toFixed(1), y: (132 * Math.sin(angle) + 4).toFixed(1), text: shown }));
    }
    before += share;
  });
  parts.push(...labels);
  const moving = state.moving;
  if (moving) {
    const done = moving.about > 0 ? Math.min(1, moving.rows / moving.about) : 0;
    add("circle", { class: "track", r: 88, "stroke-width": 4 });
    const going = add("circle", { class: "going", r: 88, transform: "rotate(-90)", "stroke-dasharray": `${(done * 552.9).toFixed(1)} 553` });
    going.style.fill = "none";
    const moved = moving.steps.reduce((sum, step) => sum + step.slots, 0);
    add("text", { class: "big", y: 2, text: `${Math.floor(done * 100)} %` });
    add("text", { class: "small", y: 26, text: `${count(moved)} slots move` });
    add("text", { class: "small", y: 44, text: `${compact(moving.rows)} of ${compact(moving.about)} rows` });
  } else {
    const nodes = state.nodes.filter((node) => !["died", "stopped"].includes(node.status)).length;
    add("text", { class: "big", y: 2, text: String(nodes) });
    add("text", { class: "small", y: 26, text: nodes === 1 ? "node" : "nodes" });
    add("text", { class: "small", y: 44, text: `epoch ${ring.epoch}` });
  }
  svg.replaceChildren(...parts);
}

/** Draws a line with the area below it across a tile, or hides both if no value is above 0. */
function drawSpark(svg, values) {
  const max = Math.max(...values);
  svg.toggleAttribute("hidden", max <= 0);
  if (max <= 0) return;
  const width = 100;
  const x = (at) => ((at / Math.max(1, values.length - 1)) * width).toFixed(1);
  const line = values.map((value, at) => `${at ? "L" : "M"}${x(at)} ${(32 - (value / max) * 28).toFixed(1)}`).join("");
  setAttribute(svg, "viewBox", "0 0 100 34");
  setAttribute(svg, "preserveAspectRatio", "none");
  if (!svg.firstChild) svg.append(element("path"));
  setAttribute(svg.firstChild, "d", values.length > 1 ? `M-2 36L-2 ${(32 - (values[0] / max) * 28).toFixed(1)}${line.replace("M", "L")}L102 36` : "");
}

const MARKS = { "node-joined": "+", "node-restarted": "↻", "node-died": "×", "node-stopped": "−", "node-left": "−", "ring-changed": "◔", "warehouse-away": "!", "warehouse-back": "✓" };
/** Number of seconds that are kept. A chart shows fewer while fewer are known (`span`). */
const WINDOW = 300;

/** A chart of the last minutes with a vertical line that follows pointer and keys. */
class Chart {
  /**
   * Options: `scale` makes an axis for the series, `tick` writes a value at the axis, `reading`
   * writes a value in the tool tip, `stacked` adds up the series, `empty` is shown without values.
   */
  constructor(plot, options) {
    this.plot = plot;
    this.options = options;
    this.svg = element("svg", { "aria-hidden": "true" });
    this.tip = element("div", { class: "tip", hidden: "" });
    plot.append(this.svg, this.tip);
    this.at = null;
    new ResizeObserver(() => this.draw()).observe(plot);
    plot.addEventListener("pointermove", (event) => this.point(event));
    plot.addEventListener("pointerleave", () => this.move(null));
    plot.addEventListener("blur", () => this.move(null));
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    const share = (event.clientX - box.left - this.left) / (box.width - this.left);
    this.move(Math.round(share * (this.data.span - 1)));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
    if (event.key === "Escape") this.move(null);
    else if (event.key === "Home") this.move(0, true);
    else if (event.key === "End") this.move(this.data.span - 1, true);
    else if (step) this.move((this.at ?? this.data.span - 1) + (this.at === null ? 0 : step), true);
    else return;
    event.preventDefault();
  }

  move(at, speak = false) {
    this.at = at === null ? null : Math.max(0, Math.min((this.data?.span ?? WINDOW) - 1, at));
    this.draw();
    if (speak && this.data) setText($("chart-live"), `${clock(this.second() * 1000)}: ${this.readings().map(([name, text]) => `${name} ${text}`).join(", ")}`);
  }

  second() {
    return this.data.last - (this.data.span - 1) + this.at;
  }

  readings() {
    return this.data.series
      .map((series) => [series.name, this.options.reading(series.values[this.at]), series])
      .filter(([, text]) => text !== null);
  }

  /** Takes `span` in seconds, `last` second, `series` ({name, colour, values, dashed}), `marks`. */
  show(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    const { width, height } = this.plot.getBoundingClientRect();
    if (!this.data || width < 50) return;
    this.left = 44;
    const bottom = height - 20;
    const top = 14;
    const x = (at) => this.left + (at / (this.data.span - 1)) * (width - this.left);
    const scale = this.options.scale(this.data.series);
    const y = (value) => bottom - scale.share(value) * (bottom - top);
    const parts = [];
    for (const tick of scale.ticks) {
      parts.push(element("line", { class: "grid", x1: this.left, x2: width, y1: y(tick), y2: y(tick) }));
      parts.push(element("text", { x: this.left - 8, y: y(tick) + 4, "text-anchor": "end", text: this.options.tick(tick) }));
    }
    const step = this.data.span / (width < 420 ? 2 : this.data.span === WINDOW ? 5 : 4);
    for (let ago = this.data.span; ago > 0; ago -= step) {
      const at = Math.max(0, this.data.span - 1 - ago);
      const text = ago % 60 === 0 && ago > 60 ? `−${ago / 60} min` : `−${ago} s`;
      parts.push(element("text", { x: x(at), y: height - 3, "text-anchor": at === 0 ? "start" : "middle", text }));
    }
    parts.push(element("text", { x: width, y: height - 3, "text-anchor": "end", text: "now" }));
    parts.push(...(this.options.stacked ? this.areas(x, y) : this.lines(x, y)));
    let labelsEnd = -Infinity;
    for (const mark of [...this.data.marks].sort((one, other) => one.second - other.second)) {
      const at = this.data.span - 1 - (this.data.last - mark.second);
      if (at < 0) continue;
      parts.push(element("line", { class: "mark", x1: x(at), x2: x(at), y1: top, y2: bottom }, element("title", { text: mark.text })));
      const end = x(at) > width - 60;
      // About 7 pixels a letter; a label that would lie on another one is left to the tool tip.
      const size = mark.label.length * 7 + 8;
      const begins = end ? x(at) - size : x(at);
      if (begins < labelsEnd) continue;
      labelsEnd = begins + size;
      parts.push(element("text", { class: "mark-text", x: x(at) + (end ? -4 : 4), y: 10, "text-anchor": end ? "end" : "start", text: mark.label }));
    }
    if (this.data.series.every((series) => series.values.every((value) => !value))) {
      parts.push(element("text", { class: "empty", x: (width + this.left) / 2, y: height / 2, text: this.options.empty }));
    }
    if (this.at !== null) parts.push(element("line", { class: "cross", x1: x(this.at), x2: x(this.at), y1: top, y2: bottom }));
    this.svg.replaceChildren(...parts);
    this.showTip(x);
  }

  areas(x, y) {
    const parts = [];
    const sums = new Array(this.data.span).fill(0);
    for (const series of this.data.series.filter((series) => !series.dashed)) {
      const below = [...sums];
      series.values.forEach((value, at) => (sums[at] += value ?? 0));
      const upper = sums.map((value, at) => `${at ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      const lower = below.map((value, at) => `L${x(at).toFixed(1)} ${y(value).toFixed(1)}`).reverse().join("");
      const area = element("path", { d: `${upper}${lower}Z` });
      area.style.fill = `color-mix(in srgb, ${series.colour} 78%, var(--card))`;
      parts.push(area);
    }
    return [...parts, ...this.lines(x, y, true)];
  }

  lines(x, y, dashed = false) {
    return this.data.series.filter((series) => Boolean(series.dashed) === dashed || !this.options.stacked).map((series) => {
      let pen = "M";
      const path = series.values.map((value, at) => {
        if (value === null || value === undefined) {
          pen = "M";
          return "";
        }
        const point = `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
        return point;
      });
      const line = element("path", { d: path.join(""), fill: "none", "stroke-width": 2, "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": series.dashed ? "2 4" : null });
      line.style.stroke = series.colour;
      return line;
    });
  }

  showTip(x) {
    this.tip.hidden = this.at === null;
    if (this.at === null) return;
    const list = element("ul");
    for (const [name, text, series] of this.readings()) {
      const swatch = element("span", { class: "swatch" });
      swatch.style.background = series.colour;
      list.append(element("li", {}, swatch, name, element("b", { text })));
    }
    this.tip.replaceChildren(element("p", { text: clock(this.second() * 1000) }), list);
    const left = x(this.at);
    const { width } = this.plot.getBoundingClientRect();
    const own = this.tip.offsetWidth;
    this.tip.style.left = `${left + own + 24 > width ? left - own - 12 : left + 12}px`;
  }
}

/** A linear axis from 0 to the largest sum of the series that are not dashed, with 3 to 5 ticks. */
function linearScale(series) {
  const stacked = series.filter((one) => !one.dashed);
  let max = 0;
  for (let at = 0; at < series[0].values.length; at += 1) max = Math.max(max, stacked.reduce((sum, one) => sum + (one.values[at] ?? 0), 0));
  const rough = Math.max(max, 4) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough && size >= 1) ?? power * 10;
  const ticks = [];
  for (let tick = 0; tick <= Math.max(max, 4) + step * 0.001; tick += step) ticks.push(tick);
  const upper = Math.max(max, 4) * 1.04;
  return { ticks, share: (value) => Math.min(1, value / upper) };
}

/** A logarithmic axis over whole powers of ten of microseconds. */
function logScale(series) {
  const all = series.flatMap((one) => one.values).filter((value) => value > 0);
  const from = Math.floor(Math.log10(Math.min(...all, 1000)));
  const to = Math.max(from + 2, Math.ceil(Math.log10(Math.max(...all, 10_000))));
  const ticks = [];
  for (let power = from; power <= to; power += 1) ticks.push(10 ** power);
  return { ticks, share: (value) => Math.max(0, (Math.log10(Math.max(value, 1)) - from) / (to - from)) };
}
