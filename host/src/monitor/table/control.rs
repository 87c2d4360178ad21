//! Commands that stop, start and end the guest: QEMU's `qapi/misc.json` and `machine.json`.

use super::Spec;

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new("stop", "Stops the guest"),
    Spec::new(
        "cont",
        "Lets the guest run; one that comes in runs once it is here",
    ),
    Spec::new("system_reset", "Resets the machine"),
    Spec::new(
        "system_powerdown",
        "Presses the power button, which wakes a guest that is suspended",
    ),
    Spec::new("system_wakeup", "Wakes a guest that is suspended"),
    Spec::new("quit", "Ends the process"),
];
