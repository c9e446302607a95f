//! Text drawings of a ring, a plan and the locations of keys for a terminal: aligned columns, bars,
//! and optional colours.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::ring::{NONE, Node};
use crate::{KeyHash, NodeName, Plan, Ring, Role, Slot, SlotRange};

/// Minimum width in columns. The strip then has up to 36 letters. Bars need a wider drawing,
/// because the tables of nodes and zones are wider than this.
const WIDTH_MIN: usize = 40;
/// Width in columns of the text that [`fmt::Display`] writes.
const WIDTH_DEFAULT: usize = 80;
/// Letters that stand for nodes in the strip, the drawing of the hash circle. A ring with more
/// nodes than letters is drawn without a strip.
const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Width and colours of a drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Intended maximum number of columns in a line. A width below 40 is treated as 40. Only bars,
    /// the strip of the hash circle and the slots of moves are fitted to the width. Other text is
    /// never cut, so a line can be longer.
    pub width: usize,
    /// `true` to colour the bars of nodes and the letters of the hash circle with ANSI escape
    /// codes.
    pub colour: bool,
}

impl Default for Style {
    fn default() -> Style {
        Style {
            width: WIDTH_DEFAULT,
            colour: false,
        }
    }
}

impl Style {
    /// Colours a text for the node with this index, if the style has colours. Nodes get the
    /// terminal's colours 1 (red) to 6 (cyan) in turn.
    fn paint(&self, index: usize, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", 31 + index % 6)
        } else {
            text.to_string()
        }
    }
}

/// The location of a key, as shown in a table or in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct KeyPlace<'a> {
    /// The key, as given.
    pub key: &'a str,
    /// The 64-bit hash of the key as 16 hexadecimal digits.
    pub hash: String,
    /// The slot of the key.
    pub slot: Slot,
    /// `true` if the slot is pinned.
    pub pinned: bool,
    /// The nodes that hold the slot, the owner first. Empty for a ring without members.
    pub nodes: Vec<&'a NodeName>,
}

/// Formats a number with commas, such as 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a part of a whole as a percentage such as `12.34 %`.
fn percent(part: u64, whole: u64) -> String {
    let parts = (part * 10_000 + whole / 2) / whole.max(1);
    format!("{}.{:02} %", parts / 100, parts % 100)
}

/// Draws a bar with a resolution of an eighth of a character. The bar is `width` columns long if
/// `part` equals `whole`.
fn bar(part: u64, whole: u64, width: usize) -> String {
    const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (part * width as u64 * 8).div_ceil(whole.max(1)) as usize;
    let mut bar: String = core::iter::repeat_n('█', eighths / 8).collect();
    bar.extend((eighths % 8).checked_sub(1).map(|index| EIGHTHS[index]));
    bar
}

