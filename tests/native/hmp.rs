//! The monitor for people, at a terminal and on a socket, with a guest behind it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use baton_testkit::qmp::Qmp;
use baton_testkit::scratch::Scratch;
use baton_testkit::terminal::{PROMPT, Terminal};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Vmm, guest, needs_kvm};
use nix::sys::signal::Signal;
use serde_json::json;

/// A guest whose monitor is at a terminal, in a folder of its own.
struct Desk {
    scratch: Scratch,
    arguments: Vec<String>,
    binary: String,
}

impl Desk {
    fn new() -> Result<Self> {
        let programs = Vmm::Baton.programs()?;
        let mut arguments: Vec<String> = ["-m", "64M", "-nodefaults", "-display", "none"]
            .map(str::to_owned)
            .into();
        let kernel = guest::image()?.display().to_string();
        arguments.extend(["-kernel".into(), kernel, "-append".into(), "slp=0".into()]);
        if let Some(plugins) = &programs.plugins {
            arguments.extend(["-plugin".into(), plugins.display().to_string()]);
        }
        let monitors = [
            "-monitor",
            "stdio",
            "-qmp",
            "unix:qmp.sock,server=on,wait=off",
        ]
        .map(str::to_owned);
        arguments.extend(monitors);
        Ok(Self {
            scratch: Scratch::new()?,
            arguments,
            binary: programs.binary.display().to_string(),
        })
    }

    fn start(&self, more: &[&str]) -> Result<Terminal> {
        let mut command = Command::new(&self.binary);
        command
            .current_dir(self.scratch.path())
            .args(&self.arguments)
            .args(more);
        let terminal = Terminal::start(command)?;
        terminal.wait_shown(PROMPT)?;
        Ok(terminal)
    }

    fn qmp(&self) -> Result<Qmp> {
        wait_for("the monitor for programs", PATIENCE, || {
            Ok(Qmp::connect(&self.scratch.join("qmp.sock")).ok())
        })
    }

    /// The line that makes this program's successor of the same one.
    fn exec_line(&self) -> String {
        let words = self
            .arguments
            .iter()
            .map(|word| format!(" '{word}'"))
            .collect::<String>();
        format!(
            "migrate_set_parameter cpr-exec-command {}{words}",
            self.binary
        )
    }
}

/// The last rows that are shown.
fn last(terminal: &Terminal, rows: usize) -> Vec<String> {
    let shown = terminal.shown();
    let all: Vec<_> = shown.lines().map(str::to_owned).collect();
    all[all.len().saturating_sub(rows)..].to_vec()
}

#[test]
fn a_line_is_edited_completed_and_recalled_at_a_terminal() -> Result<()> {
    needs_kvm!();
    let mut terminal = Desk::new()?.start(&[])?;
    ensure!(
        !terminal.gives_lines()?,
        "keys do not come as they are struck"
    );
    // Tab, the cursor's keys, and a letter in the middle.
    terminal.types("info st\t")?;
    terminal.wait_shown("(qemu) info status")?;
    terminal.types("\x01\x1b[C\x1b[3~n\x05\r")?;
    terminal.wait_shown(&format!("VM status: running\n{PROMPT}"))?;
    // Up, and a word that goes.
    terminal.types("\x1b[A\x17\x17info na\t\r")?;
    terminal.wait_shown(&format!("(qemu) info name\n{PROMPT}"))?;
    // What may follow.
    terminal.types("migrate_set_\t")?;
    terminal.wait_shown("migrate_set_capability  migrate_set_parameter\n(qemu) migrate_set_")?;
    terminal.types("c\tx-i\t")?;
    terminal.wait_shown("(qemu) migrate_set_capability x-ignore-shared")?;
    terminal.types("\x15quit\r")?;
    ensure!(terminal.wait_end()?.success());
    Ok(())
}

#[test]
fn the_terminal_is_as_before_however_the_process_ends() -> Result<()> {
    needs_kvm!();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let terminal = Desk::new()?.start(&[])?;
        ensure!(!terminal.gives_lines()?);
        terminal.signal(signal)?;
        terminal.wait_end().with_context(|| signal.to_string())?;
    }
    // Ctrl-C is such a signal, as with QEMU.
    let mut terminal = Desk::new()?.start(&[])?;
    terminal.types("\x03")?;
    terminal.wait_end()?;
    // A guest that does not come ends the process.
    let mut terminal = Desk::new()?.start(&["-incoming", "defer"])?;
    terminal.types("migrate_incoming file:nothing\r")?;
    ensure!(!terminal.wait_end()?.success());
    Ok(())
}

#[test]
fn a_terminal_that_was_lent_to_somebody_else_is_taken_again() -> Result<()> {
    needs_kvm!();
    let terminal = Desk::new()?.start(&[])?;
    terminal.signal(Signal::SIGSTOP)?;
    terminal.give_lines()?;
    terminal.signal(Signal::SIGCONT)?;
    wait_for("keys as they are struck", PATIENCE, || {
        Ok((!terminal.gives_lines()?).then_some(()))
    })
}

