//! What a job in the lab came to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The end of one job.
#[derive(Clone, Debug)]
pub(crate) struct LabReport {
    pub passed: bool,
    /// One line for people: the job's own result line, or why there is none.
    pub summary: String,
    /// The `name=value` numbers of that line.
    pub values: BTreeMap<String, String>,
    /// From starting L1 to its end, in the attempt that counted.
    pub wall: Duration,
    pub attempts: u32,
    /// The consoles and the VMM's logs; None when it passed and nobody asked to keep them.
    pub logs: Option<PathBuf>,
}

/// What L1's console said that matters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Console {
    result: Option<String>,
    exit: Option<i32>,
}

impl Console {
    /// Takes one line of the console in.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("LAB-RESULT ") {
            self.result = Some(result.trim_end().to_owned());
        } else if let Some(code) = line.strip_prefix("LAB-EXIT ") {
            self.exit = code.trim().parse().ok();
        }
    }

    /// False when L1 died or hung before it could tell how the job ended.
    pub(crate) fn finished(&self) -> bool {
        self.exit.is_some()
    }

    pub(crate) fn passed(&self) -> bool {
        self.exit == Some(0)
    }

    pub(crate) fn summary(&self) -> String {
        match (&self.result, self.exit) {
            (Some(result), _) => {
                let words = result
                    .strip_prefix("passed ")
                    .or(result.strip_prefix("failed "));
                words.unwrap_or(result).to_owned()
            }
            (None, Some(code)) => format!("the job ended with exit status {code}"),
            (None, None) => "L1 ended without a result".to_owned(),
        }
    }

    pub(crate) fn values(&self) -> BTreeMap<String, String> {
        let words = self
            .result
            .as_deref()
            .unwrap_or_default()
            .split_whitespace();
        words
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_and_an_exit_status_make_a_verdict_with_numbers() {
        let mut console = Console::default();
        console.line("kernel noise");
        console.line("LAB-RESULT passed transfers=10 downtime_ms=3");
        assert!(!console.finished());
        console.line("LAB-EXIT 0\r");
        assert!(console.finished() && console.passed());
        assert_eq!(console.values()["transfers"], "10");
        assert_eq!(console.summary(), "transfers=10 downtime_ms=3");
    }

    #[test]
    fn a_console_that_stops_early_is_no_result() {
        let mut console = Console::default();
        console.line("LAB-UP");
        assert!(!console.finished() && !console.passed());
        assert_eq!(console.summary(), "L1 ended without a result");
    }
}
