//! The tables of `docs/qmp.md`, made from those of commands and events; a test keeps them so.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{TABLES, events};
use crate::monitor::qapi::{Member, Object, Type};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/qmp.md");

/// The tables stand between lines that begin so.
const BEGIN: &str = "<!-- made from host/src/monitor/table";
const END: &str = "<!-- end -->";

/// The page with its tables as they are to be.
fn page(old: &str) -> String {
    let made = [commands(), types(), all_events()];
    let mut parts = made.iter();
    let mut page = String::new();
    let mut within = false;
    for line in old.lines() {
        if within && line != END {
            continue;
        }
        page += line;
        page += "\n";
        within = line.starts_with(BEGIN);
        if within {
            page += parts.next().expect("there are as many marks as tables");
        }
    }
    assert!(
        parts.next().is_none(),
        "docs/qmp.md has lost the place of a table"
    );
    page
}

fn commands() -> String {
    let mut text = String::new();
    for (title, commands) in TABLES {
        let _ = write!(
            text,
            "\n### {title}\n\n| command | arguments | result | |\n|---|---|---|---|\n"
        );
        for command in *commands {
            let _ = writeln!(
                text,
                "| `{}`{} | {} | {} | {} |",
                command.name,
                if command.oob { " (oob)" } else { "" },
                arguments(&command.arguments),
                name(&command.result),
                command.doc
            );
        }
    }
    text + "\n"
}

fn all_events() -> String {
    let mut text = "\n| event | data | |\n|---|---|---|\n".to_owned();
    for event in events() {
        let limit = match event.limited_by {
            Some(_) => "; once a second at most, with what holds then",
            None => "",
        };
        let (name, data, doc) = (
            event.name,
            members(&event.data),
            [event.doc, limit].concat(),
        );
        let _ = writeln!(text, "| `{name}` | {data} | {doc} |");
    }
    text + "\n"
}

/// Every type with a name.
fn types() -> String {
    let mut found = BTreeMap::new();
    for (_, commands) in TABLES {
        for command in *commands {
            collect_arguments(&command.arguments, &mut found);
            collect(&command.result, &mut found);
        }
    }
    events().for_each(|event| collect_members(&event.data, &mut found));
    let mut text = "\n| type | members or values |\n|---|---|\n".to_owned();
    for (name, what) in found {
        let _ = writeln!(text, "| `{name}` | {what} |");
    }
    text + "\n"
}

fn collect(of: &Type, found: &mut BTreeMap<&'static str, String>) {
    match of {
        Type::List(of) => collect(of, found),
        Type::Object(of) if !of.name.is_empty() && !found.contains_key(of.name) => {
            let mut text = members(of);
            for (case, more) in of.variants.iter().flat_map(|variants| variants.cases) {
                let tag = of.variants.as_ref().map_or("", |variants| variants.tag);
                let _ = write!(text, "<br>`{tag}` is `{case}`: those of {}", more.name);
            }
            found.insert(of.name, text);
            collect_members(of, found);
            for (_, more) in of.variants.iter().flat_map(|variants| variants.cases) {
                collect(&Type::Object(more), found);
            }
        }
        Type::Enum(of) => {
            found.insert(of.name, format!("`{}`", of.values.join("`, `")));
        }
        Type::Alternate(of) => {
            let kinds: Vec<_> = of.of.iter().map(name).collect();
            found.insert(of.name, kinds.join(" or "));
        }
        _ => {}
    }
}

fn collect_arguments(of: &'static Object, found: &mut BTreeMap<&'static str, String>) {
    match of.name {
        "" => collect_members(of, found),
        _ => collect(&Type::Object(of), found),
    }
}

fn collect_members(of: &Object, found: &mut BTreeMap<&'static str, String>) {
    of.members
        .iter()
        .for_each(|member| collect(&member.of, found));
}

fn arguments(of: &Object) -> String {
    match of.name {
        "" => members(of),
        name => format!("those of {name}"),
    }
}

fn members(of: &Object) -> String {
    let rows: Vec<_> = of.members.iter().map(member).collect();
    rows.join("<br>")
}

/// A member: what it is called, its type, and what it means.
fn member(member: &Member) -> String {
    let mut text = format!("`{}`: {}", member.name, name(&member.of));
    if member.optional {
        text += ", optional";
    }
    for feature in member.features {
        text += ", ";
        text += feature;
    }
    if !member.doc.is_empty() {
        text += "; ";
        text += member.doc;
    }
    text
}

fn name(of: &Type) -> String {
    match of {
        Type::Str => "str".into(),
        Type::Bool => "bool".into(),
        Type::Int => "int".into(),
        Type::Uint8 => "uint8".into(),
        Type::Uint16 => "uint16".into(),
        Type::Uint32 => "uint32".into(),
        Type::Uint64 => "uint64".into(),
        Type::Size => "size".into(),
        Type::Number => "number".into(),
        Type::Null => "null".into(),
        Type::Any => "any".into(),
        Type::List(of) => format!("list of {}", name(of)),
        Type::Enum(of) => of.name.into(),
        Type::Object(of) => of.name.into(),
        Type::Alternate(of) => of.name.into(),
    }
}

#[test]
fn the_docs_have_the_tables_of_commands_and_events() {
    let kept = std::fs::read_to_string(PAGE).unwrap();
    let page = page(&kept);
    if std::env::var_os("BATON_UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    } else {
        assert!(
            kept == page,
            "docs/qmp.md is out of date; run BATON_UPDATE_DOCS=1 cargo test -p baton --lib docs"
        );
    }
}
