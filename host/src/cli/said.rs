//! What was said, by option.

use super::definition;
use super::error::CliError;
use super::table::Opt;

/// One option as it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// The option's own name.
    pub(super) option: &'static str,
    /// Its value; empty where it takes none.
    pub(super) value: String,
    /// What was said and where, for errors.
    pub(super) origin: String,
}

impl Word {
    /// `option` as it is written on a command line.
    pub(super) fn new(option: &Opt, value: Option<String>) -> Self {
        let name = option.name;
        Self {
            option: name,
            origin: match &value {
                Some(value) => format!("-{name} {value}"),
                None => format!("-{name}"),
            },
            value: value.unwrap_or_default(),
        }
    }

    /// An error of it.
    pub(super) fn error(&self, reason: impl Into<String>) -> CliError {
        CliError::new(self.origin.as_str(), reason)
    }
}

/// All options in the order said.
pub(super) struct Said(Vec<Word>);

impl Said {
    pub(super) fn new(words: Vec<Word>) -> Self {
        Self(words)
    }

    /// Each time an option was said.
    pub(super) fn words(&self, option: &str) -> impl DoubleEndedIterator<Item = &Word> {
        debug_assert!(
            definition::option(option).is_some_and(|known| known.name == option),
            "-{option} is not in the table"
        );
        self.0.iter().filter(move |word| word.option == option)
    }

    /// All values of an option, in the order said.
    pub(super) fn all(&self, option: &str) -> impl Iterator<Item = &str> {
        self.words(option).map(|word| word.value.as_str())
    }

    /// The value that counts where an option has one.
    pub(super) fn last(&self, option: &str) -> Option<&str> {
        self.words(option)
            .next_back()
            .map(|word| word.value.as_str())
    }

    pub(super) fn flag(&self, option: &str) -> bool {
        self.words(option).next().is_some()
    }

    /// Reads every value of an option.
    pub(super) fn each<T>(
        &self,
        option: &str,
        mut read: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, CliError> {
        self.words(option)
            .map(|word| read(&word.value).map_err(|reason| word.error(reason)))
            .collect()
    }

    /// An error of an option's last value.
    pub(super) fn error(&self, option: &str, reason: impl Into<String>) -> CliError {
        match self.words(option).next_back() {
            Some(word) => word.error(reason),
            None => CliError::new(format!("-{option}"), reason),
        }
    }
}
