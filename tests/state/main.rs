//! State files and descriptions on the command line, and the state files that are kept.

// A helper of tests fails its test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture;
mod golden;
mod subsections;
mod tools;
