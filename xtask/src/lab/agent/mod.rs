//! The half of the lab that runs inside L1: it starts the VMM, hands the guest over and judges.

mod command_line;
mod generation;
mod serial;
mod transfer;

use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// `xtask lab-agent transfer VMM COUNT`
pub(crate) fn main(args: &[String]) -> Result<ExitCode> {
    let [job, vmm, count] = args else {
        bail!(
            "lab-agent takes `transfer VMM COUNT`, and is started by the lab inside its outer machine"
        );
    };
    if job != "transfer" {
        bail!("No job `{job}` in the lab's agent: it has `transfer`");
    }
    let count = count
        .parse()
        .with_context(|| format!("`{count}` is not a number of handovers"))?;
    match transfer::run(vmm.parse()?, count) {
        Ok(result) => {
            println!("LAB-RESULT passed {result}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!(
                "LAB-RESULT failed {}",
                format!("{error:#}").replace('\n', " ")
            );
            Ok(ExitCode::FAILURE)
        }
    }
}
