//! `cargo xtask`: the project's own chores.

mod bench;
mod cargo;
mod demo;
mod lab;
mod options;
mod stats;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask demo     live-update a guest ten times and check that nothing is lost
cargo xtask test     run every test there is, here and in the lab
cargo xtask bench    measure: handover, abi
cargo xtask lab      real Linux guests on a machine that has no KVM: `cargo xtask lab help`";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some("demo") => demo::main(&args[1..]),
        Some("test") => test::main(&args[1..]),
        Some("bench") => bench::main(&args[1..]),
        Some("lab") => lab::cli::main(&args[1..]),
        Some("lab-agent") => lab::agent::main(&args[1..]),
        Some("help" | "--help") => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(anyhow::anyhow!("Say which chore: demo, test, bench or lab")),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
