//! What breaks rswarm on purpose, and checks that it holds.

pub mod lab;
