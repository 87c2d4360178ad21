//! The thread of one vCPU.
// String I/O needs the element size that only `kvm_run` tells.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use baton_migration::stream::{self, SectionData, StreamError};
use baton_plugin_api::bus::RegionKind;
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;

use super::signal::{Attached, call_out, thread_id};
use super::state::{Abilities, VcpuState, section};
use super::{cpuid, msrs, prefault, tsc};
use crate::machine::bus::AddressSpaces;
use crate::machine::events::MachineEvent;

/// Why a vCPU cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// An ioctl failed.
    #[error("KVM cannot {what}: {source}")]
    Ioctl {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// An MSR that the kernel had agreed to.
    #[error("KVM cannot {what} MSR {index:#x}; source and target need the same kernel and CPU")]
    Msr {
        /// `read` or `write`.
        what: &'static str,
        /// Its index.
        index: u32,
    },
    /// The state's XSAVE area does not fit.
    #[error("its XSAVE area has {found} bytes in the state, this host has {here}")]
    Xsave {
        /// Bytes in the state.
        found: usize,
        /// Bytes here.
        here: usize,
    },
    /// The state has an offset, and the kernel cannot take it.
    #[error("its state has a TSC offset, which this kernel cannot set; it needs Linux 5.16")]
    NoTscOffset,
    /// The CPUID that the guest should see is too long.
    #[error("{0}")]
    Cpuid(String),
    /// The state cannot be encoded, or what came is none.
    #[error(transparent)]
    Section(#[from] StreamError),
    /// The thread has ended or does not answer.
    #[error("its thread does not answer")]
    Gone,
    /// The thread cannot be started.
    #[error("its thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// What a vCPU's thread needs of the machine.
#[derive(Clone)]
pub struct Exits {
    /// Where ports and addresses lead.
    pub spaces: Arc<AddressSpaces>,
    /// Where the end of a run is told. The thread waits for its next order then.
    pub report: Sender<MachineEvent>,
}

/// A vCPU's state, encoded as its section holds it. The vCPU's own thread does that, so that it takes
/// no longer with many of them.
pub type Payload = Vec<u8>;

/// How a vCPU is asked to stop.
const GO_ON: u8 = 0;
const STOP: u8 = 1;
const STOP_AND_SAVE: u8 = 2;

enum Order {
    /// Run the guest, and say so just before.
    Run(Sender<()>),
    Save(Sender<Result<Payload, VcpuError>>),
    Load(SectionData, Sender<Result<(), VcpuError>>),
    /// Run this on the vCPU's descriptor.
    With(Box<dyn FnOnce(&VcpuFd) + Send>),
}

/// A vCPU with its thread, which is stopped at first.
pub struct Vcpu {
    id: u32,
    orders: Sender<Order>,
    stopped: Mutex<Receiver<Option<Result<Payload, VcpuError>>>>,
    stop: Arc<AtomicU8>,
    thread_id: Arc<AtomicI32>,
    thread: Option<JoinHandle<()>>,
}

/// How long a vCPU may take to come out of the guest and finish its last access.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

impl Vcpu {
    /// Creates vCPU `id` of `count` with its CPUID and power-on state, and its thread.
    pub fn create(
        kvm: &Kvm,
        vm: &VmFd,
        id: u32,
        count: u32,
        supported: &CpuId,
        exits: Exits,
    ) -> Result<Self, VcpuError> {
        let failed = |what: &'static str| {
            move |e: kvm_ioctls::Error| VcpuError::Ioctl {
                what,
                source: Errno::from_raw(e.errno()),
            }
        };
        let vcpu = vm.create_vcpu(u64::from(id)).map_err(failed("create it"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let cpuid = cpuid::guest_cpuid(supported, id, count, deadline)
            .map_err(|e| VcpuError::Cpuid(e.to_string()))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("set its CPUID"))?;
        msrs::set_up_machine_check(&vcpu).map_err(|source| VcpuError::Ioctl {
            what: "set up its machine check banks",
            source,
        })?;
        let tsc_offset = tsc::has_offset(&vcpu);
        let list = kvm.get_msr_index_list().map_err(failed("list MSRs"))?;
        let list = msrs::migratable(list.as_slice(), tsc_offset);
        let list = msrs::readable(&vcpu, &list).map_err(failed("read its MSRs"))?;
        let xsave_len = vm.check_extension_int(Cap::Xsave2).max(0) as usize;
        let can = Abilities {
            msrs: list,
            tsc_offset,
            xsave_len,
        };
        Self::spawn(id, vcpu, can, exits)
    }

    fn spawn(id: u32, vcpu: VcpuFd, can: Abilities, exits: Exits) -> Result<Self, VcpuError> {
        let (orders, inbox) = channel();
        let (outbox, stopped) = channel();
        let stop = Arc::new(AtomicU8::new(GO_ON));
        let number = Arc::new(AtomicI32::new(0));
        let mut body = Body {
            id,
            vcpu,
            can,
            exits,
            inbox,
            outbox,
            stop: Arc::clone(&stop),
        };
        let (ready, started) = channel();
        let thread_number = Arc::clone(&number);
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                thread_number.store(thread_id(), Ordering::SeqCst);
                // The receiver waits for this; it cannot be gone.
                let _ = ready.send(());
                body.serve();
            })
            .map_err(VcpuError::Thread)?;
        started.recv().map_err(|_| VcpuError::Gone)?;
        let stopped = Mutex::new(stopped);
        Ok(Self {
            id,
            orders,
            stopped,
            stop,
            thread_id: number,
            thread: Some(thread),
        })
    }

    /// The vCPU's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The number of its thread.
    pub fn thread_id(&self) -> i32 {
        self.thread_id.load(Ordering::SeqCst)
    }

    /// Lets a stopped vCPU run; it says to `entering` when its thread is about to enter the guest.
    pub fn run(&self, entering: Sender<()>) -> Result<(), VcpuError> {
        self.stop.store(GO_ON, Ordering::SeqCst);
        self.orders
            .send(Order::Run(entering))
            .map_err(|_| VcpuError::Gone)
    }

    /// Calls a running vCPU out of the guest; [`Self::wait_stopped`] follows. With `save` the thread
    /// reads the vCPU's state on its way.
    pub fn stop(&self, save: bool) {
        self.stop
            .store(if save { STOP_AND_SAVE } else { STOP }, Ordering::SeqCst);
        call_out(self.thread_id());
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Waits until the vCPU has stopped; gives its state if that was asked for.
    pub fn wait_stopped(&self) -> Result<Option<Payload>, VcpuError> {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped
            .recv_timeout(STOP_DEADLINE)
            .map_err(|_| VcpuError::Gone)?
            .transpose()
    }

    /// Asks a stopped vCPU for its state; the answer comes through the receiver.
    pub fn save(&self) -> Result<Receiver<Result<Payload, VcpuError>>, VcpuError> {
        let (reply, answer) = channel();
        self.orders
            .send(Order::Save(reply))
            .map_err(|_| VcpuError::Gone)?;
        Ok(answer)
    }

    /// Gives a stopped vCPU the state in `section`; the answer comes through the receiver.
    pub fn load(&self, section: SectionData) -> Result<Receiver<Result<(), VcpuError>>, VcpuError> {
        let (reply, answer) = channel();
        self.orders
            .send(Order::Load(section, reply))
            .map_err(|_| VcpuError::Gone)?;
        Ok(answer)
    }

    /// Enters ranges of guest RAM, as (address, bytes), into KVM's page tables. Returns at once; the
    /// vCPU's next order waits until it is done.
    pub fn pre_fault(&self, ranges: Vec<(u64, u64)>) -> Result<(), VcpuError> {
        let id = self.id;
        let order = Order::With(Box::new(move |vcpu| {
            for (gpa, size) in ranges {
                if let Err(e) = prefault::pre_fault(vcpu, gpa, size) {
                    // It is an improvement, and the guest's faults do the same.
                    tracing::debug!(vcpu = id, "RAM is not entered ahead: {e}");
                    return;
                }
            }
        }));
        self.orders.send(order).map_err(|_| VcpuError::Gone)
    }

    /// How far a stopped vCPU's time stamp counter is from the host's, where the kernel tells.
    pub fn tsc_offset(&self) -> Result<Option<u64>, VcpuError> {
        self.with(|vcpu| tsc::offset(vcpu).ok())
    }

    /// Sets it.
    pub fn set_tsc_offset(&self, offset: u64) -> Result<(), VcpuError> {
        self.with(move |vcpu| tsc::set_offset(vcpu, offset))?
            .map_err(|source| VcpuError::Ioctl {
                what: "write its TSC offset",
                source,
            })
    }

    /// Runs `f` on a stopped vCPU's descriptor.
    pub fn with<T: Send + 'static>(
        &self,
        f: impl FnOnce(&VcpuFd) -> T + Send + 'static,
    ) -> Result<T, VcpuError> {
        let (reply, answer) = channel();
        let order = Order::With(Box::new(move |vcpu| {
            let _ = reply.send(f(vcpu));
        }));
        self.orders.send(order).map_err(|_| VcpuError::Gone)?;
        answer.recv().map_err(|_| VcpuError::Gone)
    }
}

