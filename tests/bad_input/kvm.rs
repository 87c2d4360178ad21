//! A host without /dev/kvm, and a user who may not open it.

use anyhow::Result;
use baton_testkit::fixtures::baton;
use baton_testkit::native::{expect_text, kvm_available, skipped};
use baton_testkit::refusal::refusal;
use baton_testkit::this_test;
use nix::unistd::{Uid, getuid};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const NOBODY: u32 = 65534;

#[test]
fn a_host_without_kvm() -> Result<()> {
    let mut command = if Path::new("/dev/kvm").exists() {
        if !without_dev()
            .arg("true")
            .output()
            .is_ok_and(|o| o.status.success())
        {
            skipped(
                this_test!(),
                "This user may not have a mount namespace, and there is a /dev/kvm",
            );
            return Ok(());
        }
        let mut hidden = without_dev();
        hidden.arg(baton()?.get_program());
        hidden
    } else {
        baton()?
    };
    let line = refusal(command.args(["-nodefaults", "-S", "-kernel", "none"]))?.line()?;
    expect_text(
        &line,
        &["Cannot open /dev/kvm: it is not there; load the module kvm_intel or kvm_amd"],
    )
}

/// Runs a program with an empty /dev that nobody else sees.
fn without_dev() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !getuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["sh", "-c", r#"mount -t tmpfs none /dev && exec "$@""#, "sh"]);
    unshare
}

#[test]
fn a_user_who_may_not_use_kvm() -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        skipped(this_test!(), "There is no /dev/kvm");
        return Ok(());
    }
    let mut command = baton()?;
    if getuid() == Uid::from_raw(0) {
        // The supplementary groups go with the user.
        command.uid(NOBODY).gid(NOBODY);
        if Command::new(command.get_program())
            .uid(NOBODY)
            .arg("-version")
            .output()
            .is_err()
        {
            skipped(
                this_test!(),
                "An unprivileged user cannot even read Baton here",
            );
            return Ok(());
        }
    } else if kvm_available().is_ok() {
        skipped(
            this_test!(),
            "This user may use /dev/kvm, and cannot become another",
        );
        return Ok(());
    }
    let line = refusal(command.args(["-nodefaults", "-S", "-kernel", "none"]))?.line()?;
    expect_text(
        &line,
        &["Cannot open /dev/kvm: no permission; add the user to the group that owns it"],
    )
}