/// A table in which each column is as wide as its head or its widest cell. Numbers are aligned to
/// the right.
struct Table {
    heads: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table from the heads of its columns. The flag is `true` for a column of numbers.
    fn new(heads: &[(&'static str, bool)]) -> Table {
        Table {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    fn widths(&self) -> Vec<usize> {
        let width = |(column, head): (usize, &(&str, bool))| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([head.0.len()]).max().unwrap_or(0)
        };
        self.heads.iter().enumerate().map(width).collect()
    }

    /// Returns the width of a row in characters, margins included.
    fn width(&self) -> usize {
        self.widths().iter().map(|width| width + 2).sum()
    }

    /// Draws the table. `tail` returns the text behind a row, by the index of the row.
    fn draw(&self, out: &mut String, tail: impl Fn(usize) -> String) {
        let widths = self.widths();
        let line = |cells: &mut dyn Iterator<Item = &str>, tail: &str| {
            let mut line = String::new();
            for ((cell, width), (_, number)) in cells.zip(&widths).zip(&self.heads) {
                let width = *width;
                line += &if *number {
                    format!("  {cell:>width$}")
                } else {
                    format!("  {cell:<width$}")
                };
            }
            line = format!("{line}  {tail}");
            format!("{}\n", line.trim_end())
        };
        *out += &line(&mut self.heads.iter().map(|head| head.0), "");
        for (index, row) in self.rows.iter().enumerate() {
            *out += &line(&mut row.iter().map(String::as_str), &tail(index));
        }
    }
}

/// Draws a ring: its epoch, options and digest, the share of each node and zone as bars, the hash
/// circle as a strip of letters, and the pinned slots. Zones are left out if no member has one, and
/// the strip if there are more members than letters. Of a ring without members, only epoch, options
/// and digest are drawn.
#[must_use]
pub fn show(ring: &Ring, style: Style) -> String {
    let width = style.width.max(WIDTH_MIN);
    let hash = match ring.key_hash() {
        KeyHash::Xxh3 { .. } => "xxh3-64",
        KeyHash::SipHash13 { .. } => "siphash-1-3",
    };
    let plural = if ring.replication() == 1 { "" } else { "s" };
    let mut out = format!(
        "ring of epoch {}: {} slots, {} replica{plural}, {hash}\ndigest {}\n",
        ring.epoch(),
        grouped(u64::from(ring.slots())),
        ring.replication(),
        ring.digest()
    );
    if ring.members().is_empty() {
        out += "\n  no members: no key has an owner\n";
        return out;
    }
    out.push('\n');
    nodes(ring, style, width, &mut out);
    if ring.members().iter().any(|member| member.zone().is_some()) {
        out.push('\n');
        zones(ring, width, &mut out);
    }
    if ring.members().len() <= LETTERS.len() {
        out.push('\n');
        strip(ring, style, width, &mut out);
    }
    if !ring.pins().is_empty() {
        let pins: Vec<String> = ring.pins().iter().map(ToString::to_string).collect();
        out += &format!("\n  pinned slots: {}\n", pins.join(", "));
    }
    out
}

fn nodes(ring: &Ring, style: Style, width: usize, out: &mut String) {
    let lettered = ring.members().len() <= LETTERS.len();
    let heads = [
        ("", false),
        ("node", false),
        ("weight", true),
        ("zone", false),
        ("slots", true),
        ("copies", true),
        ("share", true),
    ];
    let mut table = Table::new(&heads);
    let shares = ring.shares();
    for (index, share) in shares.iter().enumerate() {
        let letter = LETTERS
            .get(index)
            .filter(|_| lettered)
            .map_or(String::new(), |&byte| char::from(byte).into());
        table.rows.push(Vec::from([
            letter,
            share.member.name().to_string(),
            grouped(u64::from(share.member.weight())),
            share.member.zone().map_or("-".to_string(), ToString::to_string),
            grouped(u64::from(share.primaries)),
            grouped(u64::from(share.copies)),
            percent(u64::from(share.primaries), u64::from(ring.slots())),
        ]));
    }
    let room = width.saturating_sub(table.width() + 2);
    let most = shares
        .iter()
        .map(|share| u64::from(share.primaries))
        .max()
        .unwrap_or(1);
    table.draw(out, |index| {
        style.paint(index, &bar(u64::from(shares[index].primaries), most, room))
    });
}

fn zones(ring: &Ring, width: usize, out: &mut String) {
    let heads = [
        ("zone", false),
        ("nodes", true),
        ("weight", true),
        ("slots", true),
        ("copies", true),
        ("share", true),
    ];
    let mut table = Table::new(&heads);
    let zones = ring.zone_shares();
    for zone in &zones {
        table.rows.push(Vec::from([
            zone.zone.map_or("-".to_string(), ToString::to_string),
            zone.nodes.to_string(),
            grouped(zone.weight),
            grouped(u64::from(zone.primaries)),
            grouped(u64::from(zone.copies)),
            percent(u64::from(zone.primaries), u64::from(ring.slots())),
        ]));
    }
    let room = width.saturating_sub(table.width() + 2);
    let most = zones
        .iter()
        .map(|zone| u64::from(zone.primaries))
        .max()
        .unwrap_or(1);
    table.draw(out, |index| bar(u64::from(zones[index].primaries), most, room));
}

/// Draws the hash circle as a strip of letters. Each letter stands for a run of slots, and names
/// the node that owns most slots of the run.
fn strip(ring: &Ring, style: Style, width: usize, out: &mut String) {
    let slots = ring.slots() as usize;
    let letters = (width - 4).min(slots);
    let mut line = String::new();
    for index in 0..letters {
        let stretch = ring
            .cells
            .get(index * slots / letters..(index + 1) * slots / letters)
            .unwrap_or_default();
        let mut counts: BTreeMap<Node, usize> = BTreeMap::new();
        for &node in stretch.iter().filter(|node| **node != NONE) {
            *counts.entry(node).or_default() += 1;
        }
        let most = counts
            .iter()
            .max_by_key(|&(&node, &count)| (count, Node::MAX - node));
        let node = most.map_or(0, |(&node, _)| usize::from(node));
        let letter = LETTERS.get(node).map_or('?', |&byte| char::from(byte));
        line += &style.paint(node, &letter.to_string());
    }
    let last = format!("slot {}", grouped(slots as u64 - 1));
    *out += &format!(
        "  {line}\n  slot 0{last:>room$}\n",
        room = letters.saturating_sub(6)
    );
}

/// Draws a plan as a table of its moves, with the number of copied slot replicas, the minimum of
/// this number, and the balance after the plan.
#[must_use]
pub fn plan(plan: &Plan, style: Style) -> String {
    let width = style.width.max(WIDTH_MIN);
    let mut out = format!(
        "plan from epoch {} to {}: {} slots' data move{}, the minimum is {}\n",
        plan.from_epoch,
        plan.from_epoch.0.saturating_add(1),
        grouped(u64::from(plan.moved)),
        if plan.moved == 1 { "s" } else { "" },
        grouped(u64::from(plan.minimum)),
    );
    let balance = |what: &str, spread: crate::Spread| {
        let fullest = format!(
            "{}.{:03}",
            spread.fullest_permille / 1000,
            spread.fullest_permille % 1000
        );
        format!(
            "{what}: {} to {} a node, fullest {fullest} of its weight\n",
            grouped(spread.least.into()),
            grouped(spread.most.into())
        )
    };
    out += &balance("slots after it", plan.balance.primaries);
    if plan.balance.copies.most > 0 {
        out += &balance("copies after it", plan.balance.copies);
    }
    if plan.is_empty() {
        out += "\n  nothing moves\n";
        return out;
    }
    let mut groups: BTreeMap<(bool, Role, &str, &str), Vec<SlotRange>> = BTreeMap::new();
    for step in &plan.moves {
        let (from, to) = (node_text(&step.from), node_text(&step.to));
        groups
            .entry((!step.transfer, step.role, from, to))
            .or_default()
            .push(step.slots);
    }
    let heads = [
        ("from", false),
        ("to", false),
        ("role", false),
        ("data", false),
        ("slots", true),
    ];
    let mut table = Table::new(&heads);
    for ((stays, role, from, to), ranges) in &groups {
        let count: u64 = ranges.iter().map(|range| u64::from(range.count())).sum();
        let data = if *stays { "-" } else { "moves" };
        table.rows.push(Vec::from([
            (*from).into(),
            (*to).into(),
            role.to_string(),
            data.into(),
            grouped(count),
        ]));
    }
    let room = width.saturating_sub(table.width() + 2);
    let ranges: Vec<&Vec<SlotRange>> = groups.values().collect();
    out.push('\n');
    table.draw(&mut out, |index| listed(ranges[index], room));
    out
}

fn node_text(node: &Option<NodeName>) -> &str {
    node.as_ref().map_or("nobody", NodeName::as_str)
}

/// Lists as many ranges as fit into `room` columns. An ellipsis stands for further ranges. Returns
/// an empty text if the first range, with an ellipsis if further ranges follow, does not fit.
fn listed(ranges: &[SlotRange], room: usize) -> String {
    let mut text = String::new();
    for (index, range) in ranges.iter().enumerate() {
        let next = format!("{}{range}", if index == 0 { "" } else { ", " });
        let last = index + 1 == ranges.len();
        if text.len() + next.len() + if last { 0 } else { 5 } > room {
            text += if index == 0 { "" } else { ", ..." };
            break;
        }
        text += &next;
    }
    if text.len() > room { String::new() } else { text }
}

/// Draws the locations of keys as a table.
#[must_use]
pub fn places(places: &[KeyPlace<'_>]) -> String {
    let heads = [
        ("key", false),
        ("hash", false),
        ("slot", true),
        ("owner", false),
        ("copies", false),
    ];
    let mut table = Table::new(&heads);
    for place in places {
        let mut nodes = place.nodes.iter().map(ToString::to_string);
        let pin = if place.pinned { " (pinned)" } else { "" };
        let owner = nodes
            .next()
            .map_or("nobody".to_string(), |owner| format!("{owner}{pin}"));
        let copies: Vec<String> = nodes.collect();
        let key = place.key.chars().flat_map(char::escape_debug).collect();
        table.rows.push(Vec::from([
            key,
            place.hash.clone(),
            place.slot.to_string(),
            owner,
            copies.join(", "),
        ]));
    }
    let mut out = String::new();
    table.draw(&mut out, |_| String::new());
    out
}

impl Ring {
    /// Returns the location of each key, in the order of `keys`.
    #[must_use]
    pub fn places<'a>(&'a self, keys: &[&'a str]) -> Vec<KeyPlace<'a>> {
        let place = |key: &&'a str| {
            let slot = self.slot_of(key.as_bytes());
            KeyPlace {
                key,
                hash: format!("{:016x}", self.key_hash().hash(key.as_bytes())),
                slot,
                pinned: self.pins().binary_search(&slot).is_ok(),
                nodes: self
                    .replicas(slot, usize::from(self.replication()))
                    .into_iter()
                    .flatten()
                    .collect(),
            }
        };
        keys.iter().map(place).collect()
    }
}

/// Writes the drawing of [`show`], 80 columns wide and without colours.
impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(self, Style::default()))
    }
}

/// Writes the drawing of [`plan`], 80 columns wide and without colours.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plan(self, Style::default()))
    }
}
