//! What takes an hour or a week, and is too rare for chance.

use std::collections::BTreeMap;

use super::Simulation;
use super::model::LEASE;
use super::world::{Class, MODEL};
use crate::queue::store::Reply;

const HOUR: u64 = 3_600_000;

impl Simulation {
    fn submit_plain(&self, id: &str, kind: usize) {
        let class = Class::of(kind).id();
        let class = class.as_str();
        let words = [class, "", id, "500", "", class, "-", "-", "0", "", "", "", "fail", "0", "s 0  null"];
        let mut answer = self.words("submit", &words).list().unwrap();
        if answer[0] == Reply::Text("NOCLASS".to_owned()) {
            self.add_class(&Class::of(kind));
            answer = self.words("submit", &words).list().unwrap();
        }
        assert_eq!(answer[0], Reply::Text("OK".to_owned()));
    }

    fn claim_plain(&self, worker: usize) -> Vec<(String, String)> {
        let incarnation = self.model.workers[worker].incarnation.clone().unwrap();
        let mut answer = self.words("claim", &[&incarnation, "9", "0", "0"]).list().unwrap();
        Self::claims(&mut answer)
    }

    fn retain_plain(&self) {
        while self.words("retain", &["0", "0", "1000"]) != Reply::Int(0) {}
    }
}

#[test]
fn a_class_is_kept_for_a_job_that_comes_back_to_it() {
    let mut simulation = Simulation::new(1);
    simulation.submit_plain("job", 0);
    let (_, fence) = simulation.claim_plain(0).remove(0);
    let due = simulation.model.now + 2 * HOUR;
    let other = Class { kind: 0, avoid: [0].into() };
    simulation.go_to_class("job", &fence, ("d", due), &other, "retried", &[]);
    simulation.words("avoid_until", &["job", &(due + LEASE).to_string()]);
    simulation.model.now += HOUR + 1;
    simulation.retain_plain();
    simulation.model.now = due + LEASE;
    assert_eq!(simulation.words("audit", &["0", "job"]).texts().unwrap(), Vec::<String>::new());
    assert_eq!(simulation.claim_plain(0)[0].0, "job");
}

#[test]
fn many_jobs_that_are_due_at_once_all_come_back() {
    let mut simulation = Simulation::new(1);
    let due = simulation.model.now + 1_000;
    for n in 0..120 {
        let id = format!("job{n:03}");
        simulation.submit_plain(&id, 0);
        let (id, fence) = simulation.claim_plain(0).remove(0);
        let other = Class { kind: 0, avoid: [0].into() };
        simulation.go_to_class(&id, &fence, ("d", due), &other, "retried", &[]);
        simulation.words("avoid_until", &[&id, &(due + LEASE).to_string()]);
    }
    // Nobody looked for longer than others had their time.
    simulation.model.now = due + LEASE;
    for _ in 0..10 {
        simulation.words("promote", &[]);
    }
    let mut claimed = 0;
    loop {
        let claims = simulation.claim_plain(0);
        if claims.is_empty() {
            break;
        }
        claimed += claims.len();
    }
    assert_eq!(claimed, 120);
}

#[test]
fn a_profile_that_is_half_forgotten_is_learnt_anew() {
    let mut simulation = Simulation::new(1);
    // Only this worker has these abilities.
    for n in 0..60 {
        let epoch = simulation.words("epoch", &[]).text().unwrap();
        let words = [format!("extra{n}"), "{}".to_owned(), "service:s0".to_owned(), epoch, "p7".to_owned()];
        assert_eq!(simulation.call("add_class", &words), Reply::Text("OK".to_owned()));
    }
    // Classes with jobs are kept.
    for n in 0..60 {
        let (class, id) = (format!("extra{n}"), format!("job{n}"));
        let (class, id) = (class.as_str(), id.as_str());
        let words = [class, "", id, "500", "", class, "-", "-", "0", "", "", "", "fail", "0", "s 0  null"];
        assert_eq!(simulation.words("submit", &words).list().unwrap()[0], Reply::Text("OK".to_owned()));
    }
    simulation.model.now += LEASE;
    simulation.look_after();
    simulation.model.now += HOUR + 1;
    // One step of several: other profiles come first.
    let subscribed = || simulation.functions.data.borrow().set("pc:p7").map_or(0, std::collections::BTreeSet::len);
    let all = subscribed();
    while subscribed() == all {
        simulation.words("retain", &["0", "0", "1000"]);
    }
    assert!(subscribed() > 0);
    let (text, name) = ("7", "m/w4");
    let words = ["new", name, "own", "p7", text, text, &LEASE.to_string()];
    let answer = simulation.words("register", &words).list().unwrap();
    assert_eq!(answer, [Reply::Text("OK".to_owned()), Reply::Int(0), Reply::Int(0)], "it subscribes to all again");
}

