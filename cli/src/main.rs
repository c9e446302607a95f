//! The `imt` binary.
fn main() {}
