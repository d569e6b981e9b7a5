use super::page::{Page, number};
use crate::base::Timestamp;
use crate::queue::AccountStatus;
use crate::telemetry::usage;

/// Dollars are told apart from what they were paid for.
const COST: &str = "cost_usd";

/// What the machine's connectors said that their jobs used up.
pub(super) fn used(page: &mut Page) {
    let totals = usage::totals();
    let mut family = page.family("machinist_connector_usage_total");
    for ((connector, unit), amount) in totals.iter().filter(|((_, unit), _)| unit != COST) {
        family.sample(&[("connector", connector), ("unit", unit)], *amount);
    }
    let mut family = page.family("machinist_connector_cost_dollars_total");
    for ((connector, _), amount) in totals.iter().filter(|((_, unit), _)| unit == COST) {
        family.sample(&[("connector", connector)], *amount);
    }
}

/// What all machines share that use the same keys.
pub(super) fn accounts(page: &mut Page, accounts: &[AccountStatus]) {
    let now = Timestamp::now();
    let mut family = page.family("machinist_account_held");
    for status in accounts {
        let held = status.limit.paused || status.hold.as_ref().is_some_and(|hold| hold.trial || hold.until > now);
        family.sample(&[("account", status.account.as_str())], f64::from(u8::from(held)));
    }
    let mut family = page.family("machinist_account_running_jobs");
    for status in accounts {
        family.sample(&[("account", status.account.as_str())], number(status.running));
    }
    let mut family = page.family("machinist_account_waiting_workers");
    for status in accounts {
        family.sample(&[("account", status.account.as_str())], number(status.waiting));
    }
}
