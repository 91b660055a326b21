//! The figures: a table for people, and a file for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::samples::Samples;

/// All figures of a run, and what could not be measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
    failures: Vec<String>,
}

/// One figure.
#[derive(Clone, Debug)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    peer: Option<f64>,
    samples: usize,
    /// Smallest and largest, of a figure that is the middle of a few.
    spread: Option<(f64, f64)>,
}

impl Report {
    /// A figure that has no peer.
    pub(super) fn alone(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        n: usize,
    ) {
        self.add(Figure {
            name: name.into(),
            value,
            unit,
            peer: None,
            samples: n,
            spread: None,
        });
    }

    /// A figure beside the peer's.
    pub(super) fn beside(
        &mut self,
        name: impl Into<String>,
        value: f64,
        peer: f64,
        unit: &'static str,
        n: usize,
    ) {
        self.add(Figure {
            name: name.into(),
            value,
            unit,
            peer: Some(peer),
            samples: n,
            spread: None,
        });
    }

    /// The figure that was added last is the middle of these, which the table says.
    pub(super) fn spread(&mut self, of: &Samples) -> Result<()> {
        let spread = (of.percentile(0)?, of.percentile(100)?);
        if let Some(figure) = self.figures.last_mut() {
            figure.spread = Some(spread);
        }
        Ok(())
    }

    /// Notes that something could not be measured.
    pub(super) fn missing(&mut self, what: &str, error: &anyhow::Error) {
        println!("   {what}: NOT MEASURED: {error:#}");
        self.failures.push(format!("{what}: {error:#}"));
    }

    /// Notes a failure of a part; its figures are missing.
    pub(super) fn part(&mut self, what: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.missing(what, &error);
        }
    }

    /// Writes the file.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let figures: Result<Vec<Value>> = self.figures.iter().map(Figure::json).collect();
        let text = serde_json::to_string_pretty(&figures?)?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// The table.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:34} {:>12} {:>12} {:>9} {:>8}  {:20} {}\n",
            "name", "value", "peer", "ratio", "n", "unit", "from … to"
        );
        for figure in &self.figures {
            let peer = figure.peer.map_or("-".to_owned(), readable);
            let ratio = figure
                .ratio()
                .map_or("-".to_owned(), |ratio| format!("{ratio:.4}"));
            let spread = figure.spread.map_or(String::new(), |(from, to)| {
                format!("{} … {}", readable(from), readable(to))
            });
            // A String takes every character.
            let _ = writeln!(
                text,
                "{:34} {:>12} {peer:>12} {ratio:>9} {:>8}  {:20} {spread}",
                figure.name,
                readable(figure.value),
                figure.samples,
                figure.unit
            );
        }
        text
    }

    /// Fails if anything could not be measured.
    pub(super) fn complete(&self) -> Result<()> {
        if !self.failures.is_empty() {
            bail!("not measured:\n  {}", self.failures.join("\n  "));
        }
        Ok(())
    }

    fn add(&mut self, figure: Figure) {
        let peer = figure
            .peer
            .map(|peer| format!(" (peer: {})", readable(peer)))
            .unwrap_or_default();
        println!(
            "   {}: {} {}{peer}",
            figure.name,
            readable(figure.value),
            figure.unit
        );
        self.figures.push(figure);
    }
}

impl Figure {
    fn ratio(&self) -> Option<f64> {
        self.peer
            .map(|peer| self.value / peer)
            .filter(|ratio| ratio.is_finite())
    }

    fn json(&self) -> Result<Value> {
        ensure!(
            self.value.is_finite() && self.peer.is_none_or(f64::is_finite),
            "{} is not a number",
            self.name
        );
        Ok(json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "peer": self.peer,
            "ratio": self.ratio(),
            "n": self.samples,
        }))
    }
}

fn readable(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_a_ratio_only_beside_a_peer() -> Result<()> {
        let mut report = Report::default();
        report.alone("alone", 3.0, "s", 1);
        report.beside("beside", 3.0, 6.0, "s", 5);
        report.beside("of-nothing", 3.0, 0.0, "s", 5);
        let values: Result<Vec<Value>> = report.figures.iter().map(Figure::json).collect();
        assert_eq!(
            Value::from(values?),
            json!([
                {"name": "alone", "value": 3.0, "unit": "s", "peer": null, "ratio": null, "n": 1},
                {"name": "beside", "value": 3.0, "unit": "s", "peer": 6.0, "ratio": 0.5, "n": 5},
                {"name": "of-nothing", "value": 3.0, "unit": "s", "peer": 0.0, "ratio": null,
                 "n": 5},
            ])
        );
        Ok(())
    }

    #[test]
    fn what_is_missing_or_no_number_is_an_error() {
        let mut report = Report::default();
        assert!(report.complete().is_ok());
        report.missing("memory", &anyhow::anyhow!("no such file"));
        let said = report.complete().err().map(|error| error.to_string());
        assert!(said.is_some_and(|said| said.contains("memory: no such file")));
        report.alone("broken", f64::NAN, "s", 1);
        assert!(report.write(Path::new("/nonexistent/bench.json")).is_err());
    }
}
