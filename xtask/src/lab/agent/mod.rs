//! The half of the lab that runs inside L1: it starts the VMM, takes the guest through migrations
//! and judges.

mod command_line;
mod document;
mod generation;
mod guest_agent;
mod hotplug;
mod kexec;
mod life;
mod migration;
mod modes;
mod next_kernel;
mod passthrough;
mod serial;
mod suspend;
mod transfer;
mod update;
mod vfio;

use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// `xtask lab-agent JOB VMM`
pub(crate) fn main(args: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["transfer", vmm, count] => {
            let count = count
                .parse()
                .with_context(|| format!("`{count}` is not a number of handovers"))?;
            transfer::run(vmm.parse()?, count)
        }
        ["modes", vmm] => modes::run(vmm.parse()?),
        ["hotplug", vmm] => hotplug::run(vmm.parse()?),
        ["kexec", vmm] => kexec::run(vmm.parse()?),
        ["suspend", vmm] => suspend::run(vmm.parse()?),
        ["document", vmm] => document::run(vmm.parse()?),
        ["vfio", vmm] => vfio::run(vmm.parse()?),
        // For a script, which takes the address from here.
        ["passthrough"] => {
            println!("{}", passthrough::bind()?);
            return Ok(ExitCode::SUCCESS);
        }
        ["update", _] => update::run(),
        _ => bail!(
            "lab-agent takes `transfer VMM COUNT`, or `modes`, `hotplug`, `kexec`, `suspend`, `document`, `vfio` or `update` with a VMM, or `passthrough`, and is started by the lab inside its outer machine"
        ),
    };
    match result {
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
