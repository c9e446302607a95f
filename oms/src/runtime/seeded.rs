//! Mistakes that the simulation's test makes on purpose, so that a check which cannot fail is
//! found.
//!
//! A build with `RUSTFLAGS="--cfg oms_seeded"` holds all mistakes. The environment variable
//! `OMS_SEEDED` names the one that is made. In every other build [`seeded`] is the constant
//! `false`, and the compiler removes the mistake.
//!
//! To add a mistake:
//! 1. Put `if seeded("name") { .. }` or `&& !seeded("name")` where the mistake is to be made.
//! 2. Add the name to the table of `.ci/seeded-nodes`.
//! 3. Run `.ci/seeded-nodes name`. The script fails if no seed notices the mistake.

/// Returns `true` if the mistake called `name` is to be made: never, in this build.
#[cfg(not(oms_seeded))]
#[inline(always)]
pub(crate) const fn seeded(_name: &str) -> bool {
    false
}

/// Returns `true` if the mistake called `name` is to be made.
#[cfg(oms_seeded)]
pub(crate) fn seeded(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("OMS_SEEDED").ok());
    chosen.as_deref() == Some(name)
}
