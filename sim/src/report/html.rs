//! Parts of the page: head, sections, bars, escaping.

use std::fmt::Write as _;

use crate::summary::thousands;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--soft:#f2f4f7;--line:#d5dae1;--bar:#0072b2}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ee;--bg:#14171b;--soft:#1d2228;--line:#39414b;--bar:#56b4e9}}\
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}\
main{max-width:1000px;margin:0 auto;padding:1rem}\
h1{font-size:1.7rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}h3{font-size:1rem}\
code{background:var(--soft);padding:.1em .3em;border-radius:4px;overflow-wrap:anywhere}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}\
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:right}\
th:first-child,td.text,th[scope=row]{text-align:left}\
figure{margin:0}svg{width:100%;height:auto}figcaption{font-size:.9rem}\
.key{margin-left:.8rem;white-space:nowrap}.key i{display:inline-block;width:1em;height:.3em;\
margin-right:.3em;vertical-align:middle}\
.verdict{font-size:.85em;padding:.1em .6em;border-radius:1em;color:#fff}\
.good{background:#00704f}.bad{background:#b34700}.unsure{background:#5b6570}\
.bars{display:grid;grid-template-columns:max-content 1fr;gap:.25rem .8rem;align-items:center}\
.bars div{background:var(--soft)}.bars b{display:block;background:var(--bar);height:1.1em;min-width:2px}\
.bars em{font-style:normal}";

/// Returns the page up to its content.
pub(super) fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head><body><main>\n",
        escape(title)
    )
}

/// Returns a section of the page; `content` is HTML.
pub(super) fn section(title: &str, content: &str) -> String {
    format!("<section><h2>{}</h2>{content}</section>\n", escape(title))
}

/// Returns horizontal bars with their numbers.
pub(super) fn bars(values: &[(String, u64)], unit: &str) -> String {
    let largest = values.iter().map(|(_, value)| *value).max().unwrap_or(0).max(1);
    let mut text = String::from("<div class=\"bars\">");
    for (name, value) in values {
        let percent = *value as f64 / largest as f64 * 100.0;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<span>{} <em>{} {unit}</em></span><div><b style=\"width:{percent:.1}%\"></b></div>",
            escape(name),
            thousands(*value),
        );
    }
    text.push_str("</div>\n");
    text
}

/// Escapes a text for HTML.
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
