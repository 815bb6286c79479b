//! Rows of figures, as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::figures::stats::Spread;

/// A measured thing.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// Its unit; empty for a ratio.
    pub unit: &'static str,
    /// What came out, or why nothing did.
    pub figure: Result<Spread, String>,
    /// What it should be.
    pub target: Option<Target>,
}

/// What the median of a row should be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Row {
    /// One without a target.
    pub fn new(what: impl Into<String>, unit: &'static str, figure: Spread) -> Self {
        Self { what: what.into(), unit, figure: Ok(figure), target: None }
    }

    /// One that could not be measured, and why.
    pub fn missing(what: impl Into<String>, unit: &'static str, why: impl Into<String>) -> Self {
        Self { what: what.into(), unit, figure: Err(why.into()), target: None }
    }

    /// With a target.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Whether the median is what it should be; `None` without a target or a figure.
    pub fn is_met(&self) -> Option<bool> {
        let median = self.figure.as_ref().ok()?.median;
        Some(match self.target? {
            Target::AtMost(most) => median <= most,
            Target::AtLeast(least) => median >= least,
        })
    }
}

/// Rows that are measured together.
#[derive(Clone, Debug)]
pub struct Section {
    /// The name by which it is asked for.
    pub name: &'static str,
    /// What it is about, and how it was measured.
    pub about: &'static str,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A section as text.
pub fn text(section: &Section) -> String {
    let lines: Vec<[String; 5]> = section.rows.iter().map(cells).collect();
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    let mut text = format!("{}: {}\n", section.name, section.about);
    for [what, median, spread, target, met] in &lines {
        let line = format!(
            "  {what:<0$}  {median:>1$}  {spread:<2$}  {target:<3$}  {met}",
            widths[0], widths[1], widths[2], widths[3]
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> [String; 5] {
    let target = match row.target {
        None => String::new(),
        Some(Target::AtMost(most)) => format!("at most {most}"),
        Some(Target::AtLeast(least)) => format!("at least {least}"),
    };
    let (median, spread, met) = match (&row.figure, row.is_met()) {
        (Err(why), _) => ("-".into(), format!("not measured: {why}"), ""),
        (Ok(figure), met) => {
            let met = met.map_or("", |met| if met { "met" } else { "NOT MET" });
            let spread = format!("({} to {})", number(figure.lowest), number(figure.highest));
            let unit = if row.unit.is_empty() { String::new() } else { format!(" {}", row.unit) };
            (format!("{}{unit}", number(figure.median)), spread, met)
        }
    };
    [row.what.clone(), median, spread, target, met.into()]
}

/// Three digits that count, and no point behind a thousand.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size < 0.1 => 3,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    let plain = format!("{value:.digits$}");
    if digits > 0 {
        return plain;
    }
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |digits| ("-", digits));
    let mut grouped = String::from(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Everything as one JSON document: what machine, and the same rows. Medians keep all their digits.
pub fn document(machine: &Value, sections: &[Section]) -> Value {
    let sections: Vec<Value> = sections
        .iter()
        .map(|section| {
            let rows: Vec<Value> = section.rows.iter().map(row).collect();
            json!({ "name": section.name, "about": section.about, "rows": rows })
        })
        .collect();
    json!({ "machine": machine, "sections": sections })
}

fn row(row: &Row) -> Value {
    let mut value = json!({ "what": row.what, "unit": row.unit });
    match &row.figure {
        Ok(Spread { median, lowest, highest }) => {
            value["median"] = json!(median);
            value["lowest"] = json!(lowest);
            value["highest"] = json!(highest);
        }
        Err(why) => value["not_measured"] = json!(why),
    }
    match row.target {
        Some(Target::AtMost(most)) => value["at_most"] = json!(most),
        Some(Target::AtLeast(least)) => value["at_least"] = json!(least),
        None => {}
    }
    if let Some(met) = row.is_met() {
        value["met"] = json!(met);
    }
    value
}

/// How many targets are met, and which are not, in words.
pub fn summary(sections: &[Section]) -> String {
    let rows = || sections.iter().flat_map(|section| section.rows.iter().map(move |row| (section.name, row)));
    let asked = rows().filter(|(_, row)| row.target.is_some()).count();
    let met = rows().filter(|(_, row)| row.is_met() == Some(true)).count();
    let mut text = format!("{met} of {asked} targets met");
    for (section, row) in rows().filter(|(_, row)| row.target.is_some() && row.is_met() != Some(true)) {
        let state = if row.figure.is_ok() { "not met" } else { "not measured" };
        // Writing into a string does not fail.
        let _ = write!(text, "\n  {state}: {section}: {}", row.what);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let spread = Spread { median: 1.5, lowest: 1.0, highest: 2.25 };
        Section {
            name: "frames",
            about: "one after the other",
            rows: vec![
                Row::new("quick", "ns", spread).target(Target::AtMost(2.0)),
                Row::new("many", "", Spread::once(1_234_567.0)).target(Target::AtLeast(2e6)),
                Row::missing("none", "s", "no such tool").target(Target::AtMost(1.0)),
                Row::new("free", "ns", spread),
            ],
        }
    }

    #[test]
    fn a_row_is_met_by_its_median_alone() {
        let met: Vec<_> = section().rows.iter().map(Row::is_met).collect();
        assert_eq!(met, [Some(true), Some(false), None, None]);
        let at = Row::new("", "", Spread::once(2.0));
        assert_eq!(at.clone().target(Target::AtMost(2.0)).is_met(), Some(true));
        assert_eq!(at.target(Target::AtLeast(2.0)).is_met(), Some(true));
    }

    #[test]
    fn text_has_a_line_for_each_row_and_says_what_is_missed() {
        let text = text(&section());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].contains("1.50 ns  (1.00 to 2.25)"), "{text}");
        assert!(lines[1].contains("  at most 2  ") && lines[1].ends_with("  met"), "{text}");
        assert!(lines[2].contains("1,234,567") && lines[2].ends_with("NOT MET"), "{text}");
        assert!(lines[3].contains("not measured: no such tool"), "{text}");
        assert!(!lines[4].contains("met"), "{text}");
    }

    #[test]
    fn numbers_show_three_digits_that_count() {
        let shown = [0.0, 0.0123, 0.5, 1.234, 45.67, 999.4, 1000.0, 1_234_567.8, -1500.0].map(number);
        assert_eq!(shown, ["0", "0.012", "0.50", "1.23", "45.7", "999", "1,000", "1,234,568", "-1,500"]);
    }

    #[test]
    fn the_document_has_the_same_rows() {
        let document = document(&json!({ "cpus": 2 }), &[section()]);
        assert_eq!(document["machine"]["cpus"], 2);
        let rows = document["sections"][0]["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 4);
        assert_eq!(
            rows[0],
            json!({ "what": "quick", "unit": "ns", "median": 1.5, "lowest": 1.0, "highest": 2.25, "at_most": 2.0,
                    "met": true })
        );
        assert_eq!(rows[2]["not_measured"], "no such tool");
        assert!(rows[2].get("met").is_none() && rows[3].get("at_most").is_none());
        let text = document.to_string();
        assert_eq!(serde_json::from_str::<Value>(&text).expect("one document"), document);
    }

    #[test]
    fn the_summary_names_what_is_missed() {
        let summary = summary(&[section()]);
        let lines: Vec<&str> = summary.lines().collect();
        assert_eq!(lines, ["1 of 3 targets met", "  not met: frames: many", "  not measured: frames: none"]);
    }
}
