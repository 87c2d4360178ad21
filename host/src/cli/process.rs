//! Options about the process: `-action`, `-run-with`, `-rtc` and others of one or two properties.

use std::path::PathBuf;

use super::error::CliError;
use super::nearest::not_accepted;
use super::pairs::Pairs;
use super::said::Said;
use super::user::RunAs;
use crate::log::{self, LogOptions};

/// What happens at the guest's end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Actions {
    /// A reset is a shutdown.
    pub(super) no_reboot: bool,
    /// A shutdown leaves the process there.
    pub(super) no_shutdown: bool,
}

impl Actions {
    /// From `-action` and its short forms: of several for one thing the last wins.
    pub(super) fn read(said: &Said) -> Result<Self, CliError> {
        let mut actions = Self {
            no_reboot: said.flag("no-reboot"),
            no_shutdown: said.flag("no-shutdown"),
        };
        said.each("action", |text| actions.add(text))?;
        Ok(actions)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let mut pairs = Pairs::parse(text, None)?;
        for (key, device) in [
            ("panic", "no device tells that a guest has panicked"),
            ("watchdog", "there is no watchdog device"),
        ] {
            if pairs.take(key).is_some() {
                return Err(format!(
                    "Parameter '{key}' is not supported: {device}; leave it out"
                ));
            }
        }
        pairs.forget_known();
        if let Some(second) = choice(&mut pairs, "reboot", ["reset", "shutdown"])? {
            self.no_reboot = second;
        }
        if let Some(second) = choice(&mut pairs, "shutdown", ["poweroff", "pause"])? {
            self.no_shutdown = second;
        }
        pairs.finish("action.")
    }
}

