//! What is paused or limited, with whole numbers: tokens are counted in thousandths.

use std::collections::BTreeMap;

use super::world::Class;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub max_running: Option<u64>,
    /// Starts per second, and how many at once.
    pub rate: Option<(u64, u64)>,
    pub paused: bool,
}

#[derive(Default)]
pub(super) struct Limits {
    set: BTreeMap<String, Limit>,
    /// Thousandths of tokens, and when they were counted; kept when the limit changes.
    buckets: BTreeMap<String, (u64, u64)>,
}

impl Limit {
    pub fn text(&self) -> String {
        let max = self.max_running.map_or("-".to_owned(), |max| max.to_string());
        let (rate, burst) = self.rate.map_or(("-".to_owned(), 1), |(rate, burst)| (rate.to_string(), burst));
        format!("{max} {rate} {burst} {}", u8::from(self.paused))
    }
}

impl Limits {
    pub fn set(&mut self, scope: &str, limit: Option<Limit>) {
        match limit {
            Some(limit) => drop(self.set.insert(scope.to_owned(), limit)),
            None => drop(self.set.remove(scope)),
        }
    }

    fn tokens(&self, scope: &str, (rate, burst): (u64, u64), now: u64) -> u64 {
        let full = burst * 1_000;
        self.buckets.get(scope).map_or(full, |(tokens, at)| full.min(tokens + (now - at) * rate))
    }

    /// Whether one more may start; `running` counts those of a scope that do.
    pub fn room(&self, class: &Class, now: u64, running: impl Fn(&str) -> u64) -> bool {
        class.kind().scopes().iter().all(|scope| {
            let Some(limit) = self.set.get(scope) else { return true };
            !limit.paused
                && limit.max_running.is_none_or(|max| running(scope) < max)
                && limit.rate.is_none_or(|rate| self.tokens(scope, rate, now) >= 1_000)
        })
    }

    /// How many may start in the scope, of whose jobs so many run; where none may, when to look again.
    pub fn most(&self, scope: &str, now: u64, running: u64) -> Result<u64, Option<u64>> {
        let Some(limit) = self.set.get(scope) else { return Ok(u64::MAX) };
        if limit.paused {
            return Err(None);
        }
        let room = limit.max_running.map_or(u64::MAX, |max| max.saturating_sub(running));
        if let Some(rate) = limit.rate {
            let tokens = self.tokens(scope, rate, now);
            if tokens / 1_000 < room {
                let until = now + (1_000 - tokens.min(1_000)).div_ceil(rate.0);
                return if tokens < 1_000 { Err(Some(until)) } else { Ok(tokens / 1_000) };
            }
        }
        if room == 0 { Err(None) } else { Ok(room) }
    }

    /// So many with the account began.
    pub fn spend_of(&mut self, account: &str, n: u64, now: u64) {
        let scope = format!("account:{account}");
        if let Some(rate) = self.set.get(&scope).and_then(|limit| limit.rate).filter(|_| n > 0) {
            let left = self.tokens(&scope, rate, now) - n * 1_000;
            self.buckets.insert(scope, (left, now));
        }
    }

    pub fn spend(&mut self, class: &Class, now: u64) {
        for scope in class.kind().scopes() {
            if let Some(rate) = self.set.get(&scope).and_then(|limit| limit.rate) {
                let left = self.tokens(&scope, rate, now) - 1_000;
                self.buckets.insert(scope, (left, now));
            }
        }
    }
}
