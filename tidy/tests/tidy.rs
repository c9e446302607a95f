//! Checks the sources of the whole workspace against the project's rules on structure and prose.
//! Trouble words are the relative pronouns that `imt_tidy::prose` counts.
//!
//! A crate or document may break a rule only if it has an entry in one of the tables of debts
//! below: the permitted number of breaches. The test fails if there are more breaches than
//! permitted. The test also fails if there are fewer, so that somebody lowers the entry.

#![allow(clippy::unwrap_used, reason = "a test stops where it cannot read its input")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use imt_tidy::comments::{comment_lines, prose_of};
use imt_tidy::imports::{crate_names, re_exports, top_module};
use imt_tidy::prose::{WordCount, count_words, paragraphs, prose_lines};
use imt_tidy::{files_below, workspace_root};

/// Maximum width of a line in comments and documents, in columns.
const LINE_COLUMNS_MAX: usize = 100;
/// Maximum length of a paragraph in documents, in words.
const PARAGRAPH_WORDS_MAX: usize = 90;
/// Maximum length of a Rust file, in lines.
const FILE_LINES_MAX: usize = 700;
/// Maximum number of trouble words (relative pronouns without a noun) per 1,000 words of prose.
const TROUBLE_MAX: usize = 3;

const CRATES: [&str; 8] = ["microdb", "ring", "oms", "sim", "live", "cli", "benches", "tidy"];

/// Crates with their layers, from the top to the bottom. A module may use modules of its own layer
/// and of lower layers. Each top-level module of a listed crate must be in a layer.
const LAYERS: &[(&str, &[&[&str]])] = &[
    (
        "microdb",
        &[
            &["lib"],
            &["testing"],
            &["db", "transaction"],
            &["tools"],
            &["any_table", "batch", "snapshot", "stats", "table", "typed"],
            &["recover"],
            &["engine", "value"],
            &["directory", "options"],
            &["format", "storage"],
            &["error", "raw", "seeded", "sequence"],
        ],
    ),
    (
        "ring",
        &[
            &["lib"],
            &["render", "json"],
            &["plan"],
            &["placement"],
            &["merged", "quota"],
            &["balance"],
            &["ring", "encode", "options", "member", "key", "digest", "error"],
        ],
    ),
    (
        "oms",
        &[
            &["lib"],
            &["node", "simulation"],
            &["api"],
            &["control"],
            &["volume"],
            &["cluster"],
            &["storage"],
            &["config"],
            &["outbox"],
            &["domain"],
            &["error", "postgres"],
            &["runtime"],
        ],
    ),
    (
        "live",
        &[
            &["lib"],
            &["view"],
            &["keys", "picture", "terminal"],
            &["draw"],
            &["log_lines", "state", "theme"],
            &["figures", "svg"],
        ],
    ),
];
/// Permitted imports from a lower to a higher layer, as (crate, module, imported module).
const UPWARD_IMPORTS: &[(&str, &str, &str)] = &[];

/// Permitted number of comment lines wider than 100 columns, by crate.
const WIDE_COMMENTS: &[(&str, usize)] = &[];
/// Permitted number of trouble words per 1,000 words of comments, by crate.
const TROUBLE_IN_COMMENTS: &[(&str, usize)] = &[];
/// Permitted number of lines wider than 100 columns, by document.
const WIDE_DOCUMENT_LINES: &[(&str, usize)] = &[];
/// Permitted number of paragraphs of more than 90 words, by document.
const LONG_PARAGRAPHS: &[(&str, usize)] = &[];
/// Permitted number of files of more than 700 lines, by crate.
const LONG_FILES: &[(&str, usize)] = &[];
/// Permitted number of trouble words per 1,000 words, by document.
const TROUBLE_IN_DOCUMENTS: &[(&str, usize)] = &[];

/// Number of breaches of one rule, or of trouble words per 1,000 words, by crate or document, with
/// the locations of the breaches.
#[derive(Default)]
struct Counts(BTreeMap<String, (usize, Vec<String>)>);

impl Counts {
    fn add(&mut self, name: &str, place: String) {
        let entry = self.0.entry(name.to_owned()).or_default();
        entry.0 += 1;
        entry.1.push(place);
    }

    /// Fails if a count differs from its entry in `debts`. A count without an entry may be at most
    /// `limit`.
    fn hold(&self, rule: &str, debts: &[(&str, usize)], limit: usize) {
        let mut report = String::new();
        let debts: BTreeMap<&str, usize> = debts.iter().copied().collect();
        let names = self.0.keys().map(String::as_str).chain(debts.keys().copied());
        let names: BTreeSet<&str> = names.collect();
        for name in names {
            let (count, places) = self.0.get(name).cloned().unwrap_or_default();
            let debt = debts.get(name).copied().unwrap_or(limit);
            if count > debt {
                let _ = writeln!(report, "{name}: {count}, at most {debt}");
                for place in places.iter().take(5) {
                    let _ = writeln!(report, "    {place}");
                }
            } else if count < debt && debts.contains_key(name) {
                let _ = writeln!(report, "{name}: {count}; lower its debt of {debt} to that");
            }
        }
        assert!(report.is_empty(), "{rule}\n{report}");
    }
}

