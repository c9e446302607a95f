//! Finds the code blocks of a document, and the options that a comment before a block sets.
//!
//! The comment is `<!-- shell: OPTION; OPTION -->`, directly before the block. Readers of the
//! rendered page do not see the comment.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A code block of a document.
#[derive(Debug, Default)]
pub struct Block {
    /// Number of the block's first line in the document, from 1.
    pub line: usize,
    /// Text after the opening fence. Empty for an indented block.
    pub language: String,
    /// Text of the block, without the indentation of a list around it.
    pub text: String,
    /// Options in the comment before the block.
    pub options: Vec<String>,
}

impl Block {
    /// Returns the value of the first option that begins with `name`: the text after `name` without
    /// a colon and without blanks around it. Returns `None` if the block has no such option.
    pub fn option(&self, name: &str) -> Option<&str> {
        let rest = self.options.iter().find_map(|option| option.strip_prefix(name))?;
        Some(rest.trim_start_matches(':').trim())
    }

    /// Returns the parts of an option's value that commas separate.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let rest = self.option(name).unwrap_or_default();
        rest.split(',').filter(|part| !part.is_empty())
    }
}

/// Returns the code blocks of a document in order.
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut options = Vec::new();
    let mut open: Option<Block> = None;
    for (event, range) in Parser::new(markdown).into_offset_iter() {
        match (event, &mut open) {
            (Event::Start(Tag::CodeBlock(kind)), _) => {
                let language = match kind {
                    CodeBlockKind::Fenced(words) => words.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                open = Some(Block {
                    line: markdown[..range.start].matches('\n').count() + 1,
                    language,
                    text: String::new(),
                    options: std::mem::take(&mut options),
                });
            }
            (Event::Text(text), Some(block)) => block.text.push_str(&text),
            (Event::End(TagEnd::CodeBlock), _) => blocks.extend(open.take()),
            (Event::Html(html), None) => {
                let comment = html.trim().strip_prefix("<!-- shell:");
                if let Some(comment) = comment.and_then(|text| text.strip_suffix("-->")) {
                    options = comment
                        .split(';')
                        .map(|option| option.trim().to_owned())
                        .collect();
                }
            }
            // No paragraph or heading may stand between a comment with options and its code block.
            (Event::Start(Tag::Paragraph | Tag::Heading { .. }), None) => {
                assert!(options.is_empty(), "options before no block: {options:?}");
            }
            _ => {}
        }
    }
    assert!(options.is_empty(), "options before no block: {options:?}");
    blocks
}

/// Returns the pieces of inline code of a document.
pub fn inline_code(markdown: &str) -> Vec<String> {
    let pieces = Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(|event| match event {
        Event::Code(text) => Some(text.to_string()),
        _ => None,
    });
    pieces.collect()
}
