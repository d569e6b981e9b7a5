use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Values of one metric's label that have series of their own.
const MOST: usize = 200;
const OTHER: &str = "other";

/// Values that were seen, by metric.
static SEEN: Mutex<BTreeMap<&'static str, BTreeSet<String>>> = Mutex::new(BTreeMap::new());

/// A value for a label that strangers choose, such as the service of a job: the first two hundred of a metric stand for
/// themselves, all others are `other`.
pub fn label(metric: &'static str, value: &str) -> String {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    bound(seen.entry(metric).or_default(), value).to_owned()
}

fn bound<'a>(seen: &mut BTreeSet<String>, value: &'a str) -> &'a str {
    if seen.contains(value) {
        return value;
    }
    if seen.len() >= MOST {
        return OTHER;
    }
    seen.insert(value.to_owned());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_values_stand_for_themselves_and_stay_so() {
        let mut seen = BTreeSet::new();
        let all: Vec<String> = (0..1_000).map(|n| format!("s{n}")).collect();
        let shown: BTreeSet<&str> = all.iter().map(|value| bound(&mut seen, value)).collect();
        assert_eq!(shown.len(), MOST + 1);
        assert_eq!((bound(&mut seen, "s0"), bound(&mut seen, "s999"), seen.len()), ("s0", OTHER, MOST));
    }
}
