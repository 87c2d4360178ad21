//! The process: from the command line to the exit status.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use baton_migration::address::{MigrationAddress, SocketAddress};
use baton_migration::handover::TargetHandover;
use baton_migration::{HostError, error_chain};
use nix::sys::signal::{SigSet, Signal};

use crate::blockers::check_only_migratable;
use crate::chardev::terminal;
use crate::cli::{self, Invocation, Options};
use crate::control::{serve_monitors, start_monitors};
use crate::daemon::Daemon;
use crate::exec::{self, Inherited, Purpose};
use crate::fdset;
use crate::handover::{self, Succession};
use crate::help;
use crate::lifecycle::Lifecycle;
use crate::machine::events::MachineEvent;
use crate::monitor::Events;
use crate::pidfile;
use crate::plugin::Registry;
use crate::state;
use crate::successor;
use crate::systemd::{self, Watchdog};
use crate::update;
use crate::vcpu;
use crate::vm::{Deferred, Vm};

/// How long monitors may take to send what they still have.
const FLUSH: Duration = Duration::from_secs(1);

/// Runs the program with `arguments`, without the program's own name. Errors are printed as one
/// line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    successor::note();
    systemd::inherit();
    // Its findings are counted by the status, which leaves one number for not having looked.
    let failure = match &arguments[..] {
        [group, verb, ..] if group == "state" && verb == "check" => state::CANNOT_CHECK,
        _ => 1,
    };
    let outcome = match exec::inherited().and_then(|own| successor::connect().map(|()| own)) {
        Ok(None) => invoke(arguments),
        Ok(Some(inherited)) if inherited.purpose == Purpose::Rehearsal => {
            rehearse(arguments, &inherited)
        }
        Ok(Some(inherited)) => succeed(arguments, inherited),
        Err(e) => Err(e),
    };
    terminal::restore();
    pidfile::remove();
    outcome.unwrap_or_else(|e| {
        let reason = one_line(&*e);
        successor::failed(&reason);
        eprintln!("{}baton: {reason}", timestamp());
        ExitCode::from(failure)
    })
}

/// Whether an error comes with the time: `-msg timestamp=on`.
static TIMESTAMPS: AtomicBool = AtomicBool::new(false);

/// The time to put before an error, or nothing.
fn timestamp() -> String {
    use tracing_subscriber::fmt::format::Writer;
    use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
    let mut text = String::new();
    if TIMESTAMPS.load(Ordering::Relaxed)
        && SystemTime.format_time(&mut Writer::new(&mut text)).is_ok()
    {
        text.push(' ');
    }
    text
}

