use std::io::{self, Write};
use std::process::exit;

use serde::Serialize;
use serde_json::Value;

/// Writes to standard output; a reader that has gone (`| head`) is no error.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        exit(0);
    }
}

pub(super) fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// One JSON document on lines of its own.
pub(super) fn json(value: &impl Serialize) {
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Aligned columns under a heading.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let row = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    line(&row(&heading.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()));
    for cells in rows {
        line(&row(cells));
    }
}

/// A field of a JSON answer as text; a dash when it is not there.
pub(super) fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// How long ago an RFC 3339 time was, in its two largest units.
pub(super) fn ago(value: &Value, field: &str) -> String {
    let Some(at) = value[field].as_str().and_then(|text| text.parse::<crate::base::Timestamp>().ok()) else {
        return "-".to_owned();
    };
    let seconds = crate::base::Timestamp::now().since(at).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}
