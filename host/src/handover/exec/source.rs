//! The old program: keeps the state in memory, and executes the next one.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use baton_migration::address::{MigrationAddress, MigrationChannel, SocketAddress, main_address};
use baton_migration::blockers::OwnedBlocker;
use baton_migration::checkpoint::{
    Cancel, Checkpoint, CheckpointHost, CheckpointOptions, Keeper, Place, RamSource, Writing,
    keeper,
};
use baton_migration::claim::{ClaimState, ClaimWatch, Moment, Reclaimed, SourceClaim, TargetClaim};
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::handover::{OutgoingFd, SourceHost};
use baton_migration::stream::SectionWriter;
use baton_migration::{HostError, MigrationEvent, Mode, fault};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_bytes::ByteBuf;

use super::super::source::Source;
use super::super::{passed, pauses, producer};
use crate::chardev::Chardev;
use crate::cli::{DeviceOption, chardev};
use crate::control::serve_monitors;
use crate::exec::{self, Handoff, Holder, Monitors, OldProgram, Program};
use crate::machine::Machine;
use crate::monitor::{Kept, KeptDescription, Monitor};
use crate::plugin::Plugin;
use crate::vm::Vm;

/// The QMP command `migrate` in mode cpr-exec. Returns once it is known what to execute; the rest
/// goes on in a thread of its own, in which the process becomes another program.
pub fn migrate(
    vm: &Arc<Vm>,
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<(), HostError> {
    let copy = match (uri, channels) {
        (None, None) => None,
        _ => Some(Copied::new(vm, &main_address(uri, channels)?)?),
    };
    let uri = copy.as_ref().map(|copy| copy.uri.clone());
    let command = vm.state().settings.parameters.cpr_exec_command.clone();
    let claim = Arc::new(SourceClaim::create()?);
    let mut host = ExecSource {
        inner: Source::new(Arc::clone(vm), Mode::CprExec),
        vm: Arc::clone(vm),
        claim: Arc::clone(&claim),
        command: command.clone(),
        uri,
    };
    let mut keeper = Executor {
        vm: Arc::clone(vm),
        command,
        claim,
        copy,
        opened: None,
        state: None,
        detached: None,
    };
    let options = CheckpointOptions {
        mode: Mode::CprExec,
        producer: producer(),
        tracker: Arc::clone(&vm.tracker),
        blockers: &vm.blockers,
        pause: pauses(vm),
    };
    let checkpoint = Checkpoint::begin(options, &mut host, &mut keeper)?;
    std::thread::Builder::new()
        .name("migration".into())
        .spawn(move || {
            let outcome = checkpoint.run(&mut host, &mut keeper);
            tracing::info!("the migration has ended: {outcome:?}");
        })
        .map(|_| ())
        .map_err(|e| format!("Cannot start a thread: {e}").into())
}

/// A copy of the state, at the address that `migrate` named.
struct Copied {
    uri: String,
    keeper: Box<dyn Keeper + Send>,
}

impl Copied {
    /// Nobody reads while this program becomes the next, so it must be a place that keeps.
    fn new(vm: &Vm, address: &MigrationAddress) -> Result<Self, HostError> {
        let uri = address.to_string();
        let streams = || {
            format!(
                "'{uri}' cannot be used with cpr-exec: nobody would read what is streamed while this \
                 program becomes the next; use file:PATH, or name nothing"
            )
        };
        let place = match address {
            MigrationAddress::File { .. } | MigrationAddress::Socket(SocketAddress::Fd { .. }) => {
                passed::place(address, true)?
            }
            _ => return Err(streams().into()),
        };
        if let Place::Fd { fd, .. } = &place
            && !fd.metadata()?.is_file()
        {
            return Err(streams().into());
        }
        let keeper = keeper(place, Mode::CprExec, Writing::of(&vm.state().settings))?;
        Ok(Self { uri, keeper })
    }
}

/// This process's side, to be executed again, and its own file. Plugins are open for as long as
/// they are loaded.
fn old_program(vm: &Vm) -> Result<(OwnedFd, OldProgram), HostError> {
    let (exe, arguments) = exec::running()?;
    let plugin = |plugin: &Plugin| {
        let path = plugin.path.as_os_str().as_bytes();
        (ByteBuf::from(path), plugin.file.as_raw_fd())
    };
    let (devices, nodes, objects) = {
        let state = vm.state();
        let nodes = state.nodes.said().to_vec();
        (state.devices.clone(), nodes, state.objects.clone())
    };
    let described = |device: &DeviceOption| serde_json::Value::from(device.arguments()).to_string();
    let chardevs = vm.chardevs.changes();
    let option = |config: &Chardev| chardev::option(config).to_string();
    let changed = devices != vm.options.devices;
    let old = OldProgram {
        exe: exe.as_raw_fd(),
        arguments,
        nodes,
        objects,
        chardevs: chardevs.come.iter().map(option).collect(),
        chardevs_gone: chardevs.gone,
        devices: changed.then(|| {
            devices
                .iter()
                .flat_map(DeviceOption::family)
                .map(described)
                .collect()
        }),
        plugins: vm.registry().plugins().map(plugin).collect(),
    };
    Ok((exe, old))
}

/// The descriptors as the next program will find them.
fn numbers(fds: &[OutgoingFd]) -> Vec<(baton_migration::fds::FdKey, RawFd)> {
    fds.iter()
        .map(|out| (out.key.clone(), out.fd.as_raw_fd()))
        .collect()
}

/// The machine, whose blackout is noted in the claim's page.
struct ExecSource {
    inner: Source,
    vm: Arc<Vm>,
    claim: Arc<SourceClaim>,
    command: Vec<String>,
    uri: Option<String>,
}

impl SourceHost for ExecSource {
    fn device_blockers(&mut self, mode: Mode) -> Vec<OwnedBlocker> {
        self.inner.device_blockers(mode)
    }

    fn fingerprint(&mut self) -> MachineFingerprint {
        self.inner.fingerprint()
    }

    fn notify(&mut self, event: MigrationEvent) -> Result<(), HostError> {
        self.inner.notify(event)
    }

    fn fds(&mut self) -> Result<Vec<OutgoingFd>, HostError> {
        self.inner.fds()
    }

    fn preview(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        self.inner.preview(out)
    }

    fn settle(&mut self) {
        self.inner.settle();
    }

    fn stop_and_quiesce(&mut self) -> Result<(), HostError> {
        self.claim.stamp(Moment::Stop);
        let stopped = self.inner.stop_and_quiesce();
        self.claim.stamp(Moment::Quiesced);
        stopped
    }

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        let saved = self.inner.save(out);
        self.claim.stamp(Moment::Saved);
        saved
    }

    fn resume(&mut self, proof: Reclaimed) {
        self.inner.resume(proof);
    }

    fn postmigrate(&mut self) {
        self.inner.postmigrate();
    }
}

