//! What blocks migrations of this VM: the machine's own reasons, then those of its devices.
//!
//! A device may lift a blocker while the guest is suspended. Whether it is, is asked of the machine, and
//! by the one that stops it once more: see [`Objections`].

use baton_migration::blockers::OwnedBlocker;
use baton_migration::{Blocker, HostError, Mode};
use serde_json::{Value, json};

use crate::cli::{IMPLICIT_RAM_ID, Options};
use crate::machine::Machine;
use crate::vm::Vm;

/// What of the command line stands in the way of a migration.
pub fn of_options(options: &Options) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    if !options.memory.share {
        let id = options.memory.id.as_str();
        let remedy = match id {
            IMPLICIT_RAM_ID => {
                "Start the guest with shared memory: without -machine aux-ram-share=off".to_owned()
            }
            _ => format!("Start the guest with shared memory: -object id={id},share=on"),
        };
        blockers.push(Blocker {
            id: "memory-not-shared".into(),
            // QEMU's text.
            reason: format!(
                "Memory region {id} is not compatible with CPR. share=on is required for \
                 memory-backend objects, and aux-ram-share=on is required."
            ),
            remedy,
            modes: vec![Mode::CprTransfer, Mode::CprExec],
            unless_suspended: false,
        });
    }
    blockers
}

/// What blocks `mode` now.
pub fn of_machine(vm: &Vm, machine: &Machine, mode: Mode) -> Vec<OwnedBlocker> {
    vm.blockers
        .collect(mode, Objections::now(machine, mode).blocking)
}

/// What a machine's devices have against a mode.
#[derive(Debug, Default)]
pub struct Objections {
    /// What blocks it.
    pub blocking: Vec<OwnedBlocker>,
    /// What would, were the guest not suspended: it must still be when it is stopped.
    pub lifted: Vec<OwnedBlocker>,
}

impl Objections {
    /// As it is now. The guest may be woken or suspend itself next, unless the VM's state is held.
    pub fn now(machine: &Machine, mode: Mode) -> Self {
        let asleep = machine.is_asleep();
        let (lifted, blocking) = of_devices(machine, mode)
            .partition(|objection| asleep && objection.blocker.unless_suspended);
        Self { blocking, lifted }
    }
}

fn of_devices(machine: &Machine, mode: Mode) -> impl Iterator<Item = OwnedBlocker> {
    let failures = machine.failures();
    let devices = machine.devices().iter();
    devices.flat_map(move |device| device.blockers(mode, failures))
}

/// The answer of `query-migratable`: for one mode, or for each.
pub fn report(vm: &Vm, mode: Option<Mode>) -> Result<Value, HostError> {
    let state = vm.state();
    let machine = state
        .machine
        .as_ref()
        .ok_or("There is no machine in this process to migrate")?;
    let modes = mode.map_or(Mode::ALL.to_vec(), |mode| vec![mode]);
    let row = |mode: Mode| {
        let blockers = of_machine(vm, machine, mode);
        let rows: Vec<Value> = blockers.iter().map(blocker_row).collect();
        json!({ "mode": mode, "migratable": rows.is_empty(), "blockers": rows })
    };
    Ok(modes.into_iter().map(row).collect())
}

fn blocker_row(OwnedBlocker { owner, blocker }: &OwnedBlocker) -> Value {
    let mut row = json!({
        "id": blocker.id,
        "owner": owner,
        "reason": blocker.reason,
        "remedy": blocker.remedy,
    });
    if blocker.unless_suspended {
        row["unless-suspended"] = true.into();
    }
    row
}

/// Refuses a machine that one of the modes of `-only-migratable` cannot move, with every reason. Before
/// there is a machine only the VM's own reasons are known.
pub fn check_only_migratable(
    options: &Options,
    machine: Option<&Machine>,
) -> Result<(), HostError> {
    let own: Vec<_> = of_options(options)
        .into_iter()
        .map(|blocker| OwnedBlocker {
            owner: String::new(),
            blocker,
        })
        .collect();
    refuse(options, |mode| {
        let own = own.iter().filter(|own| own.blocker.modes.contains(&mode));
        let devices = machine.into_iter().flat_map(|all| of_devices(all, mode));
        own.cloned().chain(devices).collect()
    })
    .map_err(|reasons| format!("-only-migratable: {reasons}").into())
}

/// The same for a device that has come by hot-plug.
pub fn check_device(options: &Options, machine: &Machine, id: &str) -> Result<(), String> {
    refuse(options, |mode| {
        of_devices(machine, mode)
            .filter(|blocker| blocker.owner == id)
            .collect()
    })
}

/// An error if a mode of `-only-migratable` has any blockers but those that suspending the guest lifts,
/// which is in the operator's hand.
fn refuse(options: &Options, blockers: impl Fn(Mode) -> Vec<OwnedBlocker>) -> Result<(), String> {
    // Each blocker once, with the modes it blocks.
    let mut found: Vec<(OwnedBlocker, Vec<Mode>)> = Vec::new();
    for &mode in &options.only_migratable {
        let lasting = blockers(mode)
            .into_iter()
            .filter(|objection| !objection.blocker.unless_suspended);
        for blocker in lasting {
            let same = |(other, _): &&mut (OwnedBlocker, Vec<Mode>)| {
                other.owner == blocker.owner && other.blocker.id == blocker.blocker.id
            };
            match found.iter_mut().find(same) {
                Some((_, modes)) => modes.push(mode),
                None => found.push((blocker, vec![mode])),
            }
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let texts: Vec<_> = found.iter().map(|(b, modes)| refusal(b, modes)).collect();
    Err(texts.join("; "))
}

/// One blocker in QEMU's words, with the modes and the remedy added.
fn refusal(OwnedBlocker { owner, blocker }: &OwnedBlocker, modes: &[Mode]) -> String {
    let Blocker { reason, remedy, .. } = blocker;
    let what = match owner.as_str() {
        "" => format!("disallowing migration blocker (--only-migratable) for: {reason}"),
        _ => format!(
            "Device {owner} is not migratable, but --only-migratable was specified: {reason}"
        ),
    };
    let modes: Vec<_> = modes.iter().map(|mode| mode.as_str()).collect();
    let blocked = format!("it blocks {}", modes.join(", "));
    match remedy.trim_end_matches('.') {
        "" => format!("{what} ({blocked})"),
        remedy => format!("{what} ({blocked}; {remedy})"),
    }
}
