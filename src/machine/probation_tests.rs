use super::*;
use crate::base::Timestamp;
use std::sync::Arc;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn status(state: ServiceState) -> ServiceStatus {
    ServiceStatus {
        name: name("web"),
        kind: Kind::Service,
        desired: Desired::Up,
        state,
        since: Timestamp::from_millis(0),
        pid: None,
        incarnation: 1,
        restarts: 0,
        late: 0,
        started: None,
        last_exit: None,
        reason: Some("because".into()),
        critical: false,
        held: None,
        says: None,
        detached: Vec::new(),
        next_run: None,
    }
}

fn services(list: Vec<ServiceStatus>) -> ServicesStatus {
    let services = list.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
    ServicesStatus { revision: 1, services }
}

fn trial(before: Before) -> Trial {
    let services = BTreeMap::from([(name("web"), before)]);
    Trial { generation: 2, back_to: 1, revision: 1, window: Duration::from_secs(60), services, ..Trial::default() }
}

fn worker(state: WorkerState) -> BTreeMap<Name, WorkerStatus> {
    let status = WorkerStatus {
        name: name("w"),
        connector: name("c"),
        account: None,
        slots: 1,
        state,
        reason: Some("no answer".into()),
        models: 0,
        inventory: None,
        running: Vec::new(),
        completed: 0,
        failed: 0,
    };
    BTreeMap::from([(name("w"), status)])
}

const FRESH: Before = Before { fresh: true, up: true, restarts: 5, late: 0 };

/// Every state of a service, within the window and at its end.
#[test]
fn the_whole_table() {
    let mut table = Vec::new();
    let begun = Instant::now();
    let kinds = [
        ("changed", FRESH),
        ("dependant, was up", Before { fresh: false, ..FRESH }),
        ("dependant, was down", Before { fresh: false, up: false, ..FRESH }),
    ];
    for (what, before) in kinds {
        for state in ServiceState::ALL {
            let verdicts = [0, 60].map(|seconds| {
                let mut probation = Probation::begin(trial(before), None, begun);
                let seen = ServiceStatus { restarts: 5, ..status(state) };
                let verdict =
                    probation.judge(&services(vec![seen]), &BTreeMap::new(), begun + Duration::from_secs(seconds));
                match verdict {
                    Verdict::Failed(faults) => format!("roll back: {}", faults[0].what),
                    other => format!("{other:?}"),
                }
            });
            table.push(format!("{what:<20} {state:<11} {:<40} {}", verdicts[0], verdicts[1]));
        }
    }
    insta::assert_snapshot!("verdicts", table.join("\n"));
}

#[test]
fn a_late_start_and_a_slow_loop_are_faults_and_one_crash_is_none() {
    let now = Instant::now();
    let judge = |restarts: u64, late: u64| {
        let seen = ServiceStatus { restarts, late, ..status(ServiceState::Ready) };
        Probation::begin(trial(FRESH), None, now).judge(&services(vec![seen]), &BTreeMap::new(), now)
    };
    assert_eq!(judge(7, 0), Verdict::Wait);
    assert!(matches!(judge(8, 0), Verdict::Failed(faults) if faults[0].what.contains("crashes in a loop")));
    assert!(matches!(judge(6, 1), Verdict::Failed(faults) if faults[0].what.contains("not ready in time")));
    // It was forgotten and added again: it counts from nothing.
    assert_eq!(judge(2, 0), Verdict::Wait);
    assert!(matches!(judge(3, 0), Verdict::Failed(_)));
}

#[test]
fn a_row_of_edits_does_not_hide_a_loop() {
    let now = Instant::now();
    let first = Probation::begin(trial(FRESH), None, now);
    let later = Before { restarts: 7, ..FRESH };
    let seen = || services(vec![ServiceStatus { restarts: 8, ..status(ServiceState::Ready) }]);
    let mut second = Probation::begin(trial(later), Some(first), now);
    assert!(matches!(second.judge(&seen(), &BTreeMap::new(), now), Verdict::Failed(_)));
    // An edit of the service itself begins anew.
    let first = Probation::begin(trial(FRESH), None, now);
    let renewed = Trial { renewed: BTreeSet::from([name("web")]), ..trial(later) };
    assert_eq!(Probation::begin(renewed, Some(first), now).judge(&seen(), &BTreeMap::new(), now), Verdict::Wait);
}

#[test]
fn a_check_that_fails_for_a_while_is_a_fault_and_one_that_recovers_is_none() {
    let now = Instant::now();
    let after = |seconds: u64| now + Duration::from_secs(seconds);
    let none = ServicesStatus::default();
    let trial = || Trial { workers: BTreeSet::from([name("w")]), services: BTreeMap::new(), ..trial(FRESH) };
    let mut probation = Probation::begin(trial(), None, now);
    assert_eq!(probation.judge(&none, &worker(WorkerState::NotReady), after(1)), Verdict::Wait);
    assert_eq!(probation.next_deadline(), Some(after(11)));
    assert_eq!(probation.judge(&none, &worker(WorkerState::Active), after(5)), Verdict::Wait);
    assert_eq!(probation.judge(&none, &worker(WorkerState::NotReady), after(9)), Verdict::Wait);
    assert_eq!(probation.judge(&none, &worker(WorkerState::NotReady), after(18)), Verdict::Wait);
    let Verdict::Failed(faults) = probation.judge(&none, &worker(WorkerState::NotReady), after(19)) else { panic!() };
    assert_eq!(faults[0].subject.to_string(), "worker w");
    let mut probation = Probation::begin(trial(), None, now);
    assert_eq!(probation.judge(&none, &worker(WorkerState::Waiting), after(60)), Verdict::Passed);
}