fn relative(path: &Path) -> String {
    let root = workspace_root();
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// Calls `visit` with each Rust file of the workspace and its crate: crate name, path, text.
fn for_each_source(mut visit: impl FnMut(&str, &Path, &str)) {
    for name in CRATES {
        for path in files_below(&workspace_root().join(name), "rs").unwrap() {
            visit(name, &path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Calls `visit` with the path and the text of each document: those of the root folder and of
/// `docs/`, except for dated notes, and the `README.md` of each crate.
fn for_each_document(mut visit: impl FnMut(&str, &str)) {
    let mut paths = files_below(&workspace_root().join("docs"), "md").unwrap();
    let at_the_root = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    paths.extend(at_the_root.map(|name| workspace_root().join(name)));
    paths.extend(CRATES.map(|name| workspace_root().join(name).join("README.md")));
    // Dated notes record the observations of one day in the words of that day, so the rules do not
    // apply to them.
    paths.retain(|path| path.exists() && !path.starts_with(workspace_root().join("docs/log")));
    for path in paths {
        visit(&relative(&path), &std::fs::read_to_string(&path).unwrap());
    }
}

#[test]
fn comments_are_at_most_100_columns_wide() {
    let mut counts = Counts::default();
    for_each_source(|name, path, source| {
        for comment in comment_lines(source) {
            if comment.line.chars().count() > LINE_COLUMNS_MAX {
                counts.add(name, format!("{}:{}", relative(path), comment.number));
            }
        }
    });
    counts.hold("Comment lines wider than 100 columns:", WIDE_COMMENTS, 0);
}

#[test]
fn comments_name_their_subjects() {
    let mut words: BTreeMap<&str, WordCount> = BTreeMap::new();
    for_each_source(|name, _, source| {
        let name = CRATES
            .into_iter()
            .find(|known| *known == name)
            .unwrap_or_default();
        words.entry(name).or_default().add(count_words(&prose_of(source)));
    });
    let mut counts = Counts::default();
    for (name, count) in words {
        counts
            .0
            .insert(name.to_owned(), (count.per_thousand(), Vec::new()));
    }
    counts.hold(
        "Trouble words per 1,000 words of comments:",
        TROUBLE_IN_COMMENTS,
        TROUBLE_MAX,
    );
}

#[test]
fn document_lines_are_at_most_100_columns_wide() {
    let mut counts = Counts::default();
    for_each_document(|name, text| {
        for (number, line) in prose_lines(text) {
            if line.chars().count() > LINE_COLUMNS_MAX && !line.trim_start().starts_with('|') {
                counts.add(name, format!("{name}:{number}"));
            }
        }
    });
    counts.hold("Document lines wider than 100 columns:", WIDE_DOCUMENT_LINES, 0);
}

#[test]
fn paragraphs_of_documents_have_at_most_90_words() {
    let mut counts = Counts::default();
    for_each_document(|name, text| {
        for paragraph in paragraphs(text) {
            if paragraph.words > PARAGRAPH_WORDS_MAX {
                counts.add(
                    name,
                    format!("{name}:{}: {} words", paragraph.number, paragraph.words),
                );
            }
        }
    });
    counts.hold("Paragraphs of more than 90 words:", LONG_PARAGRAPHS, 0);
}

#[test]
fn documents_name_their_subjects() {
    let mut counts = Counts::default();
    for_each_document(|name, text| {
        let count = count_words(&prose_lines(text).fold(String::new(), |all, (_, line)| all + line + "\n"));
        counts
            .0
            .insert(name.to_owned(), (count.per_thousand(), Vec::new()));
    });
    counts.hold(
        "Trouble words per 1,000 words of a document:",
        TROUBLE_IN_DOCUMENTS,
        TROUBLE_MAX,
    );
}

#[test]
fn rust_files_have_at_most_700_lines() {
    let mut counts = Counts::default();
    for_each_source(|name, path, source| {
        let lines = source.lines().count();
        if lines > FILE_LINES_MAX {
            counts.add(name, format!("{}: {lines} lines", relative(path)));
        }
    });
    counts.hold("Files of more than 700 lines:", LONG_FILES, 0);
}

#[test]
fn no_module_names_a_layer_above_its_own() {
    let mut report = String::new();
    let mut debts: BTreeSet<_> = UPWARD_IMPORTS.iter().copied().collect();
    let mut found = BTreeSet::new();
    for (name, layers) in LAYERS {
        let src = workspace_root().join(name).join("src");
        let rank = |module: &str| layers.iter().position(|layer| layer.contains(&module));
        let exports = re_exports(&std::fs::read_to_string(src.join("lib.rs")).unwrap()).unwrap();
        for path in files_below(&src, "rs").unwrap() {
            let module = top_module(path.strip_prefix(&src).unwrap()).unwrap();
            let Some(own) = rank(&module) else {
                let _ = writeln!(report, "{}: the module {module} is in no layer", relative(&path));
                continue;
            };
            for named in crate_names(&std::fs::read_to_string(&path).unwrap()).unwrap() {
                let target = exports.get(&named).unwrap_or(&named);
                if rank(target).is_some_and(|target| target < own) {
                    let is_debt = |debt: &&(&str, &str, &str)| **debt == (*name, &*module, &**target);
                    match UPWARD_IMPORTS.iter().find(is_debt) {
                        Some(debt) => _ = found.insert(*debt),
                        None => {
                            _ = writeln!(report, "{}: names {target}, which is above it", relative(&path));
                        }
                    }
                }
            }
        }
    }
    debts.retain(|debt| !found.contains(debt));
    for (name, module, target) in debts {
        let _ = writeln!(
            report,
            "{name}: {module} no longer names {target}; remove that debt"
        );
    }
    assert!(report.is_empty(), "{report}");
}
