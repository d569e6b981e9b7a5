use std::collections::BTreeMap;

use super::page::{Family, Page, number};
use crate::base::{Name, Timestamp};
use crate::queue::{Backlog, Load};

/// Services and pools are named by whoever submits jobs: those with the most jobs have series of their own.
const MOST: usize = 200;

/// What the queue holds for each service and pool.
pub(super) fn backlog(page: &mut Page, backlog: &Backlog) {
    let (services, pools) = (bounded(&backlog.services, MOST), bounded(&backlog.pools, MOST));
    jobs(page.family("machinist_queue_service_jobs"), "service", &services);
    ages(page.family("machinist_queue_oldest_seconds"), "service", &services);
    jobs(page.family("machinist_queue_pool_jobs"), "pool", &pools);
    ages(page.family("machinist_queue_pool_oldest_seconds"), "pool", &pools);
    page.family("machinist_queue_unmatched_jobs").sample(&[], number(backlog.unmatched_jobs()));
}

fn jobs(mut family: Family<'_>, label: &str, loads: &BTreeMap<&str, Load>) {
    for (value, load) in loads {
        for (state, count) in [("pending", load.pending), ("running", load.running), ("later", load.later)] {
            family.sample(&[(label, value), ("state", state)], number(count));
        }
    }
}

fn ages(mut family: Family<'_>, label: &str, loads: &BTreeMap<&str, Load>) {
    let now = Timestamp::now();
    for (value, load) in loads {
        family.sample(&[(label, value)], load.oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()));
    }
}

/// Those with the most jobs, the others as one.
fn bounded(loads: &BTreeMap<Name, Load>, most: usize) -> BTreeMap<&str, Load> {
    let mut order: Vec<(&Name, &Load)> = loads.iter().collect();
    order.sort_by_key(|(_, load)| std::cmp::Reverse(load.pending + load.running + load.later));
    let mut shown: BTreeMap<&str, Load> = BTreeMap::new();
    for (index, (name, load)) in order.into_iter().enumerate() {
        let entry = shown.entry(if index < most { name.as_str() } else { "other" }).or_default();
        entry.pending += load.pending;
        entry.running += load.running;
        entry.later += load.later;
        entry.oldest = entry.oldest.into_iter().chain(load.oldest).min();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_nothing_is_left_out() {
        let load =
            |pending| Load { pending, later: 1, oldest: Some(Timestamp::from_millis(pending)), ..Load::default() };
        let loads = (1..=5u64).map(|n| (Name::new(&format!("s{n}")).unwrap(), load(n))).collect();
        let shown = bounded(&loads, 3);
        assert_eq!(shown.keys().copied().collect::<Vec<_>>(), ["other", "s3", "s4", "s5"]);
        let other = Load { pending: 3, running: 0, later: 2, oldest: Some(Timestamp::from_millis(1)) };
        assert_eq!(shown["other"], other);
        assert_eq!(bounded(&loads, 5).len(), 5);
    }
}
