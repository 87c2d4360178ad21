//! By cpr-transfer: a new process beside the old one.

use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use baton_migration::{HostError, Mode, fault};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::UpdateOptions;
use super::migration::{self, End};
use super::output::{self, Progress};
use super::process::Process;
use super::program::Program;
use super::qmp::Client;
use super::session::{ANSWER, Session};
use crate::successor::{Folder, Origin, Report, StandardStreams};

/// How long a process may take to end that has nothing more to do.
const END: Duration = Duration::from_secs(20);
/// How long a target may take to notice that its source has died: it waits for a commit that long.
const HEIR: Duration = Duration::from_secs(40);
/// How often to look whether a process that is waited for has ended instead.
const LOOK: Duration = Duration::from_millis(50);
/// The longest report, in bytes.
const LONGEST: usize = 64 << 10;

pub(super) fn run(
    options: &UpdateOptions,
    mut session: Session,
    program: &Program,
    progress: &mut Progress,
) -> Result<Value, HostError> {
    let before = session.origin.clone();
    if before.standard_streams == StandardStreams::Terminal {
        return Err(
            "the guest or a monitor uses the terminal of the running process, which a new \
             process in the background cannot have; use --mode cpr-exec, which keeps it"
                .into(),
        );
    }
    let source = Process::find(before.pid).filter(|p| p.has_arguments(&before.arguments));
    let source = source.ok_or_else(|| {
        format!(
            "process {} is not the guest's as seen from here; run the update in the PID namespace of \
             the guest's process, or use --mode cpr-exec",
            before.pid
        )
    })?;
    let mut successor = Successor::start(options, &mut session, &source, program)
        .map_err(|e| stays(&e, before.pid))?;
    progress.say(&format!(
        "process {} is ready for the guest",
        successor.process.pid()
    ));
    fault::point("update-waiting")?;
    let end = hand_over(options, &mut session, &mut successor, progress);
    let info = match end {
        Ok(End::Completed(info)) => info,
        Ok(End::Failed(reason)) => return Err(successor.abandon(&reason.into(), before.pid)),
        Ok(End::Lost(reason)) => {
            // The source has died, or its monitor: the successor knows whether it has the guest.
            let deadline = Instant::now() + HEIR;
            match successor.await_running(deadline) {
                Ok(()) => json!({ "status": "completed", "error-desc": reason }),
                Err(e) if source.lives() => {
                    return Err(successor.abandon(&format!("{reason}; {e}").into(), before.pid));
                }
                Err(e) => {
                    return Err(format!(
                        "process {} has died with the guest: {reason}; {e}",
                        before.pid
                    )
                    .into());
                }
            }
        }
        // It is not known whose the guest is; both are left alone.
        Err(e) => return Err(e),
    };
    fault::point("update-completed")?;
    progress.say("the guest runs in the new process");
    let now = successor.is_reached(options)?;
    end_source(&mut session, &source)?;
    fault::point("update-done")?;
    successor.folder.remove();
    Ok(output::result(options.mode, &before, &now, info))
}

/// Moves the guest.
fn hand_over(
    options: &UpdateOptions,
    session: &mut Session,
    successor: &mut Successor,
    progress: &mut Progress,
) -> Result<End, HostError> {
    let settings = match session.prepare(&json!({ "mode": Mode::CprTransfer })) {
        Ok(settings) => settings,
        Err(e) => return Ok(End::Failed(e.to_string())),
    };
    let channel = |kind: &str, path: PathBuf| {
        json!({
            "channel-type": kind,
            "addr": { "transport": "socket", "type": "unix", "path": path },
        })
    };
    let folder = &successor.folder;
    let channels = json!([channel("main", folder.main()), channel("cpr", folder.cpr())]);
    progress.say("the guest goes over");
    fault::point("update-migrate")?;
    let begun = session.ask("migrate", &json!({ "channels": channels }));
    fault::point("update-migrating")?;
    let end = match begun {
        Ok(_) => migration::wait(session, options.timeout)?,
        Err(e) => End::Failed(e.to_string()),
    };
    if let End::Failed(_) = end {
        session.restore(&settings);
    }
    Ok(end)
}

/// Ends the old process, whose guest is in the new one.
fn end_source(session: &mut Session, source: &Process) -> Result<(), HostError> {
    fault::point("update-quit")?;
    // It may be ending already.
    let _ = session.ask("quit", &json!({}));
    fault::point("update-quitting")?;
    if source.end(END) {
        return Ok(());
    }
    Err(format!(
        "the guest runs in the new process, but process {}, which had it before, cannot be ended",
        source.pid()
    )
    .into())
}

fn stays(reason: &HostError, pid: u32) -> HostError {
    format!("{reason}; the guest goes on in process {pid}").into()
}

/// The new process.
struct Successor {
    process: Process,
    reports: Reports,
    folder: Folder,
}

impl Successor {
    /// Has it started, and waits until it waits for the guest.
    fn start(
        options: &UpdateOptions,
        session: &mut Session,
        source: &Process,
        program: &Program,
    ) -> Result<Self, HostError> {
        let folder = make_folder(options, source)?;
        let started = Self::start_in(&folder, options, session, program);
        match started {
            Ok((process, reports)) => Ok(Self {
                process,
                reports,
                folder,
            }),
            Err(e) => {
                folder.remove();
                Err(e)
            }
        }
    }