impl Drop for Vcpu {
    /// Ends the thread, called out of the guest if it is there.
    fn drop(&mut self) {
        self.stop(false);
        let (gone, _) = channel();
        self.orders = gone;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(vcpu = self.id, "the thread panicked");
        }
    }
}

/// What the thread owns.
struct Body {
    id: u32,
    vcpu: VcpuFd,
    can: Abilities,
    exits: Exits,
    inbox: Receiver<Order>,
    outbox: Sender<Option<Result<Payload, VcpuError>>>,
    stop: Arc<AtomicU8>,
}

/// Whether the guest goes on.
enum After {
    GoOn,
    Report(MachineEvent),
}

impl Body {
    fn serve(&mut self) {
        // The vCPU's mapping lives as long as `self`, and this thread as long as this call.
        let _attached = Attached::new(&mut self.vcpu);
        // An answer that nobody waits for any more is dropped.
        while let Ok(order) = self.inbox.recv() {
            match order {
                Order::Run(entering) => {
                    // Whoever does not want to know is gone.
                    let _ = entering.send(());
                    drop(entering);
                    self.run();
                    self.finish_last_exit();
                    let save = self.stop.load(Ordering::SeqCst) == STOP_AND_SAVE;
                    let state = save.then(|| self.save());
                    let _ = self.outbox.send(state);
                }
                Order::Save(reply) => {
                    let _ = reply.send(self.save());
                }
                Order::Load(section, reply) => {
                    let _ = reply.send(self.load(&section));
                }
                Order::With(f) => f(&self.vcpu),
            }
        }
    }

