//! What jobs used up. Amounts are fractions, which the recorder's counters are not; they are written at the scrape.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::label;

/// By connector and unit, since the engine began.
static TOTALS: Mutex<BTreeMap<(String, String), f64>> = Mutex::new(BTreeMap::new());

/// Counts `amount` of a unit. Units come from scripts: the first two hundred have series of their own.
pub fn count(connector: &str, unit: &str, amount: f64) {
    let unit = label("machinist_connector_usage_total", unit);
    *TOTALS.lock().unwrap_or_else(PoisonError::into_inner).entry((connector.to_owned(), unit)).or_default() += amount;
}

/// `(connector, unit)` and how much.
pub fn totals() -> BTreeMap<(String, String), f64> {
    TOTALS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
