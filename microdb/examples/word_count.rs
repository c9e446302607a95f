//! Counts the words of a text in a database on disk. A first look at the engine: open, batches,
//! counters, iteration, close.
//!
//!     cargo run --example word_count -- FOLDER < TEXT
//!
//! Run the program twice with the same folder: the second run adds to the counts of the first.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;

use microdb::{Db, Durability, Options};

/// Number of lines per commit. One commit per word would be slower. One commit for all lines could
/// exceed the maximum size of a batch.
const LINES_PER_BATCH: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: word_count FOLDER < TEXT")?;
    let mut text = std::io::stdin().lock();
    for (word, count) in count(Path::new(&folder), &mut text)?.iter().take(10) {
        println!("{count:>8}  {word}");
    }
    Ok(())
}

/// Adds the words of `text` to the database in `folder`. Returns all words, the most frequent ones
/// first.
///
/// # Errors
/// Errors of the text and of the database.
pub(crate) fn count(
    folder: &Path,
    text: &mut dyn BufRead,
) -> Result<Vec<(String, u64)>, Box<dyn std::error::Error>> {
    // Batches need not wait for the disk one by one: `close` makes all of them durable.
    let db: Db = Options::new().durability(Durability::Buffered).open(folder)?;
    let words = db.typed_table::<String, u64>("words")?;
    let lines = text.lines().collect::<Result<Vec<_>, _>>()?;
    for lines in lines.chunks(LINES_PER_BATCH) {
        let mut found = HashMap::<&str, u64>::new();
        for word in lines.iter().flat_map(|line| line.split_whitespace()) {
            *found.entry(word).or_default() += 1;
        }
        let mut batch = db.batch();
        for (word, count) in &found {
            batch.put(&words, *word, &(words.get(*word)?.unwrap_or(0) + count));
        }
        batch.commit()?;
    }
    let mut all = words.iter().collect::<microdb::Result<Vec<_>>>()?;
    all.sort_by(|(one, count), (two, other)| (other, one).cmp(&(count, two)));
    // `close` reports an error that dropping the database would hide.
    drop(words);
    db.close()?;
    Ok(all)
}
