//! The man page, made from the table of options. `docs/man/baton.1` is a copy; a test keeps it so.

use std::io::Write;

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::help::spellings;
use super::subcommand;
use super::table::GROUPS;
use super::update;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/man/baton.1");

/// The whole page in roff.
fn page() -> std::io::Result<String> {
    let version = concat!("Baton ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(subcommand::command())
        .title("BATON")
        .section("1")
        .date("")
        .source(version)
        .manual("User Commands");
    let mut page = Vec::new();
    writeln!(
        page,
        ".\\\" Made from the table of options; BATON_UPDATE_DOCS=1 cargo test -p baton man"
    )?;
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for (n, (command, arguments)) in SYNOPSIS.into_iter().enumerate() {
        if n > 0 {
            roff.control("br", []);
        }
        roff.text([bold(command), roman(" "), roman(arguments)]);
    }
    roff.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut roff, &DESCRIPTION);
    roff.control("SH", ["OPTIONS"]);
    for (group, options) in GROUPS {
        roff.control("SS", [group]);
        for option in options {
            entry(&mut roff, &spellings(option), option.help);
        }
    }
    roff.control("SH", ["COMMANDS"]);
    for (command, help) in COMMANDS {
        entry(&mut roff, command, help);
    }
    entry(&mut roff, update::USAGE, update::ABOUT);
    roff.control("RS", []);
    for (switch, help) in update::SWITCHES {
        entry(&mut roff, switch, help);
    }
    roff.control("RE", []);
    roff.control("SH", ["EXIT STATUS"]);
    paragraphs(&mut roff, &[EXIT_STATUS]);
    roff.control("SH", ["EXAMPLE"]);
    roff.control("nf", []);
    roff.text([roman(EXAMPLE)]);
    roff.control("fi", []);
    roff.to_writer(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn paragraphs(roff: &mut Roff, texts: &[&str]) {
    for (n, text) in texts.iter().enumerate() {
        if n > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*text)]);
    }
}

fn entry(roff: &mut Roff, term: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(text)]);
}

const SYNOPSIS: [(&str, &str); 6] = [
    ("baton", "-kernel FILE [OPTION]..."),
    ("baton plugin info", "FILE"),
    ("baton state show", "FILE [--offset N] [--full]"),
    ("baton state check", "OLD NEW [--json]"),
    ("baton completions", "bash|zsh|fish"),
    ("baton update", "--qmp SOCKET [OPTION]..."),
];

const DESCRIPTION: [&str; 2] = [
    "Baton runs one guest under KVM. Every device of the guest is a plugin. A running guest can be \
     handed over to a new Baton process on the same host.",
    "Options are spelled as QEMU spells them: with one dash or two, the value in the next argument \
     or after an equals sign. Properties are separated by commas; a comma in a value is written \
     twice. An option that is not listed here, and a property that a device or object does not \
     have, is an error.",
];

const COMMANDS: [(&str, &str); 4] = [
    (
        "baton plugin info FILE",
        "Print what a plugin file says of itself.",
    ),
    (
        "baton state show FILE [--offset N] [--full]",
        "Print the state in FILE, which may begin at byte N of it, as JSON: header, machine \
         fingerprint and sections. Binary is shown in hexadecimal, and cut when it is long unless \
         --full is said. What follows the state in the file is not looked at. --json says what is \
         so anyway.",
    ),
    (
        "baton state check OLD NEW [--json]",
        "Say of each section whether NEW can load what OLD writes. Both are files that \
         -dump-vmstate wrote; one of them may be a state file. The exit status is the number of \
         sections, and of other things, that do not fit, at most 254; it is 255, with a line on \
         standard error, when the files cannot be compared.",
    ),
    (
        "baton completions bash|zsh|fish",
        "Print what makes that shell complete options, files and device types. In bash: \
         source <(baton completions bash)",
    ),
];

const EXIT_STATUS: &str = "0 when the guest was shut down or QMP said quit; 1 after an error, \
                           which is one line on standard error. Of baton state check see there.";

const EXAMPLE: &str = "\
baton -m 1G -smp 2 -kernel bzImage -append console=ttyS0 \\
    -drive if=virtio,file=disk.raw -qmp unix:/run/vm.qmp,server=on,wait=off";

#[test]
fn the_man_page_is_the_one_made_from_the_options() {
    let page = page().unwrap();
    if std::env::var_os("BATON_UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let kept = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        kept == page,
        "docs/man/baton.1 is out of date; run BATON_UPDATE_DOCS=1 cargo test -p baton man"
    );
}
