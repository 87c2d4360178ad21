//! `cargo xtask bench`: the project's numbers.

mod abi;
mod checkpoint;
mod handover;
mod matrix;
mod monitor;
mod outcome;
mod plot;
mod rounds;
mod start;

use anyhow::{Result, bail};
use std::process::ExitCode;

/// Runs one of the benches.
pub(crate) fn main(args: &[String]) -> Result<ExitCode> {
    match args.split_first() {
        Some((bench, rest)) if bench == "handover" => handover::run(rest)?,
        Some((bench, rest)) if bench == "abi" => abi::run(rest)?,
        Some((bench, rest)) if bench == "checkpoint" => checkpoint::run(rest)?,
        Some((bench, rest)) if bench == "monitor" => monitor::run(rest)?,
        Some((bench, rest)) if bench == "start" => start::run(rest)?,
        _ => bail!(
            "Say which bench: cargo xtask bench handover [--count N] [--matrix], checkpoint, \
             monitor, start, or abi"
        ),
    }
    Ok(ExitCode::SUCCESS)
}
