//! Deliberate mistakes in the code, to check that the tests of nodes notice them. A test is of use
//! only if it fails when its mistake is selected.
//!
//! A build with `RUSTFLAGS="--cfg oms_seeded"` contains all mistakes. The environment variable
//! `OMS_SEEDED` selects one. In every other build [`seeded`] is the constant `false`, and the
//! compiler removes the mistakes.
//!
//! To add a mistake:
//! 1. Put `if seeded("name") { .. }` or `&& !seeded("name")` where the mistake is to happen.
//! 2. Add the name and the test that must fail to the table of `.ci/seeded-nodes`.
//! 3. Run `.ci/seeded-nodes name`. The script fails if that test does not detect the mistake.

/// Returns `true` if the mistake `name` is selected. Always `false` in this build.
#[cfg(not(oms_seeded))]
#[inline(always)]
pub(crate) const fn seeded(_name: &str) -> bool {
    false
}

/// Returns `true` if the mistake `name` is selected.
#[cfg(oms_seeded)]
pub(crate) fn seeded(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("OMS_SEEDED").ok());
    chosen.as_deref() == Some(name)
}