    fn save(&self) -> Result<Payload, VcpuError> {
        let state = VcpuState::save(&self.vcpu, &self.can)?;
        Ok(stream::encode(&section().name, &state)?)
    }

    fn load(&self, section: &SectionData) -> Result<(), VcpuError> {
        let state: VcpuState = section.decode()?;
        state.load(&self.vcpu, &self.can)
    }

    /// Runs the guest until the vCPU is asked to stop.
    fn run(&mut self) {
        while self.stop.load(Ordering::SeqCst) == GO_ON {
            match self.enter() {
                Ok(After::GoOn) => {}
                Ok(After::Report(exit)) => {
                    // Nobody may be left to hear it, when the machine is being taken down.
                    let _ = self.exits.report.send(exit);
                    while self.stop.load(Ordering::SeqCst) == GO_ON {
                        thread::park();
                    }
                }
                Err(e) => match Errno::from_raw(e.errno()) {
                    // Called out, or a vCPU that waits to be started by another.
                    Errno::EINTR | Errno::EAGAIN => self.vcpu.set_kvm_immediate_exit(0),
                    errno => {
                        let failed = self.failed(format!("KVM cannot run it: {errno}"));
                        let _ = self.exits.report.send(failed);
                        while self.stop.load(Ordering::SeqCst) == GO_ON {
                            thread::park();
                        }
                    }
                },
            }
        }
    }

    fn failed(&self, reason: String) -> MachineEvent {
        MachineEvent::VcpuFailed {
            vcpu: self.id,
            reason,
        }
    }

    /// Lets KVM finish the access that the last exit was for: its effect on the registers only
    /// happens when KVM_RUN is entered again (api.rst: "the kernel side will first finish incomplete
    /// operations"). A repeated access may need several rounds.
    fn finish_last_exit(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        while let Ok(After::GoOn) = self.enter() {
            self.vcpu.set_kvm_immediate_exit(1);
        }
        self.vcpu.set_kvm_immediate_exit(0);
    }

    fn enter(&mut self) -> Result<After, kvm_ioctls::Error> {
        let run: *const kvm_bindings::kvm_run = self.vcpu.get_kvm_run();
        let spaces = &self.exits.spaces;
        let id = self.id;
        let failed = |reason| MachineEvent::VcpuFailed { vcpu: id, reason };
        // SAFETY: the mapping lives as long as the vCPU, and after an I/O exit this union member is
        // the one in use.
        let element = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size }.max(1));
        Ok(match self.vcpu.run()? {
            VcpuExit::IoIn(port, data) => {
                for part in data.chunks_mut(element()) {
                    spaces.read(RegionKind::Port, u64::from(port), part);
                }
                After::GoOn
            }
            VcpuExit::IoOut(port, data) => {
                for part in data.chunks(element()) {
                    spaces.write(RegionKind::Port, u64::from(port), part);
                }
                After::GoOn
            }
            VcpuExit::MmioRead(address, data) => {
                spaces.read(RegionKind::Mmio, address, data);
                After::GoOn
            }
            VcpuExit::MmioWrite(address, data) => {
                spaces.write(RegionKind::Mmio, address, data);
                After::GoOn
            }
            VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => After::GoOn,
            VcpuExit::Shutdown => After::Report(MachineEvent::TripleFault),
            VcpuExit::InternalError => {
                // SAFETY: as above; after an internal error this member is in use.
                let code = unsafe { (*run).__bindgen_anon_1.internal.suberror };
                After::Report(failed(format!("KVM internal error, suberror {code}")))
            }
            VcpuExit::FailEntry(reason, cpu) => After::Report(failed(format!(
                "the CPU refused to enter the guest: reason {reason:#x} on CPU {cpu}"
            ))),
            other => After::Report(failed(format!("an exit that is not handled: {other:?}"))),
        })
    }
}
