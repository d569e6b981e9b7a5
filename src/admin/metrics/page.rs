use std::fmt::Write as _;

use crate::telemetry::metric;

/// Metrics in the text format of Prometheus, family after family.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub text: String,
}

/// One family that is being written. Without a sample nothing of it is shown.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
    begun: bool,
}

impl Page {
    /// What it is stands in the catalogue.
    pub fn family(&mut self, name: &'static str) -> Family<'_> {
        Family { page: self, name, begun: false }
    }
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let (name, text) = (self.name, &mut self.page.text);
        if !self.begun {
            self.begun = true;
            if let Some(metric) = metric(name) {
                let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind.as_str());
            }
        }
        text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let _ = write!(text, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            if value.contains(['\\', '"', '\n']) {
                escape(text, value);
            } else {
                text.push_str(value);
            }
            text.push('"');
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Nothing where there is no value.
    pub fn maybe(&mut self, labels: &[(&str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            self.sample(labels, value);
        }
    }
}

fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            letter => text.push(letter),
        }
    }
}

/// A sample is a double.
#[expect(clippy::cast_precision_loss, reason = "that is what the format has")]
pub(super) fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_are_escaped_and_empty_families_are_not_there() {
        let mut page = Page::default();
        page.family("machinist_generation").maybe(&[], None);
        assert_eq!(page.text, "");
        let mut family = page.family("machinist_gpu_up");
        family.sample(&[("uuid", "a\"b\\c\nd"), ("index", "0")], 1.0);
        family.sample(&[], 0.5);
        let expected = "# HELP machinist_gpu_up 0 while the GPU is lost: it does not answer any more.\n\
                        # TYPE machinist_gpu_up gauge\n\
                        machinist_gpu_up{uuid=\"a\\\"b\\\\c\\nd\",index=\"0\"} 1\n\
                        machinist_gpu_up 0.5\n";
        assert_eq!(page.text, expected);
    }
}