fn one_line(e: &(dyn std::error::Error + 'static)) -> String {
    error_chain(e).replace('\n', " ")
}

/// Answers an old program whether this one could take its guest.
fn rehearse(
    arguments: impl IntoIterator<Item = OsString>,
    inherited: &Inherited,
) -> Result<ExitCode, HostError> {
    let outcome = guest_options(arguments).and_then(|options| {
        crate::log::start(&options.log)?;
        if let Some(user) = &options.run_as {
            user.check().map_err(|e| format!("-run-with: {e}"))?;
        }
        vcpu::install_handler()?;
        raise_descriptor_limit();
        handover::rehearse(&options, inherited)
    });
    match outcome {
        Ok(()) => {
            inherited.answer(Ok(()));
            Ok(ExitCode::SUCCESS)
        }
        Err(e) => {
            inherited.answer(Err(&one_line(&*e)));
            Err(e)
        }
    }
}

/// The command line of a program that is executed with a guest.
fn guest_options(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, HostError> {
    match cli::parse(arguments)? {
        Invocation::Run(options) => Ok(*options),
        _ => Err("Its arguments run no guest; give it those of the running program".into()),
    }
}

/// Takes the guest of the program that this one was executed by, or goes back to it.
fn succeed(
    arguments: impl IntoIterator<Item = OsString>,
    inherited: Inherited,
) -> Result<ExitCode, HostError> {
    let mut succession = Some(Succession::new(inherited)?);
    let outcome =
        guest_options(arguments).and_then(|options| run_guest(options, &mut succession, None));
    match (outcome, succession) {
        (Err(e), Some(succession)) => Err(succession.roll_back(&one_line(&*e)).into()),
        (outcome, _) => outcome.map(|()| ExitCode::SUCCESS),
    }
}

fn invoke(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, HostError> {
    let mut code = ExitCode::SUCCESS;
    let text = match cli::parse(arguments)? {
        Invocation::Run(options) => {
            let daemon = options.daemonize.then(Daemon::detach).transpose()?;
            return run_guest(*options, &mut None, daemon).map(|()| code);
        }
        Invocation::DumpVmstate { file, options, all } => {
            return state::dump(&file, &options, all).map(|()| code);
        }
        Invocation::StateShow { file, offset, full } => state::show(&file, offset, full)?,
        Invocation::StateCheck { old, new, json } => {
            let report = state::check(&old, &new, json)?;
            code = ExitCode::from(report.status);
            report.text
        }
        Invocation::DeviceHelp { device, plugins } => help::devices(device.as_deref(), &plugins)?,
        Invocation::PluginInfo(file) => help::plugin(&file)?,
        Invocation::Completions(shell) => cli::help::completions(shell),
        Invocation::Update(options) => return update::run(&options),
        Invocation::OptionHelp(text) => text,
        Invocation::Version => cli::help::version(),
        Invocation::Help => cli::help::usage(),
    };
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough closes the pipe.
    let _ = writeln!(out, "{}", text.trim_end());
    Ok(code)
}

/// Runs the guest until the process is to end.
fn run_guest(
    options: Options,
    succession: &mut Option<Succession>,
    daemon: Option<Daemon>,
) -> Result<(), HostError> {
    TIMESTAMPS.store(options.timestamps, Ordering::Relaxed);
    crate::log::start(&options.log)?;
    if let Some(user) = &options.run_as {
        user.check().map_err(|e| format!("-run-with: {e}"))?;
    }
    // A program that was executed stays where it is.
    let mut lifecycle = Lifecycle::new(&options, daemon);
    let (requests, inbox) = channel();
    // Of a guest that is here already, whoever signals means the guest.
    SERVING.store(succession.is_some(), Ordering::SeqCst);
    watch_signals(requests.clone())?;
    successor::watch_for_end()?;
    ignore_file_size_signal();
    vcpu::install_handler().map_err(|e| format!("Cannot install a signal handler: {e}"))?;
    raise_descriptor_limit();
    // One that is executed with a guest has the sets of the program before it.
    if succession.is_none() {
        fdset::adopt(&options.passed)?;
    }
    let registry = match succession {
        Some(succession) => succession.plugins(&options)?,
        None => Registry::load(&options.plugins)?,
    };
    let vm = Vm::new(options, registry, Events::new(), requests)?;
    if let Some(taking) = succession.as_mut() {
        let kept = taking.take(&vm, &inbox)?;
        if let Some(taken) = succession.take() {
            taken.release();
        }
        lifecycle.guest_is_here();
        // The guest runs: without a monitor too, rather than not at all.
        if let Some(kept) = kept
            && let Err(e) = serve_monitors(&vm, kept)
        {
            tracing::error!("{}", error_chain(&e));
        }
        systemd::ready(vm.state().runstate.status());
    } else if let Some(handover) = wait_for_source(&vm, &mut lifecycle)? {
        let now = take_guest_later(&vm, handover)?;
        start_monitors(&vm)?;
        SERVING.store(true, Ordering::SeqCst);
        if let Some((handover, main)) = now {
            take_guest(&vm, handover, &main)?;
        }
    } else if let Some(incoming) = &vm.options.incoming {
        vm.open_chardevs()?;
        start_monitors(&vm)?;
        SERVING.store(true, Ordering::SeqCst);
        systemd::ready(vm.state().runstate.status());
        if let Some(main) = &incoming.main {
            handover::arrive(&vm, main, true)?;
        }
        lifecycle.set_up()?;
    } else {
        vm.open_chardevs()?;
        vm.power_on()?;
        start_monitors(&vm)?;
        lifecycle.set_up()?;
        SERVING.store(true, Ordering::SeqCst);
        let mut state = vm.state();
        if state.autostart {
            vm.run(&mut state)?;
        }
        systemd::ready(state.runstate.status());
    }
    lifecycle.up()?;
    let outcome = serve(&vm, &inbox, &mut lifecycle);
    vm.chardevs.finish();
    if let Some(monitor) = vm.take_monitor() {
        monitor.shutdown(FLUSH);
    }
    outcome
}

/// With an `-incoming` for a cpr channel: waits for the source's descriptors, before there is any
/// monitor.
fn wait_for_source(
    vm: &Arc<Vm>,
    lifecycle: &mut Lifecycle,
) -> Result<Option<TargetHandover>, HostError> {
    let Some(incoming) = &vm.options.incoming else {
        return Ok(None);
    };
    check_only_migratable(&vm.options, None)?;
    let Some(cpr) = incoming.cpr.as_ref() else {
        return Ok(None);
    };
    let listens = || {
        lifecycle.set_up()?;
        lifecycle.up()
    };
    handover::receive(vm, cpr, listens).map(Some)
}

/// Leaves `handover` to `migrate-incoming`, before there is a client that could say so; or gives it
/// back with the main channel to open now.
fn take_guest_later(
    vm: &Vm,
    handover: TargetHandover,
) -> Result<Option<(TargetHandover, SocketAddress)>, HostError> {
    let incoming = vm.options.incoming.as_ref();
    match incoming.and_then(|incoming| incoming.main.clone()) {
        Some(MigrationAddress::Socket(main)) => Ok(Some((handover, main))),
        Some(_) => Err("Migration requires streamable transport (eg unix)".into()),
        None => {
            vm.state().deferred = Some(Deferred::Transfer(Box::new(handover)));
            Ok(None)
        }
    }
}

/// Opens the main channel in a thread of its own.
fn take_guest(
    vm: &Arc<Vm>,
    handover: TargetHandover,
    main: &SocketAddress,
) -> Result<(), HostError> {
    let vm = Arc::clone(vm);
    let main = handover::main_channel(main);
    std::thread::Builder::new()
        .name("incoming".into())
        .spawn(move || handover::run(&vm, handover, main, true))
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

/// Acts on what happens until the process is to end.
fn serve(
    vm: &Vm,
    inbox: &Receiver<MachineEvent>,
    lifecycle: &mut Lifecycle,
) -> Result<(), HostError> {
    let watchdog = Watchdog::new();
    loop {
        match next_event(vm, inbox, watchdog)? {
            MachineEvent::PowerOff => {
                vm.shut_down(true, "guest-shutdown");
                if !vm.options.no_shutdown {
                    return Ok(());
                }
            }
            MachineEvent::Sleep => vm.suspend(),
            // It is looked at before every wait.
            MachineEvent::AlarmSet => {}
            MachineEvent::Reset | MachineEvent::TripleFault
                if vm.options.no_reboot && !vm.state().guest_sleeps() =>
            {
                vm.shut_down(true, "guest-reset");
                if !vm.options.no_shutdown {
                    return Ok(());
                }
            }
            MachineEvent::Arrived => lifecycle.guest_is_here(),
            MachineEvent::Reset | MachineEvent::TripleFault => {
                if let Err(e) = vm.reset(true) {
                    tracing::error!("the guest cannot be reset: {}", error_chain(&*e));
                }
            }
            MachineEvent::VcpuFailed { vcpu, reason } => vm.fail(&format!("vCPU {vcpu}: {reason}")),
            MachineEvent::ClockSet => vm.clocks_set(),
            MachineEvent::GuestOpened => vm.guest_opened(),
            MachineEvent::SlotsEjected => vm.remove_ejected(),
            MachineEvent::UnplugRefused { slot } => vm.unplug_refused(slot),
            MachineEvent::Quit { cause } => {
                vm.shut_down(false, cause);
                return Ok(());
            }
            // Of use only before the guest is here.
            MachineEvent::Incoming => {}
            MachineEvent::Abandoned(reason) => return Err(reason.into()),
        }
    }
}

/// How often a suspended guest's alarm is looked at, in case the host's clock is set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Waits for something to happen, and wakes a suspended guest when its alarm goes off.
fn next_event(
    vm: &Vm,
    inbox: &Receiver<MachineEvent>,
    watchdog: Watchdog,
) -> Result<MachineEvent, HostError> {
    // The VM keeps a sender, so that this never ends by itself.
    let gone = "The machine is gone";
    loop {
        let alarm = vm.until_alarm().map(|left| left.min(LOOK_AGAIN));
        let Some(pause) = alarm.into_iter().chain(watchdog.pause()).min() else {
            return inbox.recv().map_err(|_| gone.into());
        };
        match inbox.recv_timeout(pause) {
            Ok(event) => return Ok(event),
            Err(RecvTimeoutError::Timeout) => {
                watchdog.alive();
                if alarm.is_some() {
                    vm.ring();
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Err(gone.into()),
        }
    }
}

/// Whether somebody acts on what happens.
static SERVING: AtomicBool = AtomicBool::new(false);

/// Signals that end the process, and the one by which it goes on after it was stopped, are taken by a
/// thread of their own. Must be called before any other
/// thread exists, so that all of them have the signals blocked.
///
/// Before the guest is served, while this process waits for a source or for a monitor's client,
/// nobody acts on a request: the thread ends the process itself. The guest does not run here then.
fn watch_signals(requests: Sender<MachineEvent>) -> Result<(), HostError> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCONT,
    ] {
        signals.add(signal);
    }
    signals
        .thread_block()
        .map_err(|e| format!("Cannot block signals: {e}"))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                if signal == Signal::SIGCONT {
                    terminal::resumed();
                    continue;
                }
                if !SERVING.load(Ordering::SeqCst) {
                    terminal::restore();
                    eprintln!("baton: ended by {signal} before the guest ran here");
                    pidfile::remove();
                    std::process::exit(1);
                }
                let quit = MachineEvent::Quit {
                    cause: "host-signal",
                };
                if requests.send(quit).is_err() {
                    return;
                }
            }
        })
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

/// A file that reaches the process's limit is an error of the write, and not the end of the guest.
#[allow(unsafe_code)]
fn ignore_file_size_signal() {
    use nix::sys::signal::{SigHandler, signal};
    // SAFETY: no handler runs.
    if let Err(e) = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) } {
        tracing::debug!("SIGXFSZ is not ignored: {e}");
    }
}

/// Eventfds of many queues pass the usual limit of 1024.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!("the limit of open files stays at {soft}: {e}");
    }
}
