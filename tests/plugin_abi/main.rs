//! The rules of `docs/plugin-abi.md`, one by one, with real plugins.

// A helper of tests fails its test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
mod device;
mod guest;
mod life;
mod loading;
mod messages;
mod panics;
mod rules;
mod search_path;
mod services;