impl CheckpointHost for ExecSource {
    /// Tries the next program while the guest runs.
    fn prepare(&mut self) -> Result<(), HostError> {
        exec::settle();
        let (_exe, old) = old_program(&self.vm)?;
        let fds = self.inner.fds()?;
        let handoff = Handoff {
            fds: numbers(&fds),
            fingerprint: self.inner.fingerprint(),
            outline: self.inner.machine(Machine::outline)?,
            state: None,
            uri: self.uri.clone(),
            claim: None,
            answer: None,
            monitors: None,
            holder: None,
            events: false,
            total_ms: 0,
            setup_ms: 0,
        };
        exec::rehearse(&self.command, &old, &handoff, self.vm.tracker.cancel_fd())
    }

    /// It stays where it is.
    fn ram(&mut self) -> Result<Option<Arc<dyn RamSource>>, HostError> {
        Ok(None)
    }
}

/// Keeps the state in a memfd, and its last step is `execve`.
struct Executor {
    vm: Arc<Vm>,
    command: Vec<String>,
    claim: Arc<SourceClaim>,
    copy: Option<Copied>,
    opened: Option<Opened>,
    state: Option<File>,
    /// The monitors, while nobody serves them.
    detached: Option<(KeptDescription, Vec<OwnedFd>)>,
}

struct Opened {
    exe: OwnedFd,
    old: OldProgram,
    fingerprint: MachineFingerprint,
    fds: Vec<OutgoingFd>,
}

