//! Whole command lines.

use crate::chardev::ChardevBackend;
use baton_migration::address::{MigrationAddress, SocketAddress};

use super::*;
use crate::monitor::{MonitorAddress, MonitorMode, MonitorOption};

fn invocation(arguments: &[&str]) -> Result<Invocation, String> {
    parse(arguments.iter().map(OsString::from)).map_err(|error| error.to_string())
}

fn run(arguments: &[&str]) -> Result<Options, String> {
    let kernel = ["-kernel", "k"];
    match invocation(&[&kernel, arguments].concat())? {
        Invocation::Run(options) => Ok(*options),
        other => panic!("{other:?}"),
    }
}

fn devices(options: &Options) -> Vec<String> {
    let text = |device: &DeviceOption| {
        let properties = device.properties.iter().map(|(k, v)| format!(",{k}={v}"));
        format!("{}{}", device.driver, properties.collect::<String>())
    };
    options.devices.iter().map(text).collect()
}

#[test]
fn nothing_but_a_kernel_makes_a_machine_that_can_be_handed_over() {
    let options = run(&[]).unwrap();
    assert_eq!(options.cpus, 1);
    assert_eq!(options.memory.id.as_str(), IMPLICIT_RAM_ID);
    assert_eq!(
        (options.memory.size, options.memory.share),
        (128 << 20, true)
    );
    assert_eq!(
        devices(&options),
        ["mc146818rtc", "isa-serial,chardev=serial0"]
    );
    assert_eq!(
        options.chardevs[0].backend,
        ChardevBackend::Stdio { signal: true }
    );
    assert!(options.incoming.is_none() && !options.paused && !options.no_reboot);
}

#[test]
fn the_document_of_cpr_works_as_printed() {
    let machine = [
        "-object",
        "memory-backend-file,id=ram0,size=4G,mem-path=/dev/shm/ram0,share=on",
        "-m",
        "4G",
        "-machine",
        "memory-backend=ram0",
        "-machine",
        "aux-ram-share=on",
    ];
    let outgoing = run(&[&["-qmp", "stdio"], &machine[..]].concat()).unwrap();
    let address = MonitorAddress::Stdio;
    let mode = MonitorMode::Control;
    assert_eq!(outgoing.monitors, [MonitorOption { address, mode }]);
    assert_eq!(outgoing.memory.id.as_str(), "ram0");
    assert!(matches!(outgoing.memory.kind, BackendKind::File { .. }));
    // The monitor has stdio, so that the serial line leads nowhere.
    assert_eq!(outgoing.chardevs[0].backend, ChardevBackend::Null);

    let cpr = r#"{"channel-type": "cpr",
                  "addr": { "transport": "socket",
                  "type": "unix", "path": "cpr.sock"}}"#;
    let channels = ["-incoming", "tcp:0:44444", "-incoming", cpr];
    let incoming = run(&[&machine[..], &channels].concat()).unwrap();
    let incoming = incoming.incoming.unwrap();
    let unix = SocketAddress::Unix {
        path: "cpr.sock".into(),
    };
    assert_eq!(incoming.cpr, Some(unix));
    let Some(MigrationAddress::Socket(main)) = incoming.main else {
        panic!()
    };
    assert_eq!(main.to_string(), "tcp:0:44444");

    let dotted = "cpr,addr.transport=socket,addr.type=unix,addr.path=cpr.sock";
    let deferred = run(&["-incoming", "defer", "-incoming", dotted]).unwrap();
    assert!(deferred.incoming.unwrap().defer);
}

