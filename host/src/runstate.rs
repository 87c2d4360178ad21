//! What the VM as a whole is doing: QEMU's `RunState`, as far as it occurs here.

/// QEMU's `RunState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Built, and not started yet.
    Prelaunch,
    /// Waits for a guest to come in.
    InMigrate,
    /// The guest runs.
    Running,
    /// The guest sleeps (ACPI S3), and may be woken. No vCPU runs.
    Suspended,
    /// The guest is stopped, and may go on.
    Paused,
    /// The guest is stopped for a handover's last step.
    FinishMigrate,
    /// The guest belongs to another process.
    PostMigrate,
    /// The guest has switched itself off.
    Shutdown,
    /// A vCPU cannot go on.
    InternalError,
}

impl RunState {
    /// The QAPI spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::InMigrate => "inmigrate",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::FinishMigrate => "finish-migrate",
            Self::PostMigrate => "postmigrate",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal-error",
        }
    }

    /// The same as a sentence, for whoever looks after the process.
    pub const fn status(self) -> &'static str {
        match self {
            Self::Prelaunch => "The guest has not been started",
            Self::InMigrate => "Waits for a guest",
            Self::Running => "The guest runs",
            Self::Suspended => "The guest sleeps",
            Self::Paused => "The guest is paused",
            Self::FinishMigrate => "The guest is being moved",
            Self::PostMigrate => "The guest has gone to another process",
            Self::Shutdown => "The guest has switched itself off",
            Self::InternalError => "The guest cannot go on",
        }
    }

    /// Whether the guest runs.
    pub const fn is_running(self) -> bool {
        matches!(self, Self::Running)
    }

    /// Whether the guest runs or sleeps: nobody but itself keeps it from running.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Suspended)
    }

    /// Why the guest cannot be let run, or nothing if it can.
    pub const fn cont_refusal(self) -> Option<&'static str> {
        match self {
            Self::Prelaunch | Self::Paused | Self::Running | Self::Suspended => None,
            Self::InMigrate => Some("Guest is waiting for an incoming migration"),
            Self::FinishMigrate => Some("Migration is not finalized yet"),
            Self::PostMigrate => Some(
                "The guest runs in the process it was migrated to; letting it run here too would \
                 destroy it. Quit this one",
            ),
            Self::Shutdown | Self::InternalError => {
                Some("Resetting the Virtual Machine is required")
            }
        }
    }
}
