//! What is said and what comes out of it, without a stream.

use baton_migration::settings::MigrationParameters;
use serde_json::{Value, json};

use super::complete::complete;
use super::run::{Next, Outcome, Speaker, run};
use super::table::{COMMANDS, Entry};
use super::*;
use crate::monitor::command::Command;
use crate::monitor::error::QmpError;
use crate::monitor::fds::Caller;
use crate::monitor::server::Control;

/// A VM that answers queries as one does in which a guest runs, and notes all else.
#[derive(Default)]
pub(super) struct Fake {
    asked: std::sync::Mutex<Vec<Command>>,
    answers: Vec<(Command, Value)>,
}

impl Fake {
    pub(super) fn answering(command: Command, answer: Value) -> Self {
        Self {
            answers: vec![(command, answer)],
            ..Self::default()
        }
    }

    /// Carries out a line, for somebody who can be made to wait.
    fn run(&self, line: &str) -> Outcome {
        run(
            self,
            line,
            Speaker {
                waits: true,
                cpu: 0,
            },
        )
    }

    pub(super) fn prints(&self, line: &str) -> String {
        self.run(line).text.replace("\r\n", "\n")
    }

    fn asked(&self) -> Vec<Command> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Control for Fake {
    fn execute(&self, command: Command, _: &Caller) -> Result<Value, QmpError> {
        if let Some((_, answer)) = self.answers.iter().find(|(known, _)| *known == command) {
            return Ok(answer.clone());
        }
        Ok(match command {
            Command::QueryStatus => json!({ "running": true, "status": "running" }),
            Command::QueryName => json!({ "name": "guest" }),
            Command::QueryKvm => json!({ "enabled": true, "present": true }),
            Command::QueryMigrateParameters => MigrationParameters::default().report().into(),
            Command::QueryMigrateCapabilities => json!([
                { "capability": "events", "state": true },
                { "capability": "x-ignore-shared", "state": false },
            ]),
            Command::QueryMigrate => json!({}),
            Command::Cont => return Err(QmpError::generic("no")),
            command => {
                self.asked.lock().unwrap().push(command);
                json!({})
            }
        })
    }
}

fn parsed(name: &str, arguments: Value) -> Command {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object")
    };
    Command::parse(name, arguments).unwrap()
}

/// Every command with its group in front.
fn all() -> Vec<(String, &'static Entry)> {
    fn add(prefix: &str, entries: &'static [Entry], all: &mut Vec<(String, &'static Entry)>) {
        for entry in entries {
            all.push((format!("{prefix}{}", entry.names), entry));
            add(&format!("{prefix}{} ", entry.names), entry.group(), all);
        }
    }
    let mut found = Vec::new();
    add("", COMMANDS, &mut found);
    found
}

