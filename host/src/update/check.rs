//! `--dry-run`: what an update would change, and what stands in its way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use baton_migration::{HostError, Mode, error_chain};
use serde_json::{Value, json};

use super::UpdateOptions;
use super::output::print;
use super::program::{self, Program};
use super::session::Session;
use crate::state::{self, Description, Line, PluginDescription};
use crate::successor::StandardStreams;

/// Looks, and prints what was found; the status is 0 if the update could succeed.
pub(super) fn run(options: &UpdateOptions) -> Result<ExitCode, HostError> {
    let session = Session::open(options)?;
    let found = look(options, session)?;
    let text = match options.json {
        true => serde_json::to_string_pretty(&found.json())?,
        false => found.text(),
    };
    print(&text);
    Ok(ExitCode::from(u8::from(!found.could_succeed())))
}

/// A program with its plugins.
struct Build {
    program: String,
    version: String,
    build_id: Option<String>,
    plugins: Vec<PluginDescription>,
}

struct Findings {
    mode: Mode,
    /// What would keep it from beginning.
    blockers: Vec<String>,
    old: Build,
    /// The new program, or why it cannot have this machine.
    new: Result<Build, String>,
    /// What the new program makes of each part of the state.
    lines: Vec<Line>,
}

fn look(options: &UpdateOptions, mut session: Session) -> Result<Findings, HostError> {
    let blockers = session.blockers(options.mode)?;
    let mut blockers: Vec<_> = blockers.iter().map(ToString::to_string).collect();
    if options.mode == Mode::CprTransfer
        && session.origin.standard_streams == StandardStreams::Terminal
    {
        blockers.push("the guest or a monitor uses the terminal (use --mode cpr-exec)".into());
    }
    let running = session.ask("query-vmstate", &json!({}))?;
    let running: Description = serde_json::from_value(running)
        .map_err(|e| format!("query-vmstate gives what cannot be understood: {e}"))?;
    let devices = session.devices()?;
    let origin = &session.origin;
    let described = program::find(options, origin, &devices)
        .and_then(|program| describe(options, &session, &program));
    let (new, lines) = match described {
        Ok((build, description)) => (Ok(build), state::compare(&running, &description)),
        Err(e) => (Err(error_chain(&*e)), Vec::new()),
    };
    Ok(Findings {
        mode: options.mode,
        blockers,
        old: Build {
            program: origin.program.display().to_string(),
            version: origin.version.clone(),
            build_id: origin.build_id.clone(),
            plugins: running.plugins,
        },
        new,
        lines,
    })
}

fn describe(
    options: &UpdateOptions,
    session: &Session,
    program: &Program,
) -> Result<(Build, Description), HostError> {
    let version = program.version(options.timeout)?;
    let mut description = program.describe(&session.origin, options.timeout)?;
    let build = Build {
        program: program.path.display().to_string(),
        version,
        build_id: description.build_id.clone(),
        plugins: std::mem::take(&mut description.plugins),
    };
    Ok((build, description))
}

/// A plugin of either build, or of both.
struct Change<'a> {
    name: &'a str,
    old: Option<&'a PluginDescription>,
    new: Option<&'a PluginDescription>,
}

impl Change<'_> {
    fn what(&self) -> &'static str {
        match (self.old, self.new) {
            (Some(old), Some(new)) => {
                let build =
                    |p: &PluginDescription| (p.version.clone(), p.abi.clone(), p.build_id.clone());
                match build(old) == build(new) {
                    // Without a build id nobody knows.
                    true if old.build_id.is_some() => "same",
                    true => "same version",
                    false => "changes",
                }
            }
            (Some(_), None) => "goes",
            _ => "comes",
        }
    }
}

impl Findings {
    fn could_succeed(&self) -> bool {
        self.blockers.is_empty() && self.new.is_ok() && self.lines.iter().all(Line::is_ok)
    }

