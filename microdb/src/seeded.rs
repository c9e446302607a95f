//! Mistakes in the code that can be switched on, to find tests that do not notice them.
//!
//! A build with `RUSTFLAGS="--cfg microdb_seeded"` contains all mistakes. The environment variable
//! `MICRODB_SEEDED` names the mistake to be made. In every other build [`seeded`] is the constant
//! `false`, and the compiler removes the mistakes.
//!
//! To add a mistake:
//! 1. Put `if seeded("name") { .. }` or `&& !seeded("name")` where the mistake is to be made.
//! 2. Add a line with the name and the test that must fail to the table of `.ci/seeded`. If a test
//!    of the isolation of transactions notices the mistake, use the table of
//!    `.ci/seeded-isolation`.
//! 3. Run the script that contains the table, with the name as argument. The script fails if the
//!    test passes in spite of the mistake.
//!
//! A name describes the mistake in kebab case. The scripts refuse a name that no source file
//! contains.

/// Returns `false`: this build contains none of the mistakes.
#[cfg(not(microdb_seeded))]
#[inline(always)]
pub(crate) const fn seeded(_name: &str) -> bool {
    false
}

/// Returns `true` if the mistake called `name` is to be made.
#[cfg(microdb_seeded)]
pub(crate) fn seeded(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("MICRODB_SEEDED").ok());
    chosen.as_deref() == Some(name)
}