    fn start_in(
        folder: &Folder,
        options: &UpdateOptions,
        session: &mut Session,
        program: &Program,
    ) -> Result<(Process, Reports), HostError> {
        let report = folder.report();
        let listener = UnixListener::bind(&report)
            .map_err(|e| format!("{} cannot be listened on: {e}", report.display()))?;
        fault::point("update-folder")?;
        let mut line = program.line.clone();
        for channel in [
            format!("unix:{}", folder.main().display()),
            json!({
                "channel-type": "cpr",
                "addr": { "transport": "socket", "type": "unix", "path": folder.cpr() },
            })
            .to_string(),
        ] {
            line.extend(["-incoming".to_owned(), channel]);
        }
        let mut wanted = json!({ "program": program.path, "arguments": line, "report": report });
        if let Some(log) = &options.log {
            wanted["log"] = json!(std::path::absolute(log)?);
        }
        let answer = session.ask("start-successor", &wanted)?;
        fault::point("update-started")?;
        let pid = answer["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or("start-successor does not say which process it is")?;
        let started = Process::begun(pid);
        let deadline = Instant::now() + options.timeout;
        let ready = Reports::accept(&listener, &started, deadline).and_then(|mut reports| {
            // What was started may have started Baton in turn.
            let pid = reports.await_waiting(deadline)?;
            Ok((Process::begun(pid), reports))
        });
        match ready {
            Ok(ready) => Ok(ready),
            Err(e) => {
                // It has never been told of the guest.
                end_child(&started);
                Err(format!("{}: {e}", program.path.display()).into())
            }
        }
    }

    fn await_running(&mut self, deadline: Instant) -> Result<(), HostError> {
        match self.reports.next(&self.process, deadline)? {
            Report::Running {} => Ok(()),
            other => Err(format!("the new process reports {other:?}").into()),
        }
    }

    /// The old process has the guest and keeps it: ends this one.
    fn abandon(self, reason: &HostError, pid: u32) -> HostError {
        // It goes when nobody listens to it, or has gone already.
        drop(self.reports);
        end_child(&self.process);
        self.folder.remove();
        stays(reason, pid)
    }

    /// Sees that the monitor's address leads to it.
    fn is_reached(&self, options: &UpdateOptions) -> Result<Origin, HostError> {
        let own = self.process.pid();
        let asked = Client::connect(&options.qmp, ANSWER)
            .and_then(|mut client| client.execute("query-process", &json!({})));
        let origin: Origin = match asked {
            Ok(origin) => serde_json::from_value(origin)?,
            Err(e) => {
                return Err(format!("the guest runs in process {own}, but {e}").into());
            }
        };
        match origin.pid == own {
            true => Ok(origin),
            false => Err(format!(
                "the guest runs in process {own}, but {} still leads to process {}: the command line \
                 names another monitor there",
                options.qmp, origin.pid
            )
            .into()),
        }
    }
}

/// Ends a process that will not get a guest.
fn end_child(process: &Process) {
    if !process.ended(Duration::from_secs(2)) {
        let pid = Pid::from_raw(process.pid() as i32);
        let _ = kill(pid, Signal::SIGTERM);
        process.end(Duration::from_secs(2));
    }
}

/// A folder that both processes reach: beside the monitor's socket if that is possible, which they
/// both do reach.
fn make_folder(options: &UpdateOptions, source: &Process) -> Result<Folder, HostError> {
    let places = [options.qmp.folder(), Some(std::env::temp_dir())];
    let mut failed = String::new();
    for parent in places.into_iter().flatten() {
        let parent: &Path = &parent;
        Folder::sweep(parent);
        match Folder::create(parent, source.owner()) {
            Ok(folder) => return Ok(folder),
            Err(e) => failed = format!("{}: {e}", parent.display()),
        }
    }
    Err(format!("no folder can be made for the channels' sockets: {failed}").into())
}

/// What the new process says.
struct Reports {
    stream: BufReader<UnixStream>,
    begun: Vec<u8>,
}

impl Reports {
    /// Waits until it connects.
    fn accept(
        listener: &UnixListener,
        process: &Process,
        deadline: Instant,
    ) -> Result<Self, HostError> {
        listener.set_nonblocking(true)?;
        loop {
            // Before the look at the socket, so that what it did before it ended is seen.
            let over = !process.lives();
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(LOOK))?;
                    return Ok(Self {
                        stream: BufReader::new(stream),
                        begun: Vec::new(),
                    });
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
            if over {
                return Err("it ended without a word; is it a Baton? See its log".into());
            }
            if Instant::now() >= deadline {
                return Err("it was not ready in time".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until a source may come; gives the process it may come to.
    fn await_waiting(&mut self, deadline: Instant) -> Result<u32, HostError> {
        loop {
            match self.read(deadline)? {
                Report::Waiting { pid } => return Ok(pid),
                Report::Failed { reason } => return Err(reason.into()),
                Report::Running {} => {}
            }
        }
    }

    fn next(&mut self, process: &Process, deadline: Instant) -> Result<Report, HostError> {
        self.read(deadline).map_err(|e| match process.lives() {
            true => e,
            false => "the new process has ended".into(),
        })
    }

    fn read(&mut self, deadline: Instant) -> Result<Report, HostError> {
        loop {
            match self.stream.read_until(b'\n', &mut self.begun) {
                Ok(0) => return Err("it ended without a reason; see its log".into()),
                Ok(_) if self.begun.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.begun);
                    return serde_json::from_slice(&line)
                        .map_err(|e| format!("its report cannot be understood: {e}").into());
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e.into()),
            }
            if self.begun.len() > LONGEST {
                return Err("its report has no end".into());
            }
            if Instant::now() >= deadline {
                return Err("it was not ready in time".into());
            }
        }
    }
}
