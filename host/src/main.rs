//! The `baton` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    baton::run(std::env::args_os().skip(1))
}
