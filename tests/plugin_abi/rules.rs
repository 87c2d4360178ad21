//! The rules as a text: each has a number and names tests that exist.

use anyhow::{Context, Result, ensure};
use baton_testkit::guest::workspace;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where tests of the rules may be.
const SOURCES: [&str; 4] = ["plugin-api/src", "host/src", "migration/src", "tests"];

#[test]
fn every_rule_has_a_number_and_names_tests_that_exist() -> Result<()> {
    let text = fs::read_to_string(workspace().join("docs/plugin-abi.md"))?;
    let mut sources = String::new();
    for folder in SOURCES {
        read_all(&workspace().join(folder), &mut sources)?;
    }
    let functions: BTreeSet<_> = sources
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("fn ")?.split_once("()"))
        .map(|(name, _)| name)
        .collect();
    let rules: Vec<_> = text.split("\n**R").skip(1).collect();
    ensure!(rules.len() > 30, "There are only {} rules", rules.len());
    for (at, rule) in rules.iter().enumerate() {
        let rule = rule.split("\n\n").next().unwrap_or_default();
        let number = format!("{}.", at + 1);
        ensure!(
            rule.starts_with(&number),
            "Rule {number} is followed by: {rule}"
        );
        for part in ["*Broken:*", "*Detected:*", "*Test:*"] {
            ensure!(rule.contains(part), "R{number} does not say {part}");
        }
        let (_, tests) = rule.rsplit_once("*Test:*").context("Checked above")?;
        let named: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        ensure!(!named.is_empty(), "R{number} names no test");
        for name in named {
            ensure!(
                functions.contains(name),
                "R{number} names {name}, which is no test"
            );
        }
    }
    Ok(())
}

fn read_all(folder: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