#[test]
fn finished_jobs_outlive_their_class_without_alarm() {
    let mut simulation = Simulation::new(1);
    simulation.submit_plain("job", 0);
    let (id, fence) = simulation.claim_plain(0).remove(0);
    simulation.words("complete", &[&id, &fence, "1"]);
    simulation.model.now += HOUR + 1;
    simulation.words("retain", &[&(9 * HOUR).to_string(), &(9 * HOUR).to_string(), "1000"]);
    assert_eq!(simulation.class_ids(), Vec::<String>::new());
    assert_eq!(simulation.words("audit", &["0", "job"]).texts().unwrap(), Vec::<String>::new());
}

#[test]
fn who_once_had_a_model_loaded_is_forgotten() {
    let mut simulation = Simulation::new(1);
    for _ in 0..30 {
        simulation.register(0);
        let incarnation = simulation.model.workers[0].incarnation.clone().unwrap();
        simulation.words("heartbeat", &[&LEASE.to_string(), &incarnation, "1", MODEL, "0"]);
        simulation.model.now += LEASE + 1;
    }
    assert_eq!(simulation.functions.data.borrow().sorted_len(&format!("wm:{MODEL}")), 1);
}

#[test]
fn a_job_that_failed_before_its_time_and_is_tried_again_still_waits_for_it() {
    let mut simulation = Simulation::new(1);
    simulation.submit_plain("fails", 0);
    let (id, fence) = simulation.claim_plain(0).remove(0);
    let class = Class::of(0).id();
    simulation.words("move", &[&id, &fence, "f", "", "0", "failed", "null"]);
    simulation.submit_plain("completes", 0);
    let due = (simulation.model.now + HOUR).to_string();
    let mut words = vec![class.as_str(), "", "job", "500", "", class.as_str(), "-", "-", &due, "", "", "", "fail"];
    words.extend(["2", "fails", "completes", "s 0  null"]);
    assert_eq!(simulation.words("submit", &words).list().unwrap()[0], Reply::Text("OK".to_owned()));
    let again = ["job", "f", "p", "", "0", "retried", "null"];
    assert_eq!(simulation.words("move", &again).list().unwrap()[1], Reply::Text("b".to_owned()));
    let (id, fence) = simulation.claim_plain(0).remove(0);
    simulation.words("complete", &[&id, &fence, "1"]);
    simulation.settle();
    assert_eq!(simulation.claim_plain(0), []);
    simulation.model.now += HOUR;
    assert_eq!(simulation.claim_plain(0)[0].0, "job");
}

/// Numbers that are printed in a row, past thousands within one call; and outcomes of several claims in one call.
#[test]
fn every_outcome_counts_for_its_own_claim() {
    let simulation = Simulation::new(1);
    for n in 0..2_100 {
        simulation.submit_plain(&format!("job{n}"), 0);
    }
    let mut held = Vec::new();
    for worker in [3, 4].into_iter().cycle().take(2_100 / 9 + 1) {
        held.extend(simulation.claim_plain(worker).into_iter().map(|(id, fence)| (id, fence, worker)));
    }
    assert_eq!(held.len(), 2_100);
    for several in held.chunks(37) {
        let words: Vec<&str> = several.iter().flat_map(|(id, fence, _)| [id.as_str(), fence, "null"]).collect();
        assert_eq!(simulation.words("complete", &words).texts().unwrap(), vec!["OK"; several.len()]);
    }
    for (id, fence, worker) in &held {
        let mut answer = simulation.words("get", &[id]).list().unwrap();
        let mut job = answer.remove(1).list().unwrap().remove(0).list().unwrap();
        let said: BTreeMap<String, String> = job.remove(3).pairs().unwrap().into_iter().collect();
        assert_eq!((&said["n"], &said["w"]), (fence, &format!("m/w{worker}")));
        assert_eq!(simulation.words("audit", &["0", id]).texts().unwrap(), Vec::<String>::new());
    }
    for worker in [3, 4] {
        let incarnation = simulation.model.workers[worker].incarnation.as_ref().unwrap();
        assert!(simulation.functions.data.borrow().set(&format!("i:{incarnation}")).is_none());
    }
}
