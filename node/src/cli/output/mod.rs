//! How results look: values, templates, tables, lists, and what is shown while waiting.

pub mod filter;
pub mod inspect;
pub mod listing;
pub mod progress;
pub mod table;
pub mod template;
pub mod units;
pub mod value;