#[test]
fn a_person_stays_at_the_terminal_while_the_program_is_replaced() -> Result<()> {
    needs_kvm!();
    let desk = Desk::new()?;
    let mut terminal = desk.start(&[])?;
    let pid = terminal.pid();
    terminal.line("migrate_set_parameter mode cpr-exec")?;
    // Longer than the terminal is wide: only its end is shown.
    terminal.line(&desk.exec_line())?;
    // Without -d the prompt comes once the next program has the guest.
    let greetings = terminal.shown().matches("type 'help'").count();
    terminal.line("migrate")?;
    terminal.line("info migrate")?;
    ensure!(terminal.shown().contains("Status: completed\n"));
    terminal.line("info status")?;
    ensure!(last(&terminal, 3) == ["(qemu) info status", "VM status: running", "(qemu)"]);
    ensure!(terminal.pid() == pid && !terminal.gives_lines()?);

    // Half a line before, half after; the history is that of the old program.
    terminal.line(&desk.exec_line())?;
    terminal.line("migrate_set_parameter mode cpr-exec")?;
    terminal.types("info st")?;
    let mut qmp = desk.qmp()?;
    qmp.execute("migrate", &json!({}))?;
    wait_for("the next program", PATIENCE, || {
        let info = qmp.execute("query-migrate", &json!({}))?;
        Ok((info["status"] == "completed").then_some(()))
    })?;
    terminal.types("atus\r")?;
    terminal.wait_shown(&format!("(qemu) info status\nVM status: running\n{PROMPT}"))?;
    terminal.types("\x10\x10")?;
    terminal.wait_shown("(qemu) migrate_set_parameter mode cpr-exec")?;
    ensure!(
        terminal.shown().matches("type 'help'").count() == greetings,
        "greeted again"
    );
    terminal.types("\x15quit\r")?;
    ensure!(terminal.wait_end()?.success());
    Ok(())
}

#[test]
fn migrate_waits_for_its_end_and_tells_the_error() -> Result<()> {
    needs_kvm!();
    let desk = Desk::new()?;
    let mut terminal = desk.start(&[])?;
    terminal.line("migrate_set_parameter mode cpr-reboot")?;
    terminal.line("migrate file:/nowhere/vm.state")?;
    ensure!(
        last(&terminal, 2)[0].starts_with("Error: "),
        "{}",
        terminal.shown()
    );
    terminal.line("migrate \"exec:cat > /dev/null; exit 3\"")?;
    ensure!(
        last(&terminal, 2)[0].starts_with("Error: "),
        "{}",
        terminal.shown()
    );
    terminal.line("info status")?;
    ensure!(
        last(&terminal, 2)[0] == "VM status: running",
        "{}",
        terminal.shown()
    );
    terminal.line("migrate file:vm.state")?;
    terminal.line("info status")?;
    ensure!(
        last(&terminal, 2)[0] == "VM status: paused (postmigrate)",
        "{}",
        terminal.shown()
    );
    Ok(())
}

#[test]
fn a_program_gets_what_a_line_prints() -> Result<()> {
    needs_kvm!();
    let desk = Desk::new()?;
    let _terminal = desk.start(&[])?;
    let mut qmp = desk.qmp()?;
    let mut prints = |line: &str| {
        let line = json!({ "command-line": line, "cpu-index": 0 });
        qmp.execute("human-monitor-command", &line)
    };
    ensure!(prints("info status")? == "VM status: running\r\n");
    ensure!(prints("nope")? == "unknown command: 'nope'\r\n");
    let tree = prints("info mtree")?;
    let tree = tree.as_str().unwrap_or_default();
    for line in [
        "-0000000003ffffff (prio 0, ram): ",
        "(prio 0, i/o): pci-conf",
    ] {
        ensure!(tree.contains(line), "{tree}");
    }
    for topic in [
        "block", "chardev", "cpus", "pci", "plugins", "qtree", "uuid", "version",
    ] {
        let shown = prints(&format!("info {topic}"))?;
        let shown = shown.as_str().unwrap_or_default();
        ensure!(
            !shown.starts_with("Error") && !shown.starts_with("unknown"),
            "{shown}"
        );
    }
    ensure!(
        prints("info cpus")?
            .as_str()
            .unwrap_or_default()
            .starts_with("* CPU #0: thread_id=")
    );
    ensure!(prints("migrate_incoming file:a")? != "");
    let text = "terminal does not allow synchronous migration, continuing detached\r\n";
    prints("migrate_set_parameter mode cpr-reboot")?;
    ensure!(prints("migrate file:vm.state")? == text);
    let nobody = json!({ "command-line": "info status", "cpu-index": 7 });
    let refused = qmp.refusal("human-monitor-command", &nobody)?;
    ensure!(
        refused == "Parameter 'cpu-index' expects a CPU number",
        "{refused}"
    );
    Ok(())
}

#[test]
fn a_socket_takes_lines_and_many_clients() -> Result<()> {
    needs_kvm!();
    let desk = Desk::new()?;
    let _terminal = desk.start(&["-monitor", "unix:hmp.sock,server=on,wait=off"])?;
    for _ in 0..64 {
        let mut client = UnixStream::connect(desk.scratch.join("hmp.sock"))?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(b"info status\r\ninfo kvm\n")?;
        client.shutdown(std::net::Shutdown::Write)?;
        let mut heard = String::new();
        client.read_to_string(&mut heard)?;
        let (_, said) = heard.split_once("\r\n").context("no greeting")?;
        ensure!(
            said == "(qemu) VM status: running\r\n(qemu) kvm support: enabled\r\n(qemu) ",
            "{said:?}"
        );
    }
    Ok(())
}
