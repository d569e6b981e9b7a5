//! Places: the smallest goes first. Customers take turns inside a priority, steps of a workflow share its place.

use std::collections::BTreeMap;

/// Places within one priority, as in `queue.lua`.
pub(super) const LEVEL: u64 = 1 << 43;
/// Places before those of the usual priority, from which the queue counts; the model counts from the first.
pub(super) const BEFORE: u64 = 500 * LEVEL;
const WEEK: u64 = 7 * 24 * 3_600_000;

#[derive(Default)]
pub(super) struct Turns {
    /// The latest turn that was claimed, of each priority.
    reached: BTreeMap<u64, u64>,
    /// The latest turn that each customer was given.
    given: BTreeMap<(u64, &'static str), u64>,
    /// The place of each workflow, and when it was last used.
    flows: BTreeMap<String, (u64, u64)>,
}

impl Turns {
    pub fn place(&mut self, level: u64, customer: &'static str, flow: &str, now: u64) -> u64 {
        let known = self.flows.get(flow).map(|(place, _)| *place);
        let place = known.unwrap_or_else(|| {
            let reached = self.reached.get(&level).copied().unwrap_or(0);
            let given = self.given.entry((level, customer)).or_default();
            *given = reached.max(*given) + 1;
            level * LEVEL + *given
        });
        if !flow.is_empty() {
            self.flows.insert(flow.to_owned(), (place, now));
        }
        place
    }

    pub fn claimed(&mut self, place: u64) {
        let reached = self.reached.entry(place / LEVEL).or_default();
        *reached = (*reached).max(place % LEVEL);
    }

    pub fn forget(&mut self, now: u64) {
        self.flows.retain(|_, (_, used)| *used + WEEK > now);
    }
}