#[test]
fn a_whole_command_line_is_understood() {
    let options = run(&[
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-enable-kvm",
        "-display",
        "none",
        "-vga",
        "none",
        "-net",
        "none",
        "-nic",
        "none",
        "-parallel",
        "none",
        "-audio",
        "none",
        "-monitor",
        "none",
        "-cpu",
        "host",
        "-accel",
        "kvm",
        "-name",
        "guest=vm,debug-threads=on",
        "-smp",
        "2",
        "-m",
        "256",
        "-initrd",
        "i",
        "-append",
        "console=ttyS0 -x",
        "-S",
        "-no-reboot",
        "-plugin",
        "a.so",
        "-plugin",
        "dir",
        "-chardev",
        "file,id=log,path=/log",
        "-serial",
        "chardev:log",
        "-drive",
        "if=none,id=d0,file=/a",
        "-drive",
        "if=virtio,file=/b",
        "-device",
        "virtio-blk-pci,drive=d0,id=x",
        "-device",
        "virtio-rng-pci,id=y",
        "-qmp",
        "unix:/q,server,nowait",
    ])
    .unwrap();
    assert_eq!(options.name.as_deref(), Some("vm"));
    assert_eq!((options.cpus, options.memory.size), (2, 256 << 20));
    assert_eq!(
        options.kernel,
        Some(Kernel {
            path: "k".into(),
            initrd: Some("i".into()),
            append: "console=ttyS0 -x".into()
        })
    );
    assert_eq!(
        options.plugins,
        ["a.so", "dir"].map(std::path::PathBuf::from)
    );
    assert_eq!(
        devices(&options),
        [
            "mc146818rtc",
            "isa-serial,chardev=log",
            "virtio-blk-pci,drive=d0",
            "virtio-rng-pci",
            "virtio-blk-pci,drive=virtio1",
        ]
    );
    assert!(options.paused && options.no_reboot);
}

#[test]
fn nodefaults_leaves_the_clock_only() {
    let options = run(&["-nodefaults"]).unwrap();
    assert_eq!(devices(&options), ["mc146818rtc"]);
    assert!(options.chardevs.is_empty());
}

#[test]
fn a_device_that_was_said_replaces_the_default_one() {
    let options = run(&[
        "-chardev",
        "null,id=c",
        "-device",
        "isa-serial,chardev=c",
        "-device",
        "mc146818rtc",
    ])
    .unwrap();
    assert_eq!(devices(&options), ["isa-serial,chardev=c", "mc146818rtc"]);
    assert_eq!(
        devices(&run(&["-serial", "none"]).unwrap()),
        ["mc146818rtc"]
    );
}

#[test]
fn serial_lines_are_numbered() {
    let options = run(&["-serial", "file:/a", "-serial", "null"]).unwrap();
    assert_eq!(
        devices(&options)[1..],
        [
            "isa-serial,chardev=serial0",
            "isa-serial,chardev=serial1,index=1"
        ]
    );
    assert_eq!(options.devices[1].origin, "-serial file:/a");
}

#[test]
fn memory_without_a_backend_is_private_if_that_is_asked_for() {
    let options = run(&["-machine", "aux-ram-share=off"]).unwrap();
    assert_eq!(options.memory.kind, BackendKind::Ram);
    assert!(!options.memory.share);
}

#[test]
fn the_size_of_the_memory_may_come_from_its_backend() {
    let object = "memory-backend-memfd,id=r,size=1G";
    let options = run(&["-object", object, "-machine", "memory-backend=r"]).unwrap();
    assert_eq!(options.memory.size, 1 << 30);
}

#[test]
fn a_target_needs_no_kernel() {
    let found = invocation(&["-incoming", "unix:/a"]).unwrap();
    assert!(matches!(found, Invocation::Run(options) if options.kernel.is_none()));
}

#[test]
fn a_description_needs_no_kernel_and_is_of_every_type_unless_a_device_is_said() {
    for (more, of_all) in [
        (&[][..], true),
        (&["-m", "1G"], true),
        (&["-device", "a"], false),
        (&["-serial", "null"], false),
        (&["-drive", "file=/d,if=virtio"], false),
    ] {
        let found = invocation(&[&["-dump-vmstate", "f.json"], more].concat()).unwrap();
        assert!(
            matches!(&found, Invocation::DumpVmstate { file, all, .. }
                if file.as_os_str() == "f.json" && *all == of_all),
            "{found:?}"
        );
    }
}

