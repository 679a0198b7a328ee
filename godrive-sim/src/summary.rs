//! What many runs gave, in one line.

use crate::cluster::Outcome;
use std::collections::BTreeMap;
use std::fmt;

#[derive(Default)]
pub struct Summary {
    pub runs: u64,
    pub failed: u64,
    acknowledged: usize,
    audits: u64,
    violations: usize,
    faults: BTreeMap<&'static str, u64>,
}

impl Summary {
    pub fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.failed += u64::from(!outcome.failures.is_empty());
        self.acknowledged += outcome.acknowledged;
        self.audits += u64::from(outcome.audited);
        self.violations += outcome.failures.len();
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, failed, acknowledged, audits, violations, faults } = self;
        let kinds: Vec<String> = faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(
            f,
            "summary: {runs} runs, {failed} failed; {acknowledged} operations acknowledged; {} faults ({}); {audits} \
             audits passed; {violations} violations",
            faults.values().sum::<u64>(),
            kinds.join(", ")
        )
    }
}