    fn changes(&self) -> Vec<Change<'_>> {
        let new = self.new.as_ref().map_or(&[][..], |new| &new.plugins);
        let mut changes = BTreeMap::new();
        for plugin in &self.old.plugins {
            let name = plugin.name.as_str();
            let old = Some(plugin);
            changes.insert(
                name,
                Change {
                    name,
                    old,
                    new: None,
                },
            );
        }
        for plugin in new {
            let name = plugin.name.as_str();
            let change = changes.entry(name).or_insert(Change {
                name,
                old: None,
                new: None,
            });
            change.new = Some(plugin);
        }
        changes.into_values().collect()
    }

    fn json(&self) -> Value {
        let build = |build: &Build| {
            let mut row = json!({ "program": build.program, "version": build.version });
            if let Some(id) = &build.build_id {
                row["build-id"] = id.as_str().into();
            }
            row
        };
        let mut found = json!({
            "status": if self.could_succeed() { "possible" } else { "impossible" },
            "mode": self.mode,
            "blockers": self.blockers,
            "before": build(&self.old),
            "state": self.lines,
        });
        match &self.new {
            Ok(new) => {
                found["now"] = build(new);
                let rows = self.changes().into_iter().map(|change| {
                    json!({
                        "name": change.name,
                        "change": change.what(),
                        "before": change.old,
                        "now": change.new,
                    })
                });
                found["plugins"] = rows.collect();
            }
            Err(e) => found["error"] = e.as_str().into(),
        }
        found
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let build = |build: &Build| {
            let id = short(build.build_id.as_deref());
            format!("Baton {} ({}{id})", build.version, build.program)
        };
        let _ = writeln!(text, "before    {}", build(&self.old));
        match &self.new {
            Ok(new) => {
                let _ = writeln!(text, "now       {}", build(new));
                for change in self.changes() {
                    let what = change.what();
                    let _ = write!(text, "plugin    {}: {what}", change.name);
                    let sides = match what {
                        "same" | "same version" => vec![change.new],
                        _ => vec![change.old, change.new],
                    };
                    let sides: Vec<_> = sides.into_iter().flatten().map(plugin).collect();
                    let _ = writeln!(text, ", {}", sides.join(" -> "));
                }
            }
            Err(e) => {
                let _ = writeln!(text, "BAD       {e}");
            }
        }
        for blocker in &self.blockers {
            let _ = writeln!(text, "BLOCKED   {blocker}");
        }
        for line in self.lines.iter().filter(|line| !line.is_ok()) {
            let _ = writeln!(text, "BAD       {}: {}", line.name, line.message);
        }
        let fit = self.lines.iter().filter(|line| line.is_ok()).count();
        let _ = writeln!(text, "state     {fit} of {} parts fit", self.lines.len());
        let verdict = match self.could_succeed() {
            true => "the guest could be updated",
            false => "the guest cannot be updated",
        };
        let _ = writeln!(text, "{verdict} by {}", self.mode);
        text
    }
}

fn plugin(plugin: &PluginDescription) -> String {
    let id = short(plugin.build_id.as_deref());
    format!(
        "{} ABI {} ({}{id})",
        plugin.version, plugin.abi, plugin.file
    )
}

/// As much of a build id as people compare.
fn short(id: Option<&str>) -> String {
    let id = id.and_then(|id| id.get(..12).or(Some(id)));
    id.map(|id| format!(", build {id}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &str, version: &str, id: Option<&str>) -> PluginDescription {
        serde_json::from_value(json!({
            "name": name, "version": version, "abi": "1.0", "file": format!("/p/{name}.so"),
            "build-id": id,
        }))
        .unwrap()
    }

    fn findings(old: Vec<PluginDescription>, new: Vec<PluginDescription>) -> Findings {
        let build = |plugins| Build {
            program: "/b".into(),
            version: "1".into(),
            build_id: None,
            plugins,
        };
        Findings {
            mode: Mode::CprTransfer,
            blockers: Vec::new(),
            old: build(old),
            new: Ok(build(new)),
            lines: Vec::new(),
        }
    }

    #[test]
    fn plugins_are_compared_by_name_version_and_build() {
        let found = findings(
            vec![
                plugin("a", "1", Some("01")),
                plugin("b", "1", Some("01")),
                plugin("c", "1", None),
                plugin("d", "1", None),
            ],
            vec![
                plugin("a", "1", Some("01")),
                plugin("b", "1", Some("02")),
                plugin("c", "1", None),
                plugin("e", "1", None),
            ],
        );
        let changes: Vec<_> = found.changes().iter().map(|c| (c.name, c.what())).collect();
        let expected = [
            ("a", "same"),
            ("b", "changes"),
            ("c", "same version"),
            ("d", "goes"),
        ];
        assert_eq!(changes[..4], expected);
        assert_eq!(changes[4], ("e", "comes"));
        let text = found.text();
        assert!(
            text.contains("plugin    b: changes, 1 ABI 1.0 (/p/b.so, build 01) -> "),
            "{text}"
        );
        assert_eq!(found.json()["plugins"][3]["change"], "goes");
    }

    #[test]
    fn whatever_stands_in_the_way_makes_it_impossible() {
        let mut found = findings(Vec::new(), Vec::new());
        assert!(found.could_succeed());
        found.blockers.push("memory".into());
        assert!(!found.could_succeed() && found.text().contains("BLOCKED   memory"));
        let mut found = findings(Vec::new(), Vec::new());
        found.new = Err("no such file".into());
        assert_eq!(found.json()["status"], "impossible");
        assert!(found.text().contains("BAD       no such file"));
    }
}