#[test]
fn help_is_given_without_a_guest() {
    let all = |arguments: &[&str]| format!("{:?}", invocation(arguments).unwrap());
    for (arguments, expected) in [
        (&["-h"][..], "Help"),
        (&["--help"], "Help"),
        (&["-version"], "Version"),
        (&["plugin", "info", "a.so"], "PluginInfo(\"a.so\")"),
        (
            &["state", "show", "s", "--offset", "4K", "--json"],
            "StateShow { file: \"s\", offset: 4096, full: false }",
        ),
        (
            &["state", "show", "--full", "s"],
            "StateShow { file: \"s\", offset: 0, full: true }",
        ),
        (
            &["state", "check", "a", "b", "--json"],
            "StateCheck { old: \"a\", new: \"b\", json: true }",
        ),
        (
            &["-device", "help", "-plugin", "a.so"],
            "DeviceHelp { device: None, plugins: [\"a.so\"] }",
        ),
        (
            &["-device", "virtio-blk-pci,help"],
            "DeviceHelp { device: Some(\"virtio-blk-pci\"), plugins: [] }",
        ),
    ] {
        assert_eq!(all(arguments), expected);
    }
}

#[test]
fn every_option_that_is_a_list_of_properties_has_help() {
    for (option, beginning) in [
        ("-machine", "Machine types"),
        ("-cpu", "Available CPUs:\n  host"),
        ("-accel", "Accelerators:\n  kvm\n"),
        (
            "-object",
            "Objects, each with an id=ID:\nmemory-backend-file\n",
        ),
        ("-drive", "-drive properties:\n  file=PATH"),
        ("-blockdev", "-blockdev properties:\n  driver=raw"),
        ("-netdev", "Network backends, each with an id=ID:\nuser\n"),
        ("-d", "Log items (comma separated):\n  migration "),
        ("-chardev", "Available chardev backend types:\n  file\n"),
        ("-smp", "-smp [cpus=]N"),
        ("-action", "-action [reboot=reset|shutdown]"),
    ] {
        let found = invocation(&[option, "help"]).unwrap();
        let Invocation::OptionHelp(text) = found else {
            panic!("{option}: {found:?}");
        };
        assert!(text.starts_with(beginning), "{option}: {text}");
        assert!(
            text.lines().all(|line| line.len() <= 100),
            "{option}: {text}"
        );
    }
    for (value, beginning) in [
        (
            ["-machine", "baton,help"],
            "machine properties:\n  memory-backend=ID",
        ),
        (
            ["-object", "memory-backend-shm,help"],
            "memory-backend-shm properties:\n  size=SIZE",
        ),
        (["-netdev", "tap,help"], "tap properties:\n  ifname=<str>\n"),
        (["-M", "?"], "Machine types"),
    ] {
        let found = invocation(&value).unwrap();
        assert!(
            matches!(&found, Invocation::OptionHelp(text) if text.starts_with(beginning)),
            "{value:?}: {found:?}"
        );
    }
    // A file may be called so.
    assert_eq!(
        run(&["-initrd", "help"]).unwrap().kernel.unwrap().initrd,
        Some("help".into())
    );
}

