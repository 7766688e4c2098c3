//! P: configuration text and dumps, by nginx's own rules.

pub mod dump; // P `nginx -T` → what the hand-written sites use
mod pattern; // P the patterns of `include`
pub mod syntax; // P nginx's own configuration language, read