#[test]
fn the_table_is_sorted_and_every_name_is_there_once() {
    for entries in COMMANDS.iter().map(Entry::group).chain([COMMANDS]) {
        assert!(entries.is_sorted_by_key(|entry| entry.names));
        let mut names: Vec<_> = entries.iter().flat_map(Entry::each_name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

/// The tables of `docs/hmp.md`, which are made from the table of commands.
#[test]
fn the_page_has_every_command_as_the_table_does() {
    const BEGIN: &str =
        "<!-- made from the table of commands: BATON_UPDATE_DOCS=1 cargo test -p baton hmp -->\n";
    const END: &str = "<!-- end -->\n";
    let mut rows = "| command | what it does |\n|---|---|\n".to_owned();
    for (name, entry) in all() {
        let cell = format!("{name} {}", entry.parameters());
        let cell = cell.trim_end().replace('|', "\\|");
        rows.push_str(&format!(
            "| `{cell}` | {} |\n",
            entry.help.replace('|', "\\|")
        ));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hmp.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("BATON_UPDATE_DOCS").is_some() {
        std::fs::write(path, [before, BEGIN, &rows, END, after].concat()).unwrap();
    } else {
        assert_eq!(
            found, rows,
            "run BATON_UPDATE_DOCS=1 cargo test -p baton hmp"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_in_qemus_words() {
    let vm = Fake::default();
    let more = |of: &str| format!("Try \"help {of}\" for more information\n");
    for (line, text) in [
        ("nope", "unknown command: 'nope'\n".to_owned()),
        ("  nope  1", "unknown command: 'nope'\n".to_owned()),
        ("info nope", "unknown command: 'info nope'\n".to_owned()),
        ("help nope", "unknown command: 'nope'\n".to_owned()),
        (
            "help info nope",
            "unknown command: 'info nope'\n".to_owned(),
        ),
        ("inf", "unknown command: 'inf'\n".to_owned()),
        (
            "info  status x",
            format!(
                "status: extraneous characters at the end of line\n{}",
                more("info  status")
            ),
        ),
        (
            "stop now",
            format!(
                "stop|s: extraneous characters at the end of line\n{}",
                more("stop")
            ),
        ),
        (
            "migrate_incoming",
            format!(
                "migrate_incoming: string expected\n{}",
                more("migrate_incoming")
            ),
        ),
        (
            "migrate_set_parameter mode",
            format!(
                "migrate_set_parameter: string expected\n{}",
                more("migrate_set_parameter")
            ),
        ),
        (
            "migrate_set_capability events yes",
            format!("Expected 'on' or 'off'\n{}", more("migrate_set_capability")),
        ),
        (
            "migrate -x file:a",
            format!("migrate: unsupported option -x\n{}", more("migrate")),
        ),
        (
            "migrate \"file:a",
            format!(
                "unterminated string\nmigrate: string expected\n{}",
                more("migrate")
            ),
        ),
        (
            "migrate \"\\q\"",
            format!(
                "unsupported escape code: '\\q'\nmigrate: string expected\n{}",
                more("migrate")
            ),
        ),
        (
            "migrate a b",
            format!(
                "migrate: extraneous characters at the end of line\n{}",
                more("migrate")
            ),
        ),
        ("cont", "Error: no\n".to_owned()),
        (
            "migrate_set_parameter foo 1",
            "Error: invalid parameter value: foo\n".to_owned(),
        ),
        (
            "migrate_set_parameter mode cpr-bogus",
            "Error: Parameter 'mode' does not accept value 'cpr-bogus'\n".to_owned(),
        ),
        (
            "migrate_set_parameter downtime-limit x",
            "Error: Invalid parameter type for 'downtime-limit', expected: size\n".to_owned(),
        ),
        (
            "migrate_set_parameter direct-io x",
            "Error: Parameter 'direct-io' expects 'on' or 'off'\n".to_owned(),
        ),
        (
            "migrate_set_parameter cpr-exec-command baton 'x",
            "Error: Parameter 'cpr-exec-command' has a quote that does not end\n".to_owned(),
        ),
        (
            "migrate_set_capability foo on",
            "Error: Parameter 'capability' does not accept value 'foo'\n".to_owned(),
        ),
        (
            "migrate -r file:a",
            "Error: Parameter 'resume' belongs to postcopy, which Baton does not have; leave it \
             out\n"
                .to_owned(),
        ),
    ] {
        assert_eq!(vm.prints(line), text, "{line}");
        assert_eq!(vm.asked(), [], "{line}");
    }
}

#[test]
fn lines_become_the_commands_of_qmp() {
    let vm = Fake::default();
    for (line, name, arguments) in [
        ("stop", "stop", json!({})),
        (" s ", "stop", json!({})),
        ("system_reset", "system_reset", json!({})),
        ("system_powerdown", "system_powerdown", json!({})),
        ("system_wakeup", "system_wakeup", json!({})),
        ("migrate_cancel", "migrate_cancel", json!({})),
        (
            "migrate_continue pre-switchover",
            "migrate-continue",
            json!({ "state": "pre-switchover" }),
        ),
        (
            "migrate -d file:vm.state",
            "migrate",
            json!({ "uri": "file:vm.state" }),
        ),
        (
            "device_add virtio-rng-pci,id=r,max-bytes=5",
            "device_add",
            json!({ "driver": "virtio-rng-pci", "id": "r", "max-bytes": "5" }),
        ),
        ("device_del r", "device_del", json!({ "id": "r" })),
        (
            "object_add rng-random,id=r,filename=/dev/hwrng",
            "object-add",
            json!({ "qom-type": "rng-random", "id": "r", "filename": "/dev/hwrng" }),
        ),
        ("object_del r", "object-del", json!({ "id": "r" })),
        ("migrate -d", "migrate", json!({})),
        (
            "migrate \"file:a b\\\"\"",
            "migrate",
            json!({ "uri": "file:a b\"" }),
        ),
        (
            "migrate_incoming tcp:0:44444",
            "migrate-incoming",
            json!({ "uri": "tcp:0:44444" }),
        ),
        (
            "migrate_set_capability x-ignore-shared on",
            "migrate-set-capabilities",
            json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] }),
        ),
        (
            "migrate_set_parameter mode cpr-reboot",
            "migrate-set-parameters",
            json!({ "mode": "cpr-reboot" }),
        ),
        (
            "migrate_set_parameter max-bandwidth 32",
            "migrate-set-parameters",
            json!({ "max-bandwidth": 32 << 20 }),
        ),
        (
            "migrate_set_parameter max-bandwidth 1G",
            "migrate-set-parameters",
            json!({ "max-bandwidth": 1 << 30 }),
        ),
        (
            "migrate_set_parameter downtime-limit 20",
            "migrate-set-parameters",
            json!({ "downtime-limit": 20 }),
        ),
        (
            "migrate_set_parameter direct-io on",
            "migrate-set-parameters",
            json!({ "direct-io": true }),
        ),
        (
            "migrate_set_parameter cpr-exec-command baton -name 'a b' -append \"x \\\"y\\\"\"",
            "migrate-set-parameters",
            json!({ "cpr-exec-command": ["baton", "-name", "a b", "-append", "x \"y\""] }),
        ),
    ] {
        let outcome = vm.run(line);
        assert_eq!(outcome.text, "", "{line}");
        assert_eq!(vm.asked(), [parsed(name, arguments)], "{line}");
    }
}

#[test]
fn what_comes_after_a_line_is_the_prompt_a_migrations_end_or_nothing() {
    let vm = Fake::default();
    assert_eq!(vm.run("").next, Next::Prompt);
    assert_eq!(vm.run("stop").next, Next::Prompt);
    assert_eq!(vm.run("migrate -d file:a").next, Next::Prompt);
    assert_eq!(vm.run("migrate file:a").next, Next::Migration);
    assert_eq!(vm.run("quit").next, Next::End);
    let alone = run(&vm, "migrate file:a", Speaker::default());
    let text = "terminal does not allow synchronous migration, continuing detached\r\n";
    assert_eq!(
        alone,
        Outcome {
            text: text.to_owned(),
            next: Next::Prompt
        }
    );
}

#[test]
fn a_migration_that_is_waited_for_ends_with_its_error_or_without_a_word() {
    let at = |info: Value| migration::outcome(&Fake::answering(Command::QueryMigrate, info));
    for under_way in ["setup", "active", "device", "cancelling"] {
        assert_eq!(at(json!({ "status": under_way })), None, "{under_way}");
    }
    for over in ["completed", "cancelled", "pre-switchover"] {
        assert_eq!(at(json!({ "status": over })).unwrap(), "", "{over}");
    }
    assert_eq!(at(json!({})).unwrap(), "");
    let failed = at(json!({ "status": "failed", "error-desc": "no disk" }));
    assert_eq!(failed.unwrap(), "Error: no disk\n");
}

#[test]
fn help_tells_all_commands_or_one() {
    let vm = Fake::default();
    let help = vm.prints("help");
    assert_eq!(help.lines().count(), COMMANDS.len());
    assert!(help.contains("quit|q  -- quit the emulator\n"), "{help}");
    assert!(
        help.contains("migrate [-d] [-r] [uri] -- migrate to URI"),
        "{help}"
    );
    assert_eq!(vm.prints("?"), help);
    assert_eq!(vm.prints("help q"), "quit|q  -- quit the emulator\n");
    let topics = vm.prints("info");
    assert!(topics.contains("info status  -- show the current VM status (running|paused)\n"));
    assert_eq!(vm.prints("help info"), topics);
    assert_eq!(
        vm.prints("help info kvm"),
        "info kvm  -- show KVM information\n"
    );
}

#[test]
fn the_status_is_told_as_qemu_does() {
    for (status, line) in [
        ("running", "VM status: running\n"),
        ("paused", "VM status: paused\n"),
        ("postmigrate", "VM status: paused (postmigrate)\n"),
        ("inmigrate", "VM status: paused (inmigrate)\n"),
        ("suspended", "VM status: paused (suspended)\n"),
    ] {
        let answer = json!({ "status": status, "running": status == "running" });
        let vm = Fake::answering(Command::QueryStatus, answer);
        assert_eq!(vm.prints("info status"), line);
    }
}

#[test]
fn small_queries_are_told_as_qemu_does() {
    let vm = Fake::default();
    assert_eq!(vm.prints("info name"), "guest\n");
    assert_eq!(vm.prints("info kvm"), "kvm support: enabled\n");
    let version = concat!("10.2.0Baton ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(vm.prints("info version"), version);
    assert_eq!(
        vm.prints("info migrate_capabilities"),
        "events: on\nx-ignore-shared: off\n"
    );
    let unnamed = Fake::answering(Command::QueryName, json!({}));
    assert_eq!(unnamed.prints("info name"), "");
}

#[test]
fn parameters_have_their_units_and_none_is_missing() {
    let shown = Fake::default().prints("info migrate_parameters");
    for line in [
        "announce-initial: 50 ms",
        "cpu-throttle-tailslow: off",
        "tls-creds: ''",
        "max-bandwidth: 134217728 bytes/second",
        "downtime-limit: 300 ms",
        "vcpu-dirty-limit: 1 MB/s",
        "mode: normal",
        "cpr-exec-command:",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    // Levels of a compression that is off are not shown by QEMU either.
    for name in MigrationParameters::default()
        .report()
        .keys()
        .filter(|n| !n.ends_with("-level"))
    {
        assert!(shown.contains(&format!("{name}:")), "{name}");
    }
    let mut parameters = MigrationParameters::default().report();
    parameters.insert("cpr-exec-command".into(), json!(["baton", "-S"]));
    let vm = Fake::answering(Command::QueryMigrateParameters, parameters.into());
    assert!(
        vm.prints("info migrate_parameters")
            .contains("cpr-exec-command: baton -S\n")
    );
}

#[test]
fn a_migration_is_told_as_qemu_does() {
    let told = |info: Value, line: &str| Fake::answering(Command::QueryMigrate, info).prints(line);
    assert_eq!(told(json!({}), "info migrate"), "");
    let blocked = json!({ "blocked-reasons": ["one", "two"] });
    assert_eq!(
        told(blocked, "info migrate"),
        "Outgoing migration blocked:\n  one\n  two\n"
    );
    let failed = json!({ "status": "failed", "error-desc": "why", "total-time": 5 });
    assert_eq!(
        told(failed, "info migrate"),
        "Status: \t\tfailed (why)\nTime (ms): \t\ttotal=5\n"
    );
    let info = json!({
        "status": "completed", "total-time": 40, "setup-time": 3, "downtime": 1,
        "blackout": { "load-us": 2, "total-us": 9 },
        "ram": {
            "transferred": 39_503_003, "remaining": 0, "total": 134_217_728, "duplicate": 7,
            "normal": 9, "mbps": 6102.651, "dirty-sync-count": 2, "page-size": 4096,
            "pages-per-second": 8, "precopy-bytes": 10_041_400_123_u64, "downtime-bytes": 4096,
        },
    });
    let text = "Status: \t\tcompleted\nTime (ms): \t\ttotal=40, setup=3, down=1\nRAM info:\n  \
                Throughput (Mbps): \t6102.65\n  Sizes: \t\tpagesize=4 KiB, total=128 MiB\n  \
                Transfers: \t\ttransferred=37.7 MiB, remain=0 B\n    Channels: \t\tprecopy=9.35 \
                GiB, multifd=0 B, postcopy=0 B\n    Page Types: \tnormal=9, zero=7\n  Page Rates \
                (pps): \ttransfer=8\n  Others: \t\tdirty_syncs=2, downtime_bytes=4096\n";
    assert_eq!(told(info.clone(), "info migrate"), text);
    let all = format!("{text}Blackout (us): \t\tload-us=2, total-us=9\n");
    assert_eq!(told(info, "info migrate -a"), all);
}

#[test]
fn sizes_have_three_digits() {
    for (bytes, text) in [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.5 KiB"),
        (16 << 30, "16 GiB"),
        (u64::MAX, "16 EiB"),
    ] {
        assert_eq!(migration::size(bytes), text);
    }
}

#[test]
fn tab_offers_what_may_follow() {
    let devices = json!([{ "id": "d1" }, { "id": "r1" }]);
    let plugins = json!([{ "devices": ["virtio-rng-pci", "virtio-blk-pci"] }]);
    let vm = Fake {
        answers: vec![
            (Command::QueryDevices, devices),
            (Command::QueryPlugins, plugins),
        ],
        ..Fake::default()
    };
    for (text, offered) in [
        ("device_del ", &["d1", "r1"][..]),
        ("device_add virtio-r", &["virtio-rng-pci"]),
        (
            "mig",
            &[
                "migrate",
                "migrate_cancel",
                "migrate_continue",
                "migrate_incoming",
                "migrate_set_capability",
                "migrate_set_parameter",
            ][..],
        ),
        ("q", &["q", "quit"]),
        ("info s", &["status"]),
        ("info nope ", &[]),
        ("nope ", &[]),
        (
            "help info mig",
            &["migrate", "migrate_capabilities", "migrate_parameters"],
        ),
        ("help qu", &["quit"]),
        ("migrate -", &["-d", "-r"]),
        ("migrate_set_capability ", &["events", "x-ignore-shared"]),
        ("migrate_set_capability events o", &["off", "on"]),
        ("migrate_set_capability events on ", &[]),
        ("migrate_set_parameter cpr", &["cpr-exec-command"]),
        (
            "migrate_set_parameter mode cpr-",
            &["cpr-exec", "cpr-reboot", "cpr-transfer"],
        ),
        ("migrate_set_parameter direct-io ", &["off", "on"]),
        ("migrate_set_parameter downtime-limit ", &[]),
        ("migrate_continue ", &["pre-switchover"]),
        ("stop ", &[]),
    ] {
        let choices = complete(&vm, text);
        assert_eq!(choices.words, offered, "{text}");
    }
}
