//! What happens in the machine that somebody outside of it must act on.

/// Sent from any thread of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switches itself off.
    PowerOff,
    /// The guest suspends itself to RAM.
    Sleep,
    /// A suspended guest has an alarm set from now on.
    AlarmSet,
    /// The guest resets itself.
    Reset,
    /// A vCPU met a triple fault, which resets a PC.
    TripleFault,
    /// A vCPU cannot go on; the text is for people.
    VcpuFailed {
        /// Its number.
        vcpu: u32,
        /// Why.
        reason: String,
    },
    /// The guest has set clocks; [`crate::plugin::Clocks`] has them.
    ClockSet,
    /// The guest has begun or ceased to use children of devices; [`crate::plugin::Opened`] has them.
    GuestOpened,
    /// The guest has ejected slots of the PCI bus; [`super::hotplug::Hotplug::ejected`] says which.
    SlotsEjected,
    /// The guest could not let go of what it was asked to.
    UnplugRefused {
        /// The slot of bus 0.
        slot: u8,
    },
    /// The process is to end: an operator, or a signal.
    Quit {
        /// QEMU's `ShutdownCause`.
        cause: &'static str,
    },
    /// A guest that this program has inherited, and that waits for it, is to be taken.
    Incoming,
    /// The guest has come from elsewhere.
    Arrived,
    /// A handover into this process did not come about: end with this reason.
    Abandoned(String),
}
