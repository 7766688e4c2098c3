//! Hostile input: no value changes the configuration's structure, no object holds anybody up, no
//! file hurts another.

mod beside; // many good vhosts beside each bad file
mod documents; // generated documents, each refused or rendered as a benign one is
mod generator; // what they are made of
mod objects; // what is no ordinary file in the vhosts directory
mod slow; // texts that are made to take long
mod templates; // overrides that say something else than the blocks
