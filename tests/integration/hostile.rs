//! Hostile input: no value changes the configuration's structure, no object holds anybody up, no
//! file hurts another.

mod templates; // overrides that say something else than the blocks
