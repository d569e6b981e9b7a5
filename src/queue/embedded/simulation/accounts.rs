//! Accounts: limits and holds of whoever claims, jobs that are tried for all, and that nobody waits whom nobody will tell.

use std::collections::{BTreeMap, BTreeSet};

use super::Simulation;
use super::model::State;
use super::world::ACCOUNTS;
use crate::queue::store::Reply;

/// The longest pause between tries.
const LONGEST: u64 = 8_000;
/// How long the hold of an account that nobody has is known after its end.
const REMEMBERED: u64 = 3_600_000;

#[derive(Clone, Debug)]
pub(super) struct Hold {
    until: u64,
    /// Failures in a row; 0 opens by itself.
    pauses: u32,
    /// The job that is tried, and its claim.
    trial: Option<(String, String)>,
}

#[derive(Default)]
pub(super) struct Accounts {
    holds: BTreeMap<&'static str, Hold>,
    /// Incarnations that were told that there may be something for them, and have not asked since.
    told: BTreeSet<String>,
}

/// What a claim may have.
pub(super) enum Gate {
    Held(Option<u64>),
    Open { most: u64, trial: bool },
}

impl Simulation {
    fn runs(&self, account: &str) -> u64 {
        self.model.jobs.values().filter(|job| self.model.uses(job, account)).count() as u64
    }

    /// What a worker with the account may take now.
    pub(super) fn gate(&self, account: &'static str) -> Gate {
        let now = self.model.now;
        let scope = format!("account:{account}");
        let hold = self.model.accounts.holds.get(account).filter(|hold| hold.pauses > 0 || hold.until > now);
        if let Some(hold) = hold {
            if hold.until > now {
                return Gate::Held(Some(hold.until));
            }
            let runs = |(id, fence): &(String, String)| {
                let job = self.model.jobs.get(id);
                job.is_some_and(|job| job.fence() == Some(fence.as_str()) && self.model.uses(job, account))
            };
            if hold.trial.as_ref().is_some_and(runs) {
                return Gate::Held(None);
            }
        }
        match self.model.limits.most(&scope, now, self.runs(account)) {
            Err(until) => Gate::Held(until),
            Ok(_) if hold.is_some() => Gate::Open { most: 1, trial: true },
            Ok(most) => Gate::Open { most, trial: false },
        }
    }

    /// The worker was given this job, which is tried for all.
    pub(super) fn tried(&mut self, account: &'static str, id: &str, fence: &str) {
        let hold = self.model.accounts.holds.get_mut(account).unwrap();
        hold.trial = Some((id.to_owned(), fence.to_owned()));
    }

    /// The job is done; what was tried for all opens the account.
    pub(super) fn account_works(&mut self, id: &str, fence: &str) {
        let State::Running { worker, .. } = self.model.jobs[id].state else { return };
        let Some(account) = self.model.workers[worker].account else { return };
        let trial = Some((id.to_owned(), fence.to_owned()));
        let now = self.model.now;
        let Some(hold) = self.model.accounts.holds.get_mut(account).filter(|hold| hold.trial == trial) else { return };
        (hold.pauses, hold.trial) = (0, None);
        if hold.until <= now {
            self.model.accounts.holds.remove(account);
        }
    }

    /// A job with the account runs into something, before it ends; or somebody lifts what holds it.
    pub(super) fn hold(&mut self) {
        let account = ACCOUNTS[self.below(ACCOUNTS.len())];
        if self.one_in(6) {
            let held = self.model.accounts.holds.remove(account);
            let lifted = self.words("lift", &[account]);
            // One that is over and opens by itself may be gone.
            let held = held.is_some_and(|hold| hold.pauses > 0 || hold.until > self.model.now);
            assert!(!held || lifted == Reply::Int(1), "{account}");
            return;
        }
        let uses = |job: &super::model::Job| self.model.uses(job, account);
        let on_trial = self.model.accounts.holds.get(account).and_then(|hold| hold.trial.clone());
        let on_trial = on_trial.filter(|(id, _)| self.model.jobs.get(id).is_some_and(uses));
        let others: Vec<_> = self.model.jobs.iter().filter(|(_, job)| uses(job)).map(|(id, _)| id.clone()).collect();
        let id = match on_trial {
            Some((id, _)) if self.one_in(2) => id,
            _ if others.is_empty() => return,
            _ => others[self.below(others.len())].clone(),
        };
        let fence = self.model.jobs[&id].fence().unwrap().to_owned();
        let (pause, tried, now) = (200 + self.below(2_000) as u64, !self.one_in(3), self.model.now);
        let flag = if tried { "1" } else { "0" };
        let words = [account, &pause.to_string(), &LONGEST.to_string(), flag, &id, &fence, "why not"];
        let answer = self.words("hold", &words).list().unwrap();
        let tries = u32::from(tried);
        let held = self.model.accounts.holds.get(account).filter(|hold| hold.pauses > 0 || hold.until > now).cloned();
        let news = held.as_ref().is_none_or(|hold| hold.trial == Some((id.clone(), fence.clone())));
        let hold = match held {
            None => Hold { until: now + pause, pauses: tries, trial: None },
            Some(hold) if hold.trial == Some((id, fence)) => {
                let pauses = hold.pauses + tries;
                let pause = if tried { LONGEST.min(pause << (pauses - 1).min(20)) } else { pause };
                Hold { until: hold.until.max(now + pause), pauses, trial: None }
            }
            Some(hold) => Hold { until: hold.until.max(now + pause), pauses: hold.pauses.max(tries), ..hold },
        };
        assert_eq!(answer[0].clone().number::<u64>().unwrap(), hold.until);
        assert_eq!(answer[1], Reply::Int(i64::from(news)));
        self.model.accounts.holds.insert(account, hold);
    }

