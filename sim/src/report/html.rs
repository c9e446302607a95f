//! HTML building blocks of a report: head, panels, grid, tiles, bars, escaping.

use std::fmt::Write as _;

use crate::summary::plural;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1b1f24;--mild:#57606a;--bg:#f4f6f8;--panel:#fff;--soft:#eef1f4;\
--line:#d5dae1;--bar:#0072b2;--good:#00704f;--bad:#b34700}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ee;--mild:#a3adb8;--bg:#0f1216;--panel:#181c21;\
--soft:#232930;--line:#333b44;--bar:#56b4e9;--good:#3ccf9f;--bad:#ff9a5c}}\
*{box-sizing:border-box}\
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1320px;margin:0 auto;padding:1rem}\
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.05rem;margin:0 0 .5rem}h3{font-size:.95rem;margin:.8rem 0 .3rem}\
header p{margin:.2rem 0;color:var(--mild)}\
code{background:var(--soft);padding:.1em .3em;border-radius:4px;overflow-wrap:anywhere}\
.panel{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:0 0 1rem}\
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem;align-items:start}.grid .panel{margin:0}\
.grid{margin:0 0 1rem}@media(max-width:900px){.grid{grid-template-columns:minmax(0,1fr)}}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:.7rem;margin:1rem 0}\
.tile{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem}\
.tile dt{color:var(--mild);font-size:.82rem}.tile dd{margin:0;font-size:1.5rem;line-height:1.25;\
font-variant-numeric:tabular-nums}.tile dd small{font-size:.8rem;color:var(--mild);display:block}\
.tile.good dd{color:var(--good)}.tile.bad dd{color:var(--bad)}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}\
th,td{border-bottom:1px solid var(--line);padding:.25rem .6rem;text-align:right;white-space:nowrap}\
th{font-weight:600}tr:last-child>*{border-bottom:0}\
th:first-child,th.text,td.text,th[scope=row]{text-align:left}td.text{white-space:normal}\
figure{margin:0}figcaption{font-size:.88rem}figcaption em,.bars em{font-style:normal;color:var(--mild)}\
.plot{overflow-x:auto}.plot svg{display:block;width:100%;min-width:520px;height:auto}\
.lanes svg{min-width:900px;font-size:12px}.lanes text{fill:currentColor}.lanes line{stroke:var(--line)}\
.lanes .tick{fill:var(--mild)}\
.tips rect{fill:transparent}.tips rect:hover{fill:currentColor;fill-opacity:.08}\
.key{margin-right:1rem;white-space:nowrap}.key i{display:inline-block;width:1em;height:.25em;\
margin-right:.35em;vertical-align:middle}\
.verdict{font-size:.8em;padding:.1em .6em;border-radius:1em;color:#fff;white-space:nowrap}\
.verdict.good{background:#00704f}.verdict.bad{background:#b34700}.verdict.unsure{background:#5b6570}\
.better{color:var(--good)}.worse{color:var(--bad)}\
.bars{display:grid;grid-template-columns:max-content 1fr;gap:.25rem .8rem;align-items:center;font-size:.92rem}\
.bars div{background:var(--soft);border-radius:3px}.bars b{display:block;background:var(--bar);height:1em;\
min-width:2px;border-radius:3px}\
ul{padding-left:1.2rem;margin:.3rem 0}pre{background:var(--soft);padding:.6rem;border-radius:6px;overflow-x:auto;\
font-size:.85rem;margin:.3rem 0}summary{cursor:pointer}\
@media print{body{background:#fff}.panel,.tile{break-inside:avoid}}";

/// Returns the start of an HTML page, up to its content.
pub(super) fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head><body><main>\n",
        escape(title)
    )
}

/// The end of an HTML page, after its content.
pub(super) const FOOT: &str = "</main></body></html>\n";

/// Returns a panel of the page with a title and the HTML `content`. Returns an empty text if
/// `content` is empty.
pub(super) fn panel(title: &str, content: &str) -> String {
    match content.is_empty() {
        true => String::new(),
        false => format!(
            "<section class=\"panel\"><h2>{}</h2>{content}</section>\n",
            escape(title)
        ),
    }
}

/// Returns a panel with a chart. The panel needs no title, because the chart has one.
pub(super) fn chart_panel(content: &str) -> String {
    format!("<section class=\"panel\">{content}</section>\n")
}

/// Returns a grid that shows panels side by side.
pub(super) fn grid(panels: &str) -> String {
    format!("<div class=\"grid\">{panels}</div>\n")
}

/// A prominent number at the top of the page.
pub(super) struct Tile {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) note: String,
    /// `true` for a good value, `false` for a bad value, `None` for a number that is neither good
    /// nor bad.
    pub(super) is_good: Option<bool>,
}

/// Returns the tiles side by side.
pub(super) fn tiles(tiles: &[Tile]) -> String {
    let mut text = String::from("<dl class=\"tiles\">");
    for tile in tiles {
        let class = match tile.is_good {
            Some(true) => " good",
            Some(false) => " bad",
            None => "",
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<div class=\"tile{class}\"><dt>{}</dt><dd>{}<small>{}</small></dd></div>",
            tile.name,
            escape(&tile.value),
            escape(&tile.note),
        );
    }
    text.push_str("</dl>\n");
    text
}

/// Returns horizontal bars, each with its name and its count. `unit` is the singular noun of the
/// count. Returns an empty text if `values` is empty.
pub(super) fn bars(values: &[(String, u64)], unit: &str) -> String {
    if values.is_empty() {
        return String::new();
    }
    let largest = values.iter().map(|(_, value)| *value).max().unwrap_or(0).max(1);
    let mut text = String::from("<div class=\"bars\">");
    for (name, value) in values {
        let percent = *value as f64 / largest as f64 * 100.0;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<span>{} <em>{}</em></span><div><b style=\"width:{percent:.1}%\"></b></div>",
            escape(name),
            plural(*value, unit),
        );
    }
    text.push_str("</div>\n");
    text
}

/// Escapes a text for use in HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
