// Elements, formats, colours, theme. All text from data is set as text, never as markup.

const $ = (id) => document.getElementById(id);

/** Makes an element with attributes and children; `text` is its text, `class` its classes. */
function element(name, attributes = {}, ...children) {
  const svg = element.svgNames.has(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
element.svgNames = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "pattern", "defs", "title"]);

function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

function setAttribute(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Gives `parent` one child for each item, in order. A child with the key of an item is reused. */
function keyed(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, at) => {
    const key = String(keyOf(item));
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
    update(child, item);
  });
  for (const gone of known.values()) gone.remove();
}

const numbers = new Intl.NumberFormat("en");
const count = (value) => numbers.format(Math.round(value));

const compactNumbers = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const compact = (value) => compactNumbers.format(value);

/** A rate as text: with one decimal below 10. */
function rate(value) {
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(1) : count(value);
}

/** Microseconds in the unit that fits, as value and unit. */
function latency(us) {
  if (us === null || us === undefined) return ["–", ""];
  const digits = (value) => (value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0));
  if (us < 1e3) return [String(Math.round(us)), "µs"];
  return us < 1e6 ? [digits(us / 1e3), "ms"] : [digits(us / 1e6), "s"];
}
const latencyText = (us) => latency(us).join(" ").trim();

/** Milliseconds as text: one unit below 10 s, otherwise at most the two largest units. */
function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.floor(ms / 1000);
  const parts = [["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, size]) => seconds >= size);
  const [unit, size] = parts[first];
  const next = parts[first + 1];
  const rest = next ? Math.floor((seconds % size) / next[1]) : 0;
  return rest ? `${Math.floor(seconds / size)} ${unit} ${rest} ${next[0]}` : `${Math.floor(seconds / size)} ${unit}`;
}

const pad = (value, width = 2) => String(value).padStart(width, "0");
function clock(ms, withMillis = false) {
  const at = new Date(ms);
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return withMillis ? `${time}.${pad(at.getMilliseconds(), 3)}` : time;
}
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// Colours. A name of a volume or node keeps the colour that it got when the page first saw it. From
// the ninth name on, the colours are repeated with stripes.
const COLOURS = 8;
const colourOrder = [];
function colour(name) {
  let at = colourOrder.indexOf(name);
  if (at < 0) at = colourOrder.push(name) - 1;
  return { css: `var(--c${(at % COLOURS) + 1})`, stripes: at >= COLOURS };
}
function paintSwatch(swatch, name) {
  const { css, stripes } = colour(name);
  swatch.style.background = stripes ? `repeating-linear-gradient(45deg, ${css} 0 3px, var(--card) 3px 5px)` : css;
}

// Theme: each click shows the next of `themes`. Without a stored theme, the system's is shown.
const themes = ["system", "light", "dark"];
function storedTheme() {
  try {
    const stored = localStorage.getItem("imt-theme");
    return themes.includes(stored) ? stored : "system";
  } catch {
    return "system";
  }
}
function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = `Theme: ${theme === "system" ? "as the system" : theme}`;
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}
showTheme(storedTheme());
$("theme").addEventListener("click", () => {
  const next = themes[(themes.indexOf(storedTheme()) + 1) % themes.length];
  try {
    localStorage.setItem("imt-theme", next);
  } catch {
    // The browser stores nothing. The theme then lasts until the page is loaded again.
  }
  showTheme(next);
});