#[test]
fn a_file_of_options_counts_where_it_is_named() {
    let path = std::env::temp_dir().join(format!("baton-readconfig-{}.conf", std::process::id()));
    let config = "\
[machine]
  type = \"baton\"
[memory]
  size = \"1G\"
[drive \"d0\"]
  file = \"/a,b\"
  if = \"none\"
[device \"disk0\"]
  driver = \"virtio-blk-pci\"
  drive = \"d0\"
[name]
  guest = \"vm\"
";
    std::fs::write(&path, config).unwrap();
    let name = path.display().to_string();
    let options = run(&["-m", "2G", "-readconfig", &name]).unwrap();
    assert_eq!(options.memory.size, 1 << 30);
    assert_eq!(
        run(&["-readconfig", &name, "-m", "2G"])
            .unwrap()
            .memory
            .size,
        2 << 30
    );
    assert_eq!(
        (&options.drives[0].id[..], &options.drives[0].file[..]),
        ("d0", "/a,b")
    );
    let disk = options.devices.last().unwrap();
    assert_eq!(disk.id.as_ref().unwrap().as_str(), "disk0");
    assert_eq!(disk.origin, format!("{name}:8 [device \"disk0\"]"));
    assert_eq!(options.name.as_deref(), Some("vm"));

    std::fs::write(&path, "[drive \"d0\"]\nfil = \"x\"\n").unwrap();
    assert_eq!(
        run(&["-readconfig", &name]).unwrap_err(),
        format!("{name}:1 [drive \"d0\"]: Parameter 'file' is missing")
    );
    std::fs::write(&path, [0xff; 4]).unwrap();
    assert_eq!(
        run(&["-readconfig", &name]).unwrap_err(),
        format!("-readconfig {name}: the file is not UTF-8; is it the right one?")
    );
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(
        run(&["-readconfig", &name]).unwrap_err(),
        format!("-readconfig {name}: the file has more than 1048576 bytes; is it the right one?")
    );
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        run(&["-readconfig", &name]).unwrap_err(),
        format!(
            "-readconfig {name}: Cannot read config file: No such file or directory (os error 2)"
        )
    );
}

#[test]
fn what_libvirt_writes_of_a_process_is_understood() {
    let options = run(&[
        "-name",
        "guest=vm,debug-threads=on",
        "-machine",
        "baton,usb=off,dump-guest-core=on,graphics=off",
        "-accel",
        "kvm",
        "-cpu",
        "host,migratable=on,-avx2",
        "-overcommit",
        "mem-lock=off",
        "-smp",
        "2,sockets=1,dies=1,clusters=1,cores=2,threads=1",
        "-no-user-config",
        "-nodefaults",
        "-rtc",
        "base=2026-01-01",
        "-no-shutdown",
        "-boot",
        "strict=on",
        "-sandbox",
        "off",
        "-msg",
        "timestamp=on",
        "-pidfile",
        "/run/vm.pid",
        "-daemonize",
        "-action",
        "reboot=shutdown",
        "-d",
        "vcpu",
        "-D",
        "/run/vm.log",
        "-run-with",
        "user=1000:1000",
        "-blockdev",
        r#"{"driver":"file","filename":"/a","node-name":"storage"}"#,
        "-blockdev",
        r#"{"driver":"raw","node-name":"format","file":"storage","read-only":true}"#,
        "-device",
        r#"{"driver":"virtio-blk-pci","drive":"format","id":"disk0"}"#,
        "-netdev",
        r#"{"type":"tap","id":"net0","ifname":"tap0","vhost":true}"#,
    ])
    .unwrap();
    let off: Vec<_> = options
        .cpu
        .changes
        .iter()
        .map(|(f, on)| (f.name, *on))
        .collect();
    assert_eq!(off, [("avx2", false)]);
    assert_eq!(options.cpu.origin, "-cpu host,migratable=on,-avx2");
    assert_eq!(devices(&options)[0], "mc146818rtc,base=2026-01-01");
    assert_eq!(options.drives.len(), 1);
    assert_eq!(
        (&options.drives[0].id[..], options.drives[0].read_only),
        ("format", true)
    );
    assert_eq!(options.netdevs[0].kind, "tap");
    assert!(options.no_reboot && options.no_shutdown && options.daemonize && options.timestamps);
    assert_eq!(options.pidfile, Some("/run/vm.pid".into()));
    assert_eq!(options.log.items, ["vcpu"]);
    assert_eq!(options.log.file, crate::log::file("/run/vm.log").ok());
    assert_eq!(options.run_as, RunAs::parse("1000:1000").ok());
}

#[test]
fn a_daemon_has_no_terminal() {
    let options = run(&["-daemonize"]).unwrap();
    assert_eq!(options.chardevs[0].backend, ChardevBackend::Null);
    for (arguments, text) in [
        (
            &["-daemonize", "-serial", "stdio"][..],
            "-daemonize: cannot use stdio with -daemonize; connect character device 'serial0' to \
             something else",
        ),
        (
            &["-daemonize", "-qmp", "stdio"],
            "-daemonize: cannot use stdio with -daemonize; connect -qmp stdio to something else",
        ),
        (
            &["-daemonize", "-nographic"],
            "-nographic: -nographic cannot be used with -daemonize; leave one out",
        ),
    ] {
        assert_eq!(run(arguments).unwrap_err(), text);
    }
}

#[test]
fn every_refusal_is_one_line_that_names_the_option() {
    for (arguments, text) in [
        (
            &["-m", "4Q"][..],
            "-m 4Q: Parameter 'size' expects a size, such as 512M or 4G",
        ),
        (
            &["-m", "1G\n"],
            "-m 1G\\n: Parameter 'size' expects a size, such as 512M or 4G",
        ),
        (
            &["-smp", "2,threads=2"],
            "-smp 2,threads=2: sockets=1,cores=2,threads=2 is not supported; \
             use sockets=1,cores=2,threads=1",
        ),
        (
            &["-machine", "q35"],
            "-machine q35: unsupported machine type 'q35'; use baton",
        ),
        (
            &["-machine", "memory-backend=ram1"],
            "-machine memory-backend=ram1: Memory backend 'ram1' not found; \
             add an -object with that id",
        ),
        (
            &["-object", "memory-backend-ram,id=r,size=1G"],
            "-object id=r: Nothing uses memory backend 'r'; say -machine memory-backend=r",
        ),
        (
            &[
                "-object",
                "memory-backend-ram,id=r,size=1G",
                "-machine",
                "memory-backend=r",
                "-m",
                "2G",
            ],
            "-m 2G: Machine memory size does not match the size of the memory backend: \
             2147483648 and 1073741824 bytes",
        ),
        (
            &["-accel", "tcg"],
            "-accel tcg: invalid accelerator tcg; use kvm",
        ),
        (
            &["-cpu", "qemu64"],
            "-cpu qemu64: unable to find CPU model 'qemu64'; use host",
        ),
        (
            &["-display", "gtk"],
            "-display gtk: Display 'gtk' is not supported; use none",
        ),
        (
            &["-monitor", "vc"],
            "-monitor vc: Monitor at 'vc' is not supported; use unix:PATH,server=on,wait=off or \
             tcp:HOST:PORT,server=on,wait=off or fd:NAME,server=on,wait=off or stdio",
        ),
        (
            &["-monitor", "stdio", "-qmp", "stdio"],
            "stdio: -qmp stdio and -monitor stdio cannot both use it; connect one to something else",
        ),
        (
            &["-name", "a,debug-threads=off"],
            "-name a,debug-threads=off: Parameter 'debug-threads' must be on: \
             threads always have names",
        ),
        (
            &["-name", "a,process=b"],
            "-name a,process=b: Property 'name.process' not found",
        ),
        (
            &["-serial", "none", "-serial", "null"],
            "-serial none: there is another -serial; leave one of them out",
        ),
        (
            &["-serial", "stdio", "-qmp", "stdio"],
            "stdio: character device 'serial0' and -qmp stdio cannot both use it; \
             connect one to something else",
        ),
        (
            &["-chardev", "null,id=serial0", "-serial", "null"],
            "-chardev id=serial0: Duplicate ID 'serial0' for chardev; give each one its own",
        ),
        (
            &[
                "-drive",
                "if=none,id=d,file=a",
                "-drive",
                "if=none,id=d,file=b",
            ],
            "-drive id=d: Duplicate ID 'd' for drive; give each one its own",
        ),
        (
            &["-device", "a,id=d", "-device", "b,id=d"],
            "-device id=d: Duplicate ID 'd' for device; give each one its own",
        ),
        (
            &["-drive", "if=ide,file=a"],
            "-drive if=ide,file=a: Interface 'ide' is not supported; \
             use if=none with a -device, or if=virtio",
        ),
        (
            &["-incoming", "foo:bar"],
            "-incoming foo:bar: unknown migration protocol: foo:bar",
        ),
        (
            &[
                "-incoming",
                "cpr,addr.transport=socket,addr.type=unix,addr.path=c",
            ],
            "-incoming cpr,addr.transport=socket,addr.type=unix,addr.path=c: \
             Channel list has no main entry",
        ),
        (
            &[
                "-incoming",
                "cpr,addr.transport=socket,addr.type=inet,addr.host=a,addr.port=1",
            ],
            "-incoming cpr,addr.transport=socket,addr.type=inet,addr.host=a,addr.port=1: \
             bad cpr channel socket type; must be unix",
        ),
        (
            &["-vga", "std"],
            "-vga std: not supported: There is no graphics card. Use none",
        ),
        (
            &["-bios", "x"],
            "-bios: not supported: there is no firmware: -kernel FILE is booted",
        ),
        (
            &["-usb"],
            "-usb: not supported: there is no USB; leave it out",
        ),
        (
            &["-machin", "baton"],
            "-machin: invalid option; did you mean '-machine'?",
        ),
        (&["-qmp"], "-qmp: requires an argument"),
    ] {
        assert_eq!(run(arguments).unwrap_err(), text);
    }
}

#[test]
fn a_kernel_is_needed_for_what_goes_with_it() {
    for (arguments, text) in [
        (
            &[][..],
            "-kernel: nothing to boot; there is no firmware, so say -kernel FILE",
        ),
        (&["-append", "x"], "-append x: only allowed with -kernel"),
        (&["-initrd", "x"], "-initrd x: only allowed with -kernel"),
        (&["plugin", "inof"], "plugin: write baton plugin info FILE"),
        (&["plugin"], "plugin: write baton plugin info FILE"),
        (
            &["completions", "tcsh"],
            "completions: write baton completions bash, zsh or fish",
        ),
        (
            &["state", "check", "a"],
            "state: write baton state show FILE [--offset N] [--full] or baton state check OLD NEW \
             [--json]",
        ),
        (
            &["state", "show", "a", "--offset", "x"],
            "--offset x: expects a number of bytes, such as 4096, 0x1000 or 4K",
        ),
    ] {
        assert_eq!(invocation(arguments).unwrap_err(), text);
    }
}

#[test]
fn without_a_display_the_serial_line_and_a_monitor_share_stdio() {
    let chardev = |arguments: &[&str]| run(arguments).unwrap().chardevs.remove(0);
    let shared = chardev(&["-nographic"]);
    assert_eq!(shared.backend, ChardevBackend::Stdio { signal: false });
    assert!(shared.mux);
    assert_eq!(shared.monitors, [MonitorMode::Readline]);
    for other in [
        &["-nographic", "-monitor", "none"][..],
        &["-nographic", "-serial", "stdio"],
        &["-nographic", "-qmp", "unix:a,server=on"],
        &[],
    ] {
        let alone = chardev(other);
        assert_eq!(alone.backend, ChardevBackend::Stdio { signal: true });
        assert!(!alone.mux && alone.monitors.is_empty(), "{other:?}");
    }
}

#[test]
fn monitors_may_be_on_character_devices() {
    let options = run(&[
        "-monitor",
        "pty",
        "-qmp",
        "chardev:c",
        "-chardev",
        "pty,id=c",
    ])
    .unwrap();
    let on = |id: &str| {
        let mut all = options.chardevs.iter();
        let chardev = all.find(|chardev| chardev.id.as_str() == id);
        chardev.map(|chardev| chardev.monitors.clone())
    };
    assert_eq!(on("c"), Some(vec![MonitorMode::Control]));
    assert_eq!(on("compat_monitor1"), Some(vec![MonitorMode::Readline]));
    assert!(options.monitors.is_empty());
    let used = ["-chardev", "pty,id=c", "-mon", "c", "-mon", "c"];
    assert_eq!(
        run(&used).unwrap_err(),
        "-mon c: chardev \"c\" is in use; say mux=on, or give it another"
    );
}
