//! `cargo xtask bench monitor`: how soon a query is answered, and what clients cost the guest, beside
//! QEMU.

use anyhow::{Context, Result, ensure};
use baton_testkit::vmm::Programs;
use baton_testkit::{Machine, Setup, Vmm, native, process, report};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cargo::{self, Profile};
use crate::options::Arguments;
use crate::stats::Spread;

const USAGE: &str = "cargo xtask bench monitor [--count N] [--clients N]";
/// How long the guest's work is counted at once.
const WINDOW: Duration = Duration::from_millis(500);
/// What is asked.
const QUERIES: [&str; 3] = ["query-status", "query-block", "query-cpus-fast"];

/// A client without anything between it and its socket.
struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    fn new(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("Cannot connect to the monitor")?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut client = Self { stream, lines };
        client.answer()?;
        client.ask("qmp_capabilities")?;
        Ok(client)
    }

    fn ask(&mut self, name: &str) -> Result<()> {
        let line = format!("{{\"execute\":\"{name}\"}}\n");
        self.stream.write_all(line.as_bytes())?;
        let answer = self.answer()?;
        ensure!(answer.contains("\"return\""), "{name}: {answer}");
        Ok(())
    }

    /// The next line that is no event.
    fn answer(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            ensure!(self.lines.read_line(&mut line)? > 0, "The monitor is gone");
            if !line.contains("\"event\"") {
                return Ok(line);
            }
        }
    }
}

/// What was measured of one VMM.
struct Measured {
    /// The microseconds each query took, by its place in [`QUERIES`].
    queries: Vec<Spread>,
    /// Pages the guest went through in a second, without and with clients.
    alone: Spread,
    attached: Option<Spread>,
}

pub(super) fn run(args: &[String]) -> Result<()> {
    let mut args = Arguments::new(args);
    let count = args.count("--count", 2000)?;
    let clients = args.count("--clients", 64)?;
    args.finish(USAGE)?;
    native::kvm_available()?;
    let folder = cargo::build(Profile::Release)?;
    process::outrank_others();
    let ours = measure(Vmm::Baton, Programs::in_folder(&folder)?, count, clients)?;
    let theirs = match Vmm::Qemu.programs() {
        Ok(programs) => Some(measure(Vmm::Qemu, programs, count, clients)?),
        Err(reason) => {
            eprintln!("without QEMU: {reason:#}");
            None
        }
    };
    println!("{count} of each query, guest stopped; {clients} clients; medians [quartiles]\n");
    println!("| | Baton | QEMU |\n|---|---|---|");
    let row = |what: &str, of: &dyn Fn(&Measured) -> Option<Spread>| {
        let cell = |m: Option<&Measured>| m.and_then(of).map_or("-".to_owned(), |s| shown(&s));
        println!(
            "| {what} | {} | {} |",
            cell(Some(&ours)),
            cell(theirs.as_ref())
        );
    };
    for (at, name) in QUERIES.iter().enumerate() {
        row(&format!("`{name}`, us"), &|m| Some(m.queries[at]));
    }
    row("the guest's pages a second, no client", &|m| Some(m.alone));
    row(&format!("the same, {clients} clients attached"), &|m| {
        m.attached
    });
    Ok(())
}

fn shown(spread: &Spread) -> String {
    let Spread {
        median,
        lower_quartile,
        upper_quartile,
        ..
    } = spread;
    format!("{median:.0} [{lower_quartile:.0}-{upper_quartile:.0}]")
}

fn measure(vmm: Vmm, programs: Programs, count: u32, clients: u32) -> Result<Measured> {
    eprintln!("{vmm}");
    // Without a disk: how much work a guest does beside its requests is another matter.
    let setup = Setup::with(vmm, programs.clone()).disk_mib(None).rngs(0);
    let mut machine = setup.boot()?;
    machine.wait_progress()?;
    machine.wait_listening("qmp")?;
    let socket = machine.socket("qmp");
    // Work with and without clients, in turn, so that both meet the same neighbours. QEMU's monitor
    // takes one client, and a second that connects waits.
    let (mut alone, mut attached) = (Vec::new(), Vec::new());
    machine.disconnect();
    for _ in 0..12 {
        alone.push(work(&machine)?);
        if vmm == Vmm::Baton {
            let all: Result<Vec<_>> = (0..clients).map(|_| Client::new(&socket)).collect();
            let all = all?;
            attached.push(work(&machine)?);
            drop(all);
            sleep(Duration::from_millis(50));
        }
    }
    machine.quit()?;
    let mut machine = Setup::with(vmm, programs).boot()?;
    machine.stop()?;
    machine.disconnect();
    let mut client = Client::new(&machine.socket("qmp"))?;
    let mut queries = Vec::new();
    for name in QUERIES {
        let times: Result<Vec<f64>> = (0..count)
            .map(|_| {
                let began = Instant::now();
                client.ask(name)?;
                Ok(began.elapsed().as_secs_f64() * 1e6)
            })
            .collect();
        queries.push(Spread::of(times?).context("Nothing was asked")?);
    }
    drop(client);
    machine.quit()?;
    Ok(Measured {
        queries,
        alone: Spread::of(alone).context("No work was seen")?,
        attached: Spread::of(attached),
    })
}

/// Pages a second that the guest goes through.
fn work(machine: &Machine) -> Result<f64> {
    let began = Instant::now();
    let before = machine.report().get(report::LOOPS);
    sleep(WINDOW);
    let done = machine.report().get(report::LOOPS) - before;
    ensure!(done > 0, "The guest stands still");
    Ok(done as f64 / began.elapsed().as_secs_f64())
}
