//! `-cpu`: the model, and features switched on and off.

use super::nearest::hint;
use super::number;
use super::pairs::Pairs;
use crate::vcpu::features::{self, Feature};

/// The models: both are all that the host and KVM have.
const MODELS: [(&str, &str); 2] = [
    (
        "host",
        "the host's CPU, as far as KVM and a handover carry it",
    ),
    ("max", "the same"),
];

/// What is so anyway: property and the value it may have.
const FIXED: [(&str, bool, &str); 5] = [
    ("migratable", true, "what is not, is hidden anyway"),
    (
        "enforce",
        true,
        "a feature that the host lacks is always an error",
    ),
    (
        "check",
        true,
        "a feature that the host lacks is always an error",
    ),
    ("pmu", false, "performance counters are hidden from guests"),
    ("kvm", true, "the guest is told that it runs on KVM"),
];

/// `-cpu`: what differs from the host's CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuOption {
    /// Features, and whether each is to be on: of several for one the last wins.
    pub changes: Vec<(Feature, bool)>,
    /// What was said, for errors.
    pub origin: String,
}

impl CpuOption {
    /// The value of `-cpu`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (model, rest) = text.split_once(',').unwrap_or((text, ""));
        if !MODELS.iter().any(|(name, _)| *name == model) {
            let near = hint(model, MODELS.map(|(name, _)| name));
            return Err(format!(
                "unable to find CPU model '{model}'{}",
                if near.is_empty() { "; use host" } else { &near }
            ));
        }
        let mut changes = Vec::new();
        let mut named = Vec::new();
        for word in rest.split(',').filter(|word| !word.is_empty()) {
            match (word.strip_prefix('+'), word.strip_prefix('-')) {
                (Some(name), _) => changes.push((feature(name)?, true)),
                (_, Some(name)) => changes.push((feature(name)?, false)),
                _ => named.push(word),
            }
        }
        let mut pairs = Pairs::parse(&named.join(","), None)?;
        for (key, only, why) in FIXED {
            if pairs.switch(key)?.is_some_and(|said| said != only) {
                let word = if only { "on" } else { "off" };
                return Err(format!("Parameter '{key}' must be {word}: {why}"));
            }
        }
        for (name, value) in pairs.rest() {
            let on = number::switch(&value)
                .ok_or_else(|| format!("Parameter '{name}' expects 'on' or 'off'"))?;
            changes.push((feature(&name)?, on));
        }
        Ok(Self {
            changes,
            origin: String::new(),
        })
    }
}

fn feature(name: &str) -> Result<Feature, String> {
    features::find(name).ok_or_else(|| {
        let known = features::all().map(|feature| feature.name);
        let near = hint(name, known.chain(FIXED.map(|(name, ..)| name)));
        match near.is_empty() {
            true => format!("Property 'cpu.{name}' not found; see -cpu help"),
            false => format!("Property 'cpu.{name}' not found{near}"),
        }
    })
}

/// `-cpu help`.
pub(super) fn help() -> String {
    let mut text = String::from("Available CPUs:\n");
    for (name, help) in MODELS {
        text.push_str(&format!("  {name:<8} {help}\n"));
    }
    text.push_str(
        "\nRecognized CPUID flags, each with + or - before it, or =on or =off behind\n\
         (+ only where the host has it):\n",
    );
    let names = features::all()
        .filter(|feature| !feature.is_hidden())
        .map(|feature| feature.name);
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    text.push_str(&super::help::wrapped(&names.join(" ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(text: &str) -> Result<Vec<(&'static str, bool)>, String> {
        let changes = CpuOption::parse(text)?.changes;
        Ok(changes.into_iter().map(|(f, on)| (f.name, on)).collect())
    }

    #[test]
    fn features_are_switched_in_every_spelling() {
        assert_eq!(changes("host"), Ok(vec![]));
        assert_eq!(changes("max,migratable=on,pmu=off"), Ok(vec![]));
        assert_eq!(
            changes("host,+avx2,-aes,sse4_1=off,rdrand=on"),
            Ok(vec![
                ("avx2", true),
                ("aes", false),
                ("sse4.1", false),
                ("rdrand", true)
            ])
        );
    }

    #[test]
    fn models_and_features_that_are_not_there_are_refused() {
        for (text, reason) in [
            ("qemu64", "unable to find CPU model 'qemu64'; use host"),
            (
                "hots",
                "unable to find CPU model 'hots'; did you mean 'host'?",
            ),
            (
                "host,+avx22",
                "Property 'cpu.avx22' not found; did you mean 'avx2'?",
            ),
            (
                "host,-xyzzy",
                "Property 'cpu.xyzzy' not found; see -cpu help",
            ),
            ("host,avx2", "Expected '=' after parameter 'avx2'"),
            ("host,avx2=maybe", "Parameter 'avx2' expects 'on' or 'off'"),
            (
                "host,pmu=on",
                "Parameter 'pmu' must be off: performance counters are hidden from guests",
            ),
        ] {
            assert_eq!(changes(text).unwrap_err(), reason, "{text}");
        }
    }
}
