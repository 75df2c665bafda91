//! The binary `rswarm`.

fn main() {}
