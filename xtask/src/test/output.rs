//! Counting what test programs say.

/// How many tests came to what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    passed: u32,
    failures: Vec<String>,
    skips: Vec<String>,
    /// Failed tests by the test programs' own counts.
    counted_failed: u32,
}

impl Tally {
    /// Takes a line of output in.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(at) = line.find("SKIPPED ") {
            // The harness counts it as passed; both are the same test.
            self.skips.push(line[at + "SKIPPED ".len()..].to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += number_before(counts, " passed");
            self.counted_failed += number_before(counts, " failed");
            let ignored = number_before(counts, " ignored");
            if ignored > 0 {
                self.skips
                    .extend((0..ignored).map(|_| "a test marked #[ignore]".to_owned()));
                self.passed += ignored;
            }
        } else if let Some(name) = failed_test(line) {
            self.failures.push(name.to_owned());
        }
    }

    /// The end of a program that runs tests: one that fails without a failed test did not even
    /// compile, or died.
    pub(super) fn ended(&mut self, what: &str, success: bool) {
        let unnamed = self
            .counted_failed
            .saturating_sub(self.failures.len() as u32);
        self.failures
            .extend((0..unnamed).map(|_| format!("{what}: a test without a name")));
        if !success && self.failures.is_empty() {
            self.failures.push(format!("{what} failed: see above"));
        }
    }

    /// A test that passed.
    pub(super) fn pass(&mut self) {
        self.passed += 1;
    }

    /// A test that failed.
    pub(super) fn fail(&mut self, name: &str, reason: &str) {
        self.failures.push(format!("{name}: {reason}"));
    }

    /// A test that was left out.
    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        self.skips.push(format!("{name}: {reason}"));
        // As if the harness had counted it.
        self.passed += 1;
    }

    /// Whether the whole failed.
    pub(super) fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// What was left out, what failed, and the numbers in the last line.
    pub(super) fn summary(&self) -> String {
        let mut lines = vec![String::new()];
        lines.extend(self.skips.iter().map(|skip| format!("SKIPPED {skip}")));
        lines.extend(
            self.failures
                .iter()
                .map(|failure| format!("FAILED {failure}")),
        );
        lines.push(format!(
            "{} passed, {} failed, {} skipped",
            self.passed.saturating_sub(self.skips.len() as u32),
            self.failures.len(),
            self.skips.len()
        ));
        lines.join("\n")
    }
}

fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split(word).next().unwrap_or_default();
    let number = before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn numbers_of_all_programs_are_added_up() {
        let mut tally = tally(&[
            "test a ... ok",
            "SKIPPED native::b: Cannot open /dev/kvm",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out",
            "test c ... FAILED",
            "test result: FAILED. 5 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
        ]);
        tally.ended("cargo test", false);
        tally.skip("lab: transfer", "no qemu");
        let summary = tally.summary();
        assert!(tally.failed());
        assert!(
            summary.contains("SKIPPED native::b: Cannot open /dev/kvm\n"),
            "{summary}"
        );
        assert!(summary.contains("FAILED c\n"), "{summary}");
        assert!(
            summary.ends_with("\n6 passed, 1 failed, 3 skipped"),
            "{summary}"
        );
    }

    #[test]
    fn a_program_that_does_not_compile_is_a_failure() {
        let mut tally = tally(&["error[E0425]: cannot find value `x` in this scope"]);
        tally.ended("cargo test", false);
        assert!(tally.summary().ends_with("\n0 passed, 1 failed, 0 skipped"));
    }

    #[test]
    fn a_skip_between_other_words_is_seen() {
        let tally = tally(&[
            "test x ... SKIPPED x: none",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ]);
        assert!(tally.summary().ends_with("\n0 passed, 0 failed, 1 skipped"));
        assert!(!tally.failed());
    }
}
