use std::collections::VecDeque;

use crate::queue::{Claim, Token};

/// How many assignments are remembered: each may be heard of twice, in any order.
const REMEMBERED: usize = 16;

/// The jobs that one worker was assigned while it was idle. A message brings each; where that was lost, the answer to the
/// worker's next call does.
#[derive(Default)]
pub(super) struct Assigned {
    /// One that the worker has not taken yet.
    waiting: Option<Claim>,
    /// Claims that were heard of, the latest last.
    known: VecDeque<u64>,
    /// The queue has been told of the latest.
    said: bool,
}

impl Assigned {
    pub fn is_known(&self, claim: u64) -> bool {
        self.known.contains(&claim)
    }

    fn note(&mut self, claim: u64) {
        if self.known.len() == REMEMBERED {
            self.known.pop_front();
        }
        self.known.push_back(claim);
        self.said = false;
    }

    /// A message brought it; the worker takes it next.
    pub fn arrived(&mut self, claim: Claim) {
        if !self.is_known(claim.token.claim) {
            self.note(claim.token.claim);
            self.waiting = Some(claim);
        }
    }

    /// A call's answer names it. Whether it is to be seen to now: not when the worker took it before.
    pub fn answered(&mut self, claim: u64) -> bool {
        if !self.is_known(claim) {
            self.note(claim);
            return true;
        }
        self.waiting.take_if(|waiting| waiting.token.claim == claim).is_some()
    }

    pub fn take(&mut self) -> Option<Claim> {
        self.waiting.take()
    }

    /// The queue gave the job to somebody else.
    pub fn lost(&mut self, token: &Token) {
        self.waiting.take_if(|waiting| waiting.token == *token);
    }

    /// What is said to the queue of the latest: its claim, or 0.
    pub fn latest(&self) -> u64 {
        self.known.back().copied().unwrap_or(0)
    }

    /// Whether the queue does not know yet that the latest was heard of.
    pub fn is_unsaid(&self) -> bool {
        !self.known.is_empty() && !self.said
    }

    /// The queue was told that this was the latest.
    pub fn said(&mut self, latest: u64) {
        if latest == self.latest() {
            self.said = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::queue::Job;

    fn claim(number: u64) -> Claim {
        let job = json!({
            "id": format!("job{number}"), "state": "running", "service": "s", "payload": null, "submitted": "2026-11-29T00:00:00Z",
            "claims": number, "attempts": 0, "losses": 0,
        });
        let job: Job = serde_json::from_value(job).unwrap();
        Claim { token: Token { job: job.id.clone(), claim: number }, job, trial: false }
    }

    #[test]
    fn each_is_taken_once_however_it_is_heard_of() {
        // What is heard, in order, and which of these the worker is to run: "m": a message, "a": an answer, "t": the worker takes.
        for (heard, begun) in
            [("m1 t", "1"), ("a1", "1"), ("m1 a1", "1"), ("a1 m1 t", "1"), ("m1 t a1", "1"), ("a1 a2 m1 m2 t", "1 2")]
        {
            let mut assigned = Assigned::default();
            let mut run = Vec::new();
            for word in heard.split(' ') {
                let number = word[1..].parse::<u64>().unwrap_or(0);
                match &word[..1] {
                    "m" => assigned.arrived(claim(number)),
                    "a" if assigned.answered(number) => run.push(number.to_string()),
                    "a" => {}
                    _ => run.extend(assigned.take().map(|claim| claim.token.claim.to_string())),
                }
            }
            assert_eq!(run.join(" "), begun, "{heard}");
        }
    }

    #[test]
    fn the_queue_is_told_of_the_latest_until_it_knows() {
        let mut assigned = Assigned::default();
        assert!(!assigned.is_unsaid());
        assigned.arrived(claim(7));
        assert!(assigned.is_unsaid());
        // An answer to what was asked before it came.
        assigned.said(0);
        assert!(assigned.is_unsaid());
        assigned.said(7);
        assert!(!assigned.is_unsaid());
        assigned.arrived(claim(9));
        assert!(assigned.is_unsaid());
        assigned.lost(&claim(9).token);
        assert!(assigned.take().is_none());
        assert!(assigned.is_known(9));
    }
}
