use super::*;
use crate::settings::MigrationParameters;

fn switched_on(all: &[Capability]) -> Result<Capabilities, String> {
    let changes: Vec<_> = all.iter().map(|capability| (*capability, true)).collect();
    Capabilities::default().with(&changes)
}

fn settings(mode: Mode, all: &[Capability]) -> Settings {
    Settings {
        parameters: MigrationParameters {
            mode,
            ..MigrationParameters::default()
        },
        capabilities: switched_on(all).unwrap(),
    }
}

fn uri(text: &str) -> MigrationAddress {
    crate::address::parse_uri(text).unwrap()
}

#[test]
fn a_capability_that_baton_lacks_is_refused_with_the_reason_and_may_be_switched_off() {
    let mut refused = 0;
    for capability in Capability::ALL {
        assert_eq!(
            Capabilities::default().with(&[(capability, false)]),
            Ok(Capabilities::default())
        );
        if let Err(text) = switched_on(&[capability]) {
            assert!(text.contains(capability.as_str()), "{text}");
            assert!(text.ends_with("; leave it off"), "{text}");
            refused += 1;
        }
    }
    assert_eq!(refused, 13);
    assert_eq!(
        switched_on(&[Capability::Events, Capability::ValidateUuid]).unwrap_err(),
        "Capability 'validate-uuid' cannot be switched on: a machine has no UUID; leave it off"
    );
}

#[test]
fn what_qemu_does_not_combine_is_refused_in_its_words() {
    for (a, b, text) in INCOMPATIBLE {
        assert_eq!(switched_on(&[a, b]).unwrap_err(), text);
        let now = switched_on(&[a]).unwrap();
        assert_eq!(now.with(&[(b, true)]).unwrap_err(), text);
        // One instead of the other is no conflict, whatever the order.
        assert!(now.with(&[(b, true), (a, false)]).is_ok());
    }
    use Capability::*;
    let all = [
        XIgnoreShared,
        MappedRam,
        Multifd,
        ReturnPath,
        PauseBeforeSwitchover,
        Events,
    ];
    assert_eq!(switched_on(&all), Ok(all.into_iter().collect()));
}

#[test]
fn a_migration_that_the_settings_do_not_fit_is_refused_in_qemus_words() {
    use Capability::*;
    let transfer = Mode::CprTransfer;
    for (mode, on, to, text) in [
        (
            transfer,
            &[MappedRam][..],
            "unix:a",
            "Migration requires seekable transport (e.g. file)",
        ),
        (
            transfer,
            &[MappedRam],
            "file:a",
            "Migration requires streamable transport (eg unix)",
        ),
        (
            transfer,
            &[],
            "file:a",
            "Migration requires streamable transport (eg unix)",
        ),
        (
            transfer,
            &[Multifd],
            "fd:3",
            "Migration requires multi-channel URIs (e.g. tcp)",
        ),
        (
            transfer,
            &[Multifd],
            "exec:cat",
            "Migration requires multi-channel URIs (e.g. tcp)",
        ),
        (
            Mode::CprReboot,
            &[Multifd],
            "file:a",
            "Migration requires multi-channel URIs (e.g. tcp)",
        ),
        (
            transfer,
            &[PostcopyRam],
            "unix:a",
            "Cannot use postcopy with CPR",
        ),
        (
            Mode::CprReboot,
            &[BackgroundSnapshot],
            "file:a",
            "Cannot use background snapshot with CPR",
        ),
        (transfer, &[XColo], "unix:a", "Cannot use COLO with CPR"),
        (
            Mode::Normal,
            &[PostcopyRam],
            "unix:a",
            "Baton has no postcopy; switch capability 'postcopy-ram' off with \
             migrate-set-capabilities",
        ),
        (
            Mode::CprReboot,
            &[PauseBeforeSwitchover],
            "file:a",
            "Capability 'pause-before-switchover' belongs to modes normal and cpr-transfer, not cpr-reboot; \
             switch it off with migrate-set-capabilities",
        ),
        (
            Mode::CprExec,
            &[],
            "file:a",
            "cpr-exec mode requires setting cpr-exec-command",
        ),
    ] {
        let refusal = settings(mode, on)
            .check_migration(Some(&uri(to)))
            .unwrap_err();
        assert_eq!(refusal, text);
    }
}

/// What QEMU's `migration_channels_and_transport_compatible` says of each capability with each kind
/// of address.
#[test]
fn every_capability_has_its_word_for_every_address() {
    use Capability::*;
    const SEEK: &str = "Migration requires seekable transport (e.g. file)";
    const CHANNELS: &str = "Migration requires multi-channel URIs (e.g. tcp)";
    const FDS: &str = "Migration requires a transport that allows for extra fds (e.g. file)";
    // With mapped-ram, multifd, both, multifd and direct-io, and all three.
    let socket = [SEEK, "", SEEK, FDS, SEEK];
    let single = [SEEK, CHANNELS, SEEK, CHANNELS, SEEK];
    for (to, texts) in [
        ("unix:a", socket),
        ("tcp:host:1", socket),
        ("vsock:1:2", socket),
        ("fd:3", single),
        ("exec:cat", single),
        ("rdma:host:1", single),
        ("file:a", ["", CHANNELS, "", CHANNELS, ""]),
        ("file:a,offset=4096", ["", CHANNELS, "", CHANNELS, ""]),
    ] {
        let combinations: [(&[Capability], bool); 5] = [
            (&[MappedRam], false),
            (&[Multifd], false),
            (&[MappedRam, Multifd], false),
            (&[Multifd], true),
            (&[MappedRam, Multifd], true),
        ];
        for ((on, direct_io), text) in combinations.into_iter().zip(texts) {
            for mode in [Mode::Normal, Mode::CprReboot] {
                let mut settings = settings(mode, on);
                settings.parameters.direct_io = direct_io;
                let said = settings.check_migration(Some(&uri(to))).err();
                assert_eq!(said.unwrap_or_default(), text, "{on:?} {direct_io} {to}");
            }
        }
    }
}

#[test]
fn a_migration_that_they_fit_is_not() {
    use Capability::*;
    for (mode, on, to) in [
        (Mode::CprTransfer, &[Multifd, ReturnPath][..], "unix:a"),
        (
            Mode::CprTransfer,
            &[XIgnoreShared, PauseBeforeSwitchover],
            "fd:3",
        ),
        (Mode::CprReboot, &[MappedRam, Multifd], "file:a"),
        (Mode::CprReboot, &[], "exec:cat"),
        (Mode::Normal, &[Multifd], "tcp:host:1"),
    ] {
        assert_eq!(settings(mode, on).check_migration(Some(&uri(to))), Ok(()));
    }
    let mut exec = settings(Mode::CprExec, &[]);
    assert!(exec.check_migration(None).is_err());
    exec.parameters.cpr_exec_command = vec!["baton".into()];
    assert_eq!(exec.check_migration(Some(&uri("file:a"))), Ok(()));
    assert_eq!(exec.check_migration(None), Ok(()));
    exec.capabilities.set(PostcopyRam, true);
    assert_eq!(
        exec.check_migration(None).unwrap_err(),
        "Cannot use postcopy with CPR"
    );
}