/// Which of two words a property is: whether it is the second.
fn choice(
    pairs: &mut Pairs,
    key: &'static str,
    words: [&'static str; 2],
) -> Result<Option<bool>, String> {
    let Some(value) = pairs.take(key) else {
        return Ok(None);
    };
    let at = words.iter().position(|word| *word == value);
    at.map(|at| Some(at == 1))
        .ok_or_else(|| not_accepted(key, &value, words))
}

/// `-runas` and `-run-with`: whom to become.
pub(super) fn run_as(said: &Said) -> Result<Option<RunAs>, CliError> {
    let short = said.each("runas", RunAs::parse)?.pop();
    let users = said.each("run-with", run_with)?;
    let long = users.into_iter().flatten().next_back();
    if let (Some(_), Some(_)) = (&short, &long) {
        return Err(said.error("runas", "-run-with says a user too; leave one out"));
    }
    Ok(short.or(long))
}

fn run_with(text: &str) -> Result<Option<RunAs>, String> {
    let mut pairs = Pairs::parse(text, None)?;
    if pairs.take("chroot").is_some() {
        return Err(
            "Parameter 'chroot' is not supported: a successor would not find its files there; \
             start Baton in a mount namespace of its own"
                .to_owned(),
        );
    }
    pairs.forget_known();
    fixed(
        &mut pairs,
        "async-teardown",
        "off",
        "RAM is given back when the process ends",
    )?;
    let user = pairs.take("user").map(|user| RunAs::parse(&user));
    pairs.finish("run-with.")?;
    user.transpose()
}

/// A property that has only one value here.
fn fixed(pairs: &mut Pairs, key: &'static str, only: &str, why: &str) -> Result<(), String> {
    match pairs.take(key) {
        Some(value) if value != only => Err(format!("Parameter '{key}' must be {only}: {why}")),
        _ => Ok(()),
    }
}

/// `-overcommit`.
pub(super) fn overcommit(text: &str) -> Result<(), String> {
    let mut pairs = Pairs::parse(text, None)?;
    fixed(
        &mut pairs,
        "mem-lock",
        "off",
        "guest RAM is not locked in memory",
    )?;
    fixed(
        &mut pairs,
        "cpu-pm",
        "off",
        "idle virtual CPUs give their host CPU up",
    )?;
    pairs.finish("overcommit.")
}

/// `-boot`.
pub(super) fn boot(text: &str) -> Result<(), String> {
    let mut pairs = Pairs::parse(text, Some("order"))?;
    for key in ["order", "once", "splash", "splash-time", "reboot-timeout"] {
        if pairs.take(key).is_some() {
            return Err(format!(
                "Parameter '{key}' is not supported: there is no firmware, -kernel FILE is booted; \
                 leave it out"
            ));
        }
    }
    pairs.forget_known();
    fixed(&mut pairs, "menu", "off", "there is no firmware")?;
    // Nothing but what was said is ever booted.
    pairs.switch("strict")?;
    pairs.finish("boot.")
}

/// `-rtc`: the time at power-on, in the words of the clock's property `base`.
pub(super) fn rtc(text: &str) -> Result<Option<String>, String> {
    let mut pairs = Pairs::parse(text, Some("base"))?;
    fixed(&mut pairs, "clock", "host", "the clock follows the host's")?;
    fixed(
        &mut pairs,
        "driftfix",
        "none",
        "lost ticks are not made up for",
    )?;
    let base = pairs.take("base");
    if base.as_deref() == Some("localtime") {
        return Err("Parameter 'base' does not accept value 'localtime'; use utc or a date".into());
    }
    pairs.finish("rtc.")?;
    Ok(base)
}

/// `-msg`: whether an error comes with the time.
pub(super) fn msg(text: &str) -> Result<bool, String> {
    let mut pairs = Pairs::parse(text, None)?;
    let on = pairs.switch("timestamp")?.unwrap_or(false);
    fixed(&mut pairs, "guest-name", "off", "a process has one guest")?;
    pairs.finish("msg.")?;
    Ok(on)
}

/// `-sandbox`.
pub(super) fn sandbox(text: &str) -> Result<(), String> {
    let mut pairs = Pairs::parse(text, Some("enable"))?;
    if pairs.switch("enable")?.unwrap_or(true) {
        return Err(
            "System calls are not filtered, since plugins make their own; use off, and confine \
             the process from outside, as a systemd unit does"
                .to_owned(),
        );
    }
    pairs.finish("sandbox.")
}

/// `-D` and `-d`.
pub(super) fn log(said: &Said) -> Result<LogOptions, CliError> {
    let items = said.each("d", log::items)?;
    Ok(LogOptions {
        items: items.into_iter().flatten().collect(),
        file: said.each("D", log::file)?.pop(),
    })
}

/// `-pidfile`.
pub(super) fn pidfile(text: &str) -> Result<PathBuf, String> {
    match text.is_empty() {
        true => Err("The file's name is missing".to_owned()),
        false => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(text: &str) -> Result<Actions, String> {
        let mut actions = Actions::default();
        actions.add(text)?;
        Ok(actions)
    }

    #[test]
    fn actions_are_those_of_the_machine() {
        for (text, no_reboot, no_shutdown) in [
            ("reboot=shutdown", true, false),
            ("reboot=reset,shutdown=poweroff", false, false),
            ("shutdown=pause", false, true),
        ] {
            let expected = Actions {
                no_reboot,
                no_shutdown,
            };
            assert_eq!(actions(text), Ok(expected));
        }
        for (text, reason) in [
            (
                "reboot=off",
                "Parameter 'reboot' does not accept value 'off'; use reset, shutdown",
            ),
            (
                "shutdown=puase",
                "Parameter 'shutdown' does not accept value 'puase'; did you mean 'pause'?",
            ),
            (
                "panic=none",
                "Parameter 'panic' is not supported: no device tells that a guest has panicked; \
                 leave it out",
            ),
            (
                "rebot=reset",
                "Property 'action.rebot' not found; did you mean 'reboot'?",
            ),
        ] {
            assert_eq!(actions(text).unwrap_err(), reason);
        }
    }

    #[test]
    fn what_is_so_anyway_may_be_said_and_nothing_else() {
        assert_eq!(overcommit("mem-lock=off,cpu-pm=off"), Ok(()));
        assert_eq!(boot("menu=off,strict=on"), Ok(()));
        assert_eq!(sandbox("off"), Ok(()));
        assert_eq!(msg("timestamp=on"), Ok(true));
        assert_eq!(run_with("async-teardown=off"), Ok(None));
        assert_eq!(rtc("base=utc,clock=host"), Ok(Some("utc".into())));
        for (refusal, reason) in [
            (
                overcommit("mem-lock=on"),
                "Parameter 'mem-lock' must be off: guest RAM is not locked in memory",
            ),
            (
                boot("cd"),
                "Parameter 'order' is not supported: there is no firmware, -kernel FILE is booted; \
                 leave it out",
            ),
            (
                boot("strcit=on"),
                "Property 'boot.strcit' not found; did you mean 'strict'?",
            ),
            (
                sandbox("on"),
                "System calls are not filtered, since plugins make their own; use off, and confine \
                 the process from outside, as a systemd unit does",
            ),
            (
                run_with("chroot=/").map(drop),
                "Parameter 'chroot' is not supported: a successor would not find its files there; \
                 start Baton in a mount namespace of its own",
            ),
            (
                rtc("localtime").map(drop),
                "Parameter 'base' does not accept value 'localtime'; use utc or a date",
            ),
            (
                rtc("clock=vm").map(drop),
                "Parameter 'clock' must be host: the clock follows the host's",
            ),
        ] {
            assert_eq!(refusal.unwrap_err(), reason);
        }
    }
}
