//! `cargo xtask lab`.

use super::{Job, LabReport, Missing, Options, images, needs, packages, paths};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const HELP: &str = "\
cargo xtask lab check                 say what the lab needs and what is missing
cargo xtask lab install               install what is missing (as root)
cargo xtask lab images [--refresh]    fetch Debian's kernels and make the images
cargo xtask lab run [JOB] [OPTIONS]   run a job in the lab
cargo xtask lab shell [OPTIONS]       a shell in the outer machine (leave with Ctrl-A X)

JOB      transfer       boot a guest and hand it over by cpr-transfer (the default)
         modes          boot a guest and take it through every migration mode
         hotplug        boot a guest, plug devices into it and out of it
         kexec          keep a guest, boot the outer machine into another kernel, go on there
         suspend        let a guest suspend itself to RAM, migrate it asleep, and wake it
         document       replay the examples of QEMU's document on CPR, as printed there
         vfio           give a guest a disk by VFIO, let its agent suspend it, migrate and wake it
         native         the native tests of that document, in the outer machine, which has VFIO
         update         boot a guest and replace its Baton by `baton update`
         boot           boot a guest and let it work, no handover
         FILE.sh        run a script of your own in the outer machine

OPTIONS  --count N        how many handovers (10)
         --vmm NAME       baton (the default), or qemu to compare with
         --binary FILE    the VMM's program (target/debug/baton)
         --plugin-dir DIR the folder of its lib*.so files (the folder of the program)
         --add FILE       copy a file or program into /lab too; may be repeated
         --cpus N         CPUs of the outer machine (1)
         --timeout S      seconds an attempt may take (300)
         --keep           keep the logs of a job that passed
         --quiet          do not show the outer machine's console";

pub(crate) fn main(args: &[String]) -> Result<ExitCode> {
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", args),
    };
    match command {
        "check" => Ok(check()),
        "install" => super::install_missing().map(|()| ExitCode::SUCCESS),
        "images" => prepare(rest),
        "run" => {
            let (job, options) = parse(rest)?;
            run(&job, &options)
        }
        "shell" => {
            let (_, options) = parse(rest)?;
            run(&Job::Shell, &options)
        }
        "help" | "--help" => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("No such command `{other}`: `cargo xtask lab help` lists them"),
    }
}

fn check() -> ExitCode {
    for line in needs::list() {
        println!("{line}");
    }
    let missing: Vec<Missing> = super::missing();
    if missing.is_empty() {
        println!("The lab can run here.");
        return ExitCode::SUCCESS;
    }
    for item in missing {
        println!("Missing: {item}");
    }
    println!("As root, `cargo xtask lab install` installs what is missing.");
    ExitCode::FAILURE
}

fn prepare(args: &[String]) -> Result<ExitCode> {
    let refresh = match args {
        [] => false,
        [flag] if flag == "--refresh" => true,
        _ => bail!("`lab images` takes only --refresh"),
    };
    needs::require()?;
    let start = Instant::now();
    let packages = packages::get(refresh)?;
    let fetched = start.elapsed();
    // Made anew by each run in about a second; made here to know that it works.
    let scratch = paths::lab_dir()?.join(format!("runs/{}-images", std::process::id()));
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("Cannot create {}", scratch.display()))?;
    let size = images::l1(&packages, &Job::Shell, &Options::default(), &scratch)?.len();
    std::fs::remove_dir_all(&scratch)
        .with_context(|| format!("Cannot remove {}", scratch.display()))?;
    println!(
        "Kernels {} and {} ready after {:.1} s; images of {} MiB made in {:.1} s.",
        packages.kernel.release,
        packages.older.release,
        fetched.as_secs_f32(),
        size >> 20,
        (start.elapsed() - fetched).as_secs_f32()
    );
    Ok(ExitCode::SUCCESS)
}

fn run(job: &Job, options: &Options) -> Result<ExitCode> {
    let report = super::run(job, options)?;
    show(&report);
    Ok(if report.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(report: &LabReport) {
    let wall = report.wall.as_secs_f32();
    if report.passed && !report.values.is_empty() {
        println!("Lab passed after {wall:.1} s, attempt {}.", report.attempts);
        for (name, value) in &report.values {
            println!("  {name:<28} {value}");
        }
    } else {
        let verdict = if report.passed { "passed" } else { "FAILED" };
        println!(
            "Lab {verdict} after {wall:.1} s, attempt {}: {}",
            report.attempts, report.summary
        );
    }
    if let Some(logs) = &report.logs {
        println!("Logs: {}", logs.display());
    }
}

fn parse(args: &[String]) -> Result<(Job, Options)> {
    let mut options = Options {
        echo: true,
        ..Options::default()
    };
    let mut job = None;
    let mut count = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg} needs a value: see `cargo xtask lab help`"))
        };
        match arg.as_str() {
            "--vmm" => options.vmm = value()?.parse()?,
            "--binary" => options.binary = Some(value()?.into()),
            "--plugin-dir" => options.plugin_dir = Some(value()?.into()),
            "--add" => options.add.push(value()?.into()),
            "--count" => count = Some(number(arg, value()?)?),
            "--cpus" => options.cpus = number(arg, value()?)?,
            "--timeout" => options.timeout = Duration::from_secs(number(arg, value()?)?.into()),
            "--keep" => options.keep = true,
            "--quiet" => options.echo = false,
            option if option.starts_with('-') => {
                bail!("No option {option}: see `cargo xtask lab help`")
            }
            name if job.is_none() => job = Some(name),
            name => bail!("One job at a time: `{name}` is a second one"),
        }
    }
    let job = match job.unwrap_or("transfer") {
        "transfer" => Job::Transfer {
            count: count.unwrap_or(10),
        },
        "boot" => Job::Transfer { count: 0 },
        "modes" => Job::Modes,
        "hotplug" => Job::Hotplug,
        "kexec" => Job::Kexec,
        "suspend" => Job::Suspend,
        "document" => Job::Document,
        "vfio" => Job::Vfio,
        "native" => Job::Native,
        "update" => Job::Update,
        file if file.ends_with(".sh") => Job::Script(file.into()),
        other => bail!(
            "No job `{other}`: it is transfer, modes, hotplug, kexec, suspend, document, vfio, native, update, boot or a FILE.sh"
        ),
    };
    Ok((job, options))
}

fn number(option: &str, value: &str) -> Result<u32> {
    value
        .parse()
        .with_context(|| format!("{option} needs a whole number, not `{value}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_bare_run_hands_over_ten_times_with_baton() {
        let (job, options) = parse(&[]).unwrap();
        assert_eq!(job, Job::Transfer { count: 10 });
        assert_eq!(options.vmm, super::super::Vmm::Baton);
    }

    #[test]
    fn options_and_the_job_come_in_any_order() {
        let (job, options) = parse(&words(
            "--timeout 5 tests/lab/x.sh --vmm qemu --add a --add b",
        ))
        .unwrap();
        assert_eq!(job, Job::Script("tests/lab/x.sh".into()));
        assert_eq!(options.timeout.as_secs(), 5);
        assert_eq!(options.add.len(), 2);
    }

    #[test]
    fn an_option_without_its_value_says_so() {
        let error = parse(&words("--vmm")).unwrap_err().to_string();
        assert!(error.starts_with("--vmm needs a value"), "{error}");
    }
}