impl Keeper for Executor {
    fn open(&mut self) -> Result<(), HostError> {
        // What is wrong with the command is its own error, before anything else.
        Program::command(&self.command, 0)?;
        let (exe, old) = old_program(&self.vm)?;
        if let Some(copy) = &mut self.copy {
            copy.keeper.open()?;
        }
        let mut source = Source::new(Arc::clone(&self.vm), Mode::CprExec);
        self.opened = Some(Opened {
            exe,
            old,
            fingerprint: source.fingerprint(),
            fds: source.fds()?,
        });
        Ok(())
    }

    fn write(
        &mut self,
        state: &[u8],
        _ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        fault::point("exec-write")?;
        let mut file = File::from(memfd_create("baton-cpr-state", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(state)
            .map_err(|e| format!("The state cannot be kept in memory: {e}"))?;
        self.state = Some(file);
        match &mut self.copy {
            Some(copy) => copy.keeper.write(state, None, cancel),
            None => Ok(()),
        }
    }

    fn finish(&mut self, cancel: Cancel<'_>) -> Result<(), HostError> {
        fault::point("exec-finish")?;
        if let Some(copy) = &mut self.copy {
            copy.keeper.finish(cancel)?;
        }
        let opened = self.opened.as_ref().ok_or("Nothing was opened")?;
        let state = self.state.as_ref().ok_or("There is no state")?;
        let kept = self
            .vm
            .take_monitor()
            .map(Monitor::detach)
            .unwrap_or_default();
        let (description, client_fds) = &*self.detached.insert(kept.into_parts());
        let description = rmp_serde::to_vec_named(description)?;
        let info = self.vm.tracker.info();
        let mut handoff = Handoff {
            fds: numbers(&opened.fds),
            fingerprint: opened.fingerprint.clone(),
            outline: Vec::new(),
            state: Some(state.as_raw_fd()),
            uri: self.copy.as_ref().map(|copy| copy.uri.clone()),
            claim: Some(self.claim.fd().as_raw_fd()),
            answer: None,
            monitors: Some(Monitors {
                description: ByteBuf::from(description),
                fds: client_fds.iter().map(AsRawFd::as_raw_fd).collect(),
                renewed: false,
            }),
            holder: None,
            events: self
                .vm
                .state()
                .settings
                .capabilities
                .contains(baton_migration::settings::Capability::Events),
            total_ms: info.total_time.unwrap_or(0),
            setup_ms: info.setup_time.unwrap_or(0),
        };
        let mut surviving: Vec<_> = opened.fds.iter().map(|out| out.fd.as_fd()).collect();
        surviving.extend([opened.exe.as_fd(), state.as_fd(), self.claim.fd()]);
        surviving.extend(client_fds.iter().map(AsFd::as_fd));
        let registry = self.vm.registry();
        surviving.extend(registry.plugins().map(|plugin| plugin.file.as_fd()));
        let _outlive = exec::Outlive::new(surviving)?;
        // The holder's handoff is written before the holder is: it needs no leash of its own.
        let for_holder = exec::write_handoff(&opened.old, &handoff)?;
        let outlive_too = exec::Outlive::new(vec![for_holder.as_fd()])?;
        let again = Program::old(&opened.old, for_holder.as_raw_fd())?;
        let (_, watch) = TargetClaim::adopt(&self.claim.fd().try_clone_to_owned()?)?;
        let started = |watch: &ClaimWatch| watch.state() == ClaimState::Started;
        let holder = Holder::start(again, watch, started)?;
        // The successor has no use for it.
        drop(outlive_too);
        fault::point("exec-execve")?;
        handoff.holder = Some(holder.handle()?);
        let memfd = exec::write_handoff(&opened.old, &handoff)?;
        let _outlives = exec::Outlive::new(vec![memfd.as_fd()])?;
        let errno = Program::command(&self.command, memfd.as_raw_fd())?.execute(b"");
        let name = self.command.first().map_or("", String::as_str);
        Err(format!("execvp {name} failed: {}", errno.desc()).into())
    }

    fn discard(&mut self) {
        (self.opened, self.state) = (None, None);
        if let Some(copy) = &mut self.copy {
            copy.keeper.discard();
        }
        let Some((description, fds)) = self.detached.take() else {
            return;
        };
        let attached = Kept::from_parts(description, fds)
            .map_err(HostError::from)
            .and_then(|kept| Ok(serve_monitors(&self.vm, kept)?));
        if let Err(e) = attached {
            tracing::error!("the monitors are not served any more: {e}");
        }
    }
}