    /// The worker asks: whatever it was told before is answered by that.
    pub(super) fn asks(&mut self, incarnation: &str) {
        self.hear();
        self.model.accounts.told.remove(incarnation);
    }

    fn hear(&mut self) {
        let published = std::mem::take(&mut *self.published.borrow_mut());
        let told = published.iter().filter_map(|(_, text)| text.strip_prefix("w ").map(str::to_owned));
        self.model.accounts.told.extend(told);
        let assigned = published.iter().filter(|(_, text)| text.starts_with("a ")).count();
        assert_eq!(assigned, 0, "assigned by what was no submission");
    }

    /// Whoever keeps the queue forgets holds that are long over, of accounts that nobody has, and in no order.
    fn forget_holds(&mut self) {
        let known: BTreeSet<String> = self
            .functions
            .data
            .borrow()
            .hash("ah")
            .into_iter()
            .flatten()
            .map(|(account, _)| account.to_string())
            .collect();
        let now = self.model.now;
        self.model.accounts.holds.retain(|account, hold| {
            let over = hold.pauses == 0 && hold.until <= now;
            // Somebody may have it again since, in the same step.
            let forgotten = hold.until + REMEMBERED <= now;
            let known = known.contains(*account);
            assert!(known || over || forgotten, "the hold of {account} is gone at {now}, {hold:?}");
            known
        });
    }

    pub(super) fn check_accounts(&mut self) {
        self.hear();
        self.forget_holds();
        assert_eq!(self.words("audit_limits", &["0"]).texts().unwrap(), Vec::<String>::new());
        assert_eq!(self.words("audit_running", &["0"]).texts().unwrap(), Vec::<String>::new());
        assert_eq!(self.words("audit_accounts", &["0"]).texts().unwrap(), Vec::<String>::new());
        for account in ACCOUNTS {
            let data = self.functions.data.borrow();
            let counted = data.hash("run").and_then(|runs| runs.get(format!("account:{account}").as_str()));
            assert_eq!(counted.map_or(0, |text| text.parse().unwrap()), self.runs(account), "{account}");
            let waiting: Vec<String> =
                data.sorted_iter(&format!("hw:{account}"), false).map(|(who, _)| who.to_string()).collect();
            for who in &waiting {
                let worker = self.model.workers.iter().find(|worker| worker.incarnation.as_ref() == Some(who));
                let worker = worker.unwrap_or_else(|| panic!("{who} is gone and waits for {account}"));
                assert_eq!(worker.account, Some(account));
                let idle = data.keys_with_prefix("z:").iter().any(|key| data.score(key, who).is_some());
                assert!(!idle, "{who} waits for {account} and counts as idle");
            }
            if waiting.is_empty() {
                continue;
            }
            let look = data.score("ut", &format!("account:{account}"));
            let may_ask = self.model.workers.iter().any(|worker| {
                worker.account == Some(account)
                    && worker.incarnation.as_ref().is_some_and(|who| self.model.accounts.told.contains(who))
            });
            let gate = self.gate(account);
            #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970")]
            match gate {
                Gate::Open { .. } => {
                    // Or the time has come, and the next who looks tells.
                    let due = look.is_some_and(|at| at <= self.model.now as f64);
                    assert!(may_ask || due, "{waiting:?} wait for {account}, there is room, and nobody tells them");
                }
                Gate::Held(Some(until)) => {
                    // Tokens are kept to a millionth, and times are whole.
                    let soon = look.is_some_and(|at| at <= (until + 1) as f64);
                    assert!(soon, "{account} is looked at {look:?}, not {until}");
                }
                Gate::Held(None) => {}
            }
        }
    }
}
