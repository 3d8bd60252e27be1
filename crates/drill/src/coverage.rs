//! Where each row of the fault matrix is shown.

use crate::scenario;

/// A row of the fault matrix.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub number: u8,
    pub fault: &'static str,
    /// Tests that show it besides drills, or why nothing does yet. Empty: drills only.
    pub also: &'static str,
}

impl Row {
    /// Its scenarios' names.
    pub fn scenarios(&self) -> Vec<&'static str> {
        scenario::all().filter(|scenario| scenario.row == self.number).map(|scenario| scenario.name).collect()
    }

    /// Drills and tests, in words.
    pub fn shown(&self) -> String {
        let mut parts = Vec::new();
        let scenarios = self.scenarios();
        if !scenarios.is_empty() {
            parts.push(format!("drill {}", scenarios.join(", ")));
        }
        if !self.also.is_empty() {
            parts.push(self.also.to_owned());
        }
        parts.join("; ")
    }
}


pub fn rows() -> &'static [Row] {
    &ROWS
}

const ROWS: [Row; 0] = [];
