//! The options of a chore: `--name`, and `--name VALUE`.

use anyhow::{Context, Result, bail};

/// A chore's arguments, from which options are taken until none is left.
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn new(args: &[String]) -> Self {
        Self(args.to_vec())
    }

    /// Whether the option is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|arg| arg != name);
        self.0.len() < before
    }

    /// The option's value, if it is there.
    ///
    /// # Errors
    /// When the value is missing.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.0.iter().position(|arg| arg == name) else {
            return Ok(None);
        };
        self.0.remove(at);
        if at == self.0.len() {
            bail!("{name} needs a value");
        }
        Ok(Some(self.0.remove(at)))
    }

    /// The option's number.
    ///
    /// # Errors
    /// When it is not a whole number above 0.
    pub(crate) fn count(&mut self, name: &str, usual: u32) -> Result<u32> {
        let Some(text) = self.value(name)? else {
            return Ok(usual);
        };
        let number = text.parse().ok().filter(|number| *number > 0);
        number.with_context(|| format!("{name} needs a whole number above 0, not `{text}`"))
    }

    /// One argument that is no option, if it is there.
    pub(crate) fn word(&mut self) -> Option<String> {
        let at = self.0.iter().position(|arg| !arg.starts_with('-'))?;
        Some(self.0.remove(at))
    }

    /// An error when anything is left.
    ///
    /// # Errors
    /// Names it, and what `chore` takes.
    pub(crate) fn finish(self, usage: &str) -> Result<()> {
        match self.0.first() {
            Some(arg) => bail!("`{arg}` is not understood; usage: {usage}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Arguments {
        Arguments(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn options_come_in_any_order_and_the_rest_is_an_error() {
        let mut args = arguments("--lab --count 3 word");
        assert_eq!(args.count("--count", 10).unwrap(), 3);
        assert!(args.flag("--lab") && !args.flag("--lab"));
        assert_eq!(args.word().as_deref(), Some("word"));
        args.finish("x").unwrap();

        let error = arguments("--speed")
            .finish("demo [--lab]")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "`--speed` is not understood; usage: demo [--lab]");
    }

    #[test]
    fn a_count_is_a_number_above_zero() {
        assert_eq!(arguments("").count("--count", 10).unwrap(), 10);
        for line in ["--count", "--count 0", "--count many"] {
            assert!(arguments(line).count("--count", 10).is_err(), "{line}");
        }
    }
}
