//! The man page, made from the table of options. `docs/man/baton.1` is a copy; a test keeps it so.

use std::fmt::Write;

use super::definition;
use super::help::{help_of, spellings};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/man/baton.1");

/// The whole page in roff.
fn page() -> String {
    let command = definition::command();
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut text = format!(
        ".\\\" Made from the table of options; BATON_UPDATE_DOCS=1 cargo test -p baton man\n\
         .TH BATON 1 \"\" \"Baton {}\" \"User Commands\"\n\
         .SH NAME\nbaton \\- {}\n\
         .SH SYNOPSIS\n.B baton\n\\-kernel FILE [OPTION]...\n.br\n.B baton plugin info\nFILE\n\
         .br\n.B baton state show\nFILE [\\-\\-offset N] [\\-\\-full]\n\
         .br\n.B baton state check\nOLD NEW [\\-\\-json]\n\
         .SH DESCRIPTION\n",
        env!("CARGO_PKG_VERSION"),
        roff(&lower(&about)),
    );
    text.push_str(
        "Baton runs one guest under KVM. Every device of the guest is a plugin. A running guest can \
         be handed\nover to a new Baton process on the same host.\n.PP\n\
         Options are spelled as QEMU spells them: with one dash or two, the value in the next \
         argument or after\nan equals sign. Properties are separated by commas; a comma in a value \
         is written twice. An option that\nis not listed here, and a property that a device or \
         object does not have, is an error.\n.SH OPTIONS\n",
    );
    for option in command.get_arguments() {
        let _ = write!(
            text,
            ".TP\n.B {}\n{}\n",
            roff(&spellings(option)),
            roff(&help_of(option))
        );
    }
    text.push_str(COMMANDS);
    text.push_str(
        ".SH EXIT STATUS\n0 when the guest was shut down or QMP said quit; 1 after an error, which \
         is one line on standard error. Of\n\
         .B baton state check\n\
         see there.\n\
         .SH EXAMPLE\n.nf\nbaton \\-m 1G \\-smp 2 \\-kernel bzImage \\-append console=ttyS0 \
         \\e\n    \\-drive if=virtio,file=disk.raw \\-qmp \
         unix:/run/vm.qmp,server=on,wait=off\n.fi\n",
    );
    text
}

const COMMANDS: &str = "\
.SH COMMANDS
.TP
.B baton plugin info FILE
Print what a plugin file says of itself.
.TP
.B baton state show FILE [\\-\\-offset N] [\\-\\-full]
Print the state in FILE, which may begin at byte N of it, as JSON: header, machine fingerprint and
sections. Binary is shown in hexadecimal, and cut when it is long unless \\-\\-full is said. What
follows the state in the file is not looked at. \\-\\-json says what is so anyway.
.TP
.B baton state check OLD NEW [\\-\\-json]
Say of each section whether NEW can load what OLD writes. Both are files that \\-dump\\-vmstate
wrote; one of them may be a state file. The exit status is the number of sections, and of other
things, that do not fit, at most 254; it is 255, with a line on standard error, when the files
cannot be compared.
";

fn lower(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// Text in which roff sees no commands.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
}

#[test]
fn the_man_page_is_the_one_made_from_the_options() {
    let page = page();
    if std::env::var_os("BATON_UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let kept = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        kept == page,
        "docs/man/baton.1 is out of date; run BATON_UPDATE_DOCS=1 cargo test -p baton man"
    );
}
