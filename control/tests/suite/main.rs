//! The decisions as a whole: scripted scenarios and properties, over the real functions and a small fake
//! world.

mod behaviours;
mod plans;
mod properties;
mod scenarios;
mod updates;
mod why;
mod world;
