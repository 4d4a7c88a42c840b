//! What came of it: counts, and a line for each expectation that does not hold.

use std::fmt::Write as _;

use serde::Serialize;

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for each failure, then the counts.
    #[default]
    Text,
    /// One object.
    Json,
    /// JUnit's XML, as CI systems read it: a test case for each case file.
    Junit,
}

/// What came of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Files with a case that was run.
    pub files: usize,
    /// Cases that were run.
    pub cases: usize,
    /// Expectations that hold.
    pub passed: usize,
    /// Expectations that do not.
    pub failed: usize,
    /// Statements in words, which no program can judge.
    pub facts: usize,
    /// One for each expectation that does not hold, or for a case that cannot be run.
    pub failures: Vec<Failure>,
    /// Every case with its counts, in the order of running.
    #[serde(skip)]
    runs: Vec<Run>,
}

#[derive(Debug)]
struct Run {
    file: String,
    case: String,
    passed: usize,
    failed: usize,
    failures: std::ops::Range<usize>,
}

/// An expectation that does not hold.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// The file.
    pub file: String,
    /// The case, and the step of it.
    pub case: String,
    /// Source, or the name of what was asked.
    pub from: String,
    /// Destination.
    pub to: String,
    /// What the case states.
    pub expected: String,
    /// What we say.
    pub got: String,
    /// Why we say so.
    pub explanation: String,
}

/// Counts the expectations of one step of a case.
pub(super) struct Tally<'r> {
    report: &'r mut Report,
    file: String,
    case: String,
    before: (usize, usize, usize),
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        let (passed, failed, first) = self.before;
        let (passed, failed) = (self.report.passed - passed, self.report.failed - failed);
        let failures = first..self.report.failures.len();
        let (file, case) = (std::mem::take(&mut self.file), std::mem::take(&mut self.case));
        self.report.runs.push(Run { file, case, passed, failed, failures });
    }
}

impl Tally<'_> {
    /// Counts one that holds.
    pub(super) fn pass(&mut self) {
        self.report.passed += 1;
    }

    /// Counts statements in words.
    pub(super) fn facts(&mut self, count: usize) {
        self.report.facts += count;
    }

    /// Counts one by comparison; the explanation is made only where it is needed.
    pub(super) fn check<T: PartialEq>(
        &mut self,
        between: (&str, &str),
        expected: &T,
        got: &T,
        show: impl Fn(&T) -> String,
        explain: impl FnOnce() -> String,
    ) {
        if expected == got { self.pass() } else { self.fail(between, show(expected), show(got), explain()) }
    }

    /// Counts one that does not hold.
    pub(super) fn fail(&mut self, (from, to): (&str, &str), expected: String, got: String, explanation: String) {
        self.report.failed += 1;
        let (file, case) = (self.file.clone(), self.case.clone());
        self.report.failures.push(Failure { file, case, from: from.into(), to: to.into(), expected, got, explanation });
    }

    /// Counts `count` expectations that cannot be judged, with one line.
    pub(super) fn broken(&mut self, count: usize, why: &str) {
        if count > 0 {
            self.fail(("-", "-"), format!("{count} answers"), "none".into(), why.to_owned());
            self.report.failed += count - 1;
        }
    }
}

impl Report {
    /// Tells whether everything holds.
    pub fn holds(&self) -> bool {
        self.failed == 0
    }

    pub(super) fn tally(&mut self, file: &str, case: &str) -> Tally<'_> {
        let before = (self.passed, self.failed, self.failures.len());
        Tally { report: self, file: file.into(), case: case.into(), before }
    }

    pub(super) fn broken_case(&mut self, file: &str, case: &str, count: usize, why: &str) {
        self.tally(file, case).broken(count, why);
    }

    pub(super) fn broken_file(&mut self, file: &str, why: &str) {
        self.files += 1;
        self.broken_case(file, "?", 1, why);
    }

    /// Prints the report; the last line of text is `N passed, N failed`.
    pub fn print(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Json => serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default(),
            Format::Junit => self.junit(),
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for f in &self.failures {
            let Failure { file, case, from, to, expected, got, explanation } = f;
            let _ = write!(out, "{file}: {case}: {from} -> {to}: expected {expected}, got {got}");
            let _ = if explanation.is_empty() { writeln!(out) } else { writeln!(out, " ({})", explanation.replace('\n', "; ")) };
        }
        if self.facts > 0 {
            let _ = writeln!(out, "facts: {} statements in words, not judged here", self.facts);
        }
        let _ = writeln!(out, "files: {}, cases: {}", self.files, self.cases);
        let _ = writeln!(out, "{} passed, {} failed", self.passed, self.failed);
        out
    }

    fn junit(&self) -> String {
        let failed = self.runs.iter().filter(|r| r.failed > 0).count();
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(out, "<testsuite name=\"weir test\" tests=\"{}\" failures=\"{failed}\">", self.runs.len());
        for run in &self.runs {
            let assertions = run.passed + run.failed;
            let (name, class) = (escape(&run.case), escape(&run.file));
            let _ = write!(out, "  <testcase name=\"{name}\" classname=\"{class}\" assertions=\"{assertions}\"");
            if run.failed == 0 {
                out.push_str("/>\n");
                continue;
            }
            let _ = writeln!(out, ">\n    <failure message=\"{} of {assertions} expectations do not hold\">", run.failed);
            for f in &self.failures[run.failures.clone()] {
                let line = format!("{} -> {}: expected {}, got {} ({})", f.from, f.to, f.expected, f.got, f.explanation);
                let _ = writeln!(out, "{}", escape(&line));
            }
            out.push_str("    </failure>\n  </testcase>\n");
        }
        out.push_str("</testsuite>\n");
        out
    }
}

/// Escapes text for XML 1.0, which has no way to write most control characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
