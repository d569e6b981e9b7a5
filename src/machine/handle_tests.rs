use super::*;
use crate::base::{Name, Timestamp};
use crate::machine::probation::Before;
use crate::supervisor::ServiceStatus;
use proptest::prelude::*;
use std::sync::Arc;

fn limits() -> Limits {
    Limits { connect_timeout: Duration::from_secs(60), grace: Duration::from_secs(30), give_up_after: None }
}

fn service(name: &str, state: ServiceState, critical: bool, exit: Option<Exit>) -> ServiceStatus {
    ServiceStatus {
        name: Name::new(name).unwrap(),
        kind: Kind::Service,
        desired: Desired::Up,
        state,
        since: Timestamp::from_millis(0),
        pid: None,
        incarnation: 1,
        restarts: 0,
        late: 0,
        started: None,
        last_exit: exit,
        reason: Some("because".into()),
        critical,
        held: None,
        says: None,
        detached: Vec::new(),
        next_run: None,
    }
}

fn services(list: Vec<ServiceStatus>) -> Event {
    let services = list.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
    Event::Services(Arc::new(ServicesStatus { revision: 0, services }))
}

fn exits(effects: &[Effect]) -> Option<u8> {
    effects.iter().find_map(|effect| if let Effect::Exit(code) = effect { Some(*code) } else { None })
}

fn healthy(now: Instant) -> Machine {
    let mut machine = Machine::new(limits());
    machine.handle(services(vec![service("web", ServiceState::Ready, true, None)]), now);
    machine.handle(Event::StartupEnded(Ok(())), now);
    assert_eq!(machine.state, MachineState::Healthy);
    machine
}

#[test]
fn healthy_needs_the_startup_and_all_services() {
    let now = Instant::now();
    let mut machine = Machine::new(limits());
    machine.handle(Event::StartupEnded(Ok(())), now);
    machine.handle(services(vec![service("web", ServiceState::Starting, false, None)]), now);
    assert_eq!((machine.state, machine.started), (MachineState::Starting, false));
    let effects = machine.handle(services(vec![service("web", ServiceState::Ready, false, None)]), now);
    assert!(matches!(effects[0], Effect::AnnounceStarted));
    assert_eq!((machine.state, machine.started), (MachineState::Healthy, true));
}

#[test]
fn a_critical_service_ends_the_machine_with_its_code() {
    for (exit, code) in [(Exit::Code(3), 3), (Exit::Signal(9), 137), (Exit::Code(0), 1), (Exit::NotStarted(2), 127)] {
        let now = Instant::now();
        let mut machine = healthy(now);
        machine.handle(services(vec![service("web", ServiceState::Backoff, true, Some(exit))]), now);
        assert_eq!(machine.state, MachineState::ServiceFailure);
        let effects = machine.handle(services(vec![service("web", ServiceState::Failed, true, Some(exit))]), now);
        assert_eq!(machine.state, MachineState::Failed);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::DrainWorkers { deadline } if *deadline == now)));
        machine.handle(Event::WorkersStopped, now);
        assert_eq!(exits(&machine.handle(Event::ServicesStopped, now)), Some(code));
        assert_eq!(machine.state, MachineState::Failed);
    }
}

#[test]
fn a_service_that_is_not_critical_only_worsens_the_state() {
    let now = Instant::now();
    let mut machine = healthy(now);
    machine.handle(services(vec![service("web", ServiceState::Failed, false, Some(Exit::Code(1)))]), now);
    assert_eq!(machine.state, MachineState::ServiceFailure);
    machine.handle(services(vec![service("web", ServiceState::Ready, false, None)]), now);
    assert_eq!((machine.state, machine.reason.as_deref()), (MachineState::Healthy, None));
}

#[test]
fn a_lost_queue_is_failed_only_after_its_time() {
    let now = Instant::now();
    let mut machine = healthy(now);
    machine.handle(Event::Queue(Err("refused".into())), now);
    assert_eq!(machine.state, MachineState::ConnectionLoss);
    let deadline = machine.next_deadline().unwrap();
    machine.handle(Event::Queue(Err("refused".into())), now + Duration::from_secs(59));
    assert_eq!(machine.next_deadline(), Some(deadline), "a later failure does not put the end off");
    let mut back = healthy(now);
    back.handle(Event::Queue(Err("refused".into())), now);
    back.handle(Event::Queue(Ok(())), now);
    assert_eq!((back.state, back.next_deadline()), (MachineState::Healthy, None));
    machine.handle(Event::Deadline, deadline);
    assert_eq!(machine.state, MachineState::Failed);
}

#[test]
fn drain_waits_for_jobs_then_stops_services_and_a_second_signal_hurries() {
    let now = Instant::now();
    let mut machine = healthy(now);
    let effects = machine.handle(Event::StopWanted(StopCause::Signal("SIGTERM"), None), now);
    let deadline = now + Duration::from_secs(20);
    assert!(effects.iter().any(|e| matches!(e, Effect::DrainWorkers { deadline: d } if *d == deadline)));
    assert_eq!(machine.state, MachineState::Draining);
    let effects = machine.handle(Event::StopWanted(StopCause::Signal("SIGTERM"), None), now);
    assert!(effects.iter().any(|e| matches!(e, Effect::DrainWorkers { deadline } if *deadline == now)));
    let effects = machine.handle(Event::WorkersStopped, now);
    let reserve = now + Duration::from_secs(10);
    assert!(effects.iter().any(|e| matches!(e, Effect::StopServices { deadline } if *deadline == reserve)));
    assert_eq!(exits(&machine.handle(Event::ServicesStopped, now)), Some(0));
    assert_eq!(machine.state, MachineState::Stopped);
}

#[test]
fn one_reload_runs_and_one_waits() {
    let now = Instant::now();
    let mut machine = healthy(now);
    let builds = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Build(_))).count();
    assert_eq!(builds(&machine.handle(Event::ReloadWanted(ReloadCause::FilesChanged, None), now)), 1);
    for _ in 0..3 {
        assert_eq!(builds(&machine.handle(Event::ReloadWanted(ReloadCause::Request, None), now)), 0);
    }
    let effects = machine.handle(Event::ReloadBuilt(Err(Refused::default())), now);
    assert!(matches!(effects[0], Effect::Reject(..)));
    assert_eq!(builds(&effects), 1, "the waiting ones are one build");
    assert_eq!(builds(&machine.handle(Event::ReloadBuilt(Err(Refused::default())), now)), 0);
}

fn short() -> Vec<Level> {
    vec![Level { resource: crate::host::Resource::Disk, used: 0.99, detail: "full".into() }]
}

#[test]
fn a_shortage_holds_the_workers_and_calls_the_hook_until_it_is_over() {
    let now = Instant::now();
    let mut machine = healthy(now);
    let effects = machine.handle(Event::Resources(short()), now);
    assert!(matches!(effects[0], Effect::HoldWorkers(Some(_))) && matches!(effects[1], Effect::Recover(_)));
    assert_eq!(machine.state, MachineState::ResourceExhausted);
    machine.handle(Event::RecoveryBegun, now);
    assert_eq!(machine.state, MachineState::ResourceRecovery);
    let again = machine.handle(Event::Resources(short()), now);
    assert!(again.is_empty(), "a call of the hook runs already: {again:?}");
    machine.handle(Event::RecoveryEnded, now);
    let again = machine.handle(Event::Resources(short()), now);
    assert!(again.iter().any(|effect| matches!(effect, Effect::Recover(_))), "still short: tried again");
    let effects = machine.handle(Event::Resources(Vec::new()), now);
    assert!(matches!(effects[0], Effect::HoldWorkers(None)));
    assert_eq!(machine.state, MachineState::Healthy);
}

#[test]
fn a_shortage_that_lasts_fails_the_machine_where_that_is_wanted() {
    let now = Instant::now();
    let mut machine = healthy(now);
    machine.limits.give_up_after = Some(Duration::from_secs(300));
    machine.handle(Event::Resources(short()), now);
    let deadline = machine.next_deadline().unwrap();
    assert_eq!(deadline, now + Duration::from_secs(300));
    machine.handle(Event::Deadline, deadline);
    assert_eq!(machine.state, MachineState::Failed);
    assert!(machine.reason.unwrap().contains("disk"));
}

/// Every state meets every event: the table that a reader can check line by line.
#[test]
fn the_whole_table() {
    let now = Instant::now();
    let reach = |state: MachineState| {
        let mut machine = if state == MachineState::Starting { Machine::new(limits()) } else { healthy(now) };
        machine.limits.give_up_after = Some(Duration::from_secs(300));
        let events = match state {
            MachineState::Starting | MachineState::Healthy => vec![],
            MachineState::ServiceFailure => vec![event(1)],
            MachineState::Restarting => vec![event(14)],
            MachineState::ConnectionLoss => vec![event(5)],
            MachineState::Reconnecting => vec![event(5), event(5)],
            MachineState::ResourceExhausted => vec![event(15)],
            MachineState::ResourceRecovery => vec![event(15), event(17)],
            MachineState::Draining => vec![event(10)],
            MachineState::Failed => vec![event(2)],
            MachineState::Stopped => vec![event(10), Event::WorkersStopped, Event::ServicesStopped],
        };
        for event in events {
            machine.handle(event, now);
        }
        assert_eq!(machine.state, state);
        machine
    };
    let mut table = Vec::new();
    for state in MachineState::ALL {
        for choice in 0..EVENTS {
            let mut machine = reach(state);
            let what = EVENT_NAMES[usize::from(choice)];
            // A deadline comes when it was asked for.
            let at = if choice == 13 { machine.next_deadline().unwrap_or(now) } else { now };
            let effects = machine.handle(event(choice), at);
            let effects: Vec<String> = effects
                .iter()
                .filter(|effect| !matches!(effect, Effect::AnnounceState { .. } | Effect::Reply(..)))
                .map(|effect| format!("{effect:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned())
                .collect();
            if machine.state != state || !effects.is_empty() {
                table.push(format!("{state:<18} + {what:<17} -> {:<18} {}", machine.state, effects.join(", ")));
            }
        }
    }
    insta::assert_snapshot!("the_whole_table", table.join("\n"));
}

const EVENTS: u8 = 21;
const EVENT_NAMES: [&str; EVENTS as usize] = [
    "all up",
    "backoff",
    "critical failed",
    "starting",
    "queue back",
    "queue lost",
    "startup ended",
    "startup failed",
    "reload wanted",
    "reload built",
    "stop wanted",
    "workers stopped",
    "services stopped",
    "deadline",
    "starting again",
    "short",
    "not short",
    "recovery begun",
    "recovery ended",
    "went live",
    "rolled back",
];

fn any_event() -> impl Strategy<Value = u8> {
    0u8..EVENTS
}

fn event(choice: u8) -> Event {
    let critical = |state, exit| services(vec![service("web", state, true, exit)]);
    match choice {
        0 => critical(ServiceState::Ready, None),
        1 => critical(ServiceState::Backoff, Some(Exit::Code(1))),
        2 => critical(ServiceState::Failed, Some(Exit::Signal(9))),
        3 => critical(ServiceState::Starting, None),
        4 => Event::Queue(Ok(())),
        5 => Event::Queue(Err("gone".into())),
        6 => Event::StartupEnded(Ok(())),
        7 => Event::StartupEnded(Err("no".into())),
        8 => Event::ReloadWanted(ReloadCause::Request, None),
        9 => Event::ReloadBuilt(Err(Refused::default())),
        10 => Event::StopWanted(StopCause::Request, None),
        11 => Event::WorkersStopped,
        12 => Event::ServicesStopped,
        14 => {
            let mut back = service("web", ServiceState::Starting, true, Some(Exit::Code(1)));
            back.restarts = 1;
            services(vec![back])
        }
        15 => Event::Resources(short()),
        16 => Event::Resources(Vec::new()),
        17 => Event::RecoveryBegun,
        18 => Event::RecoveryEnded,
        19 => Event::WentLive(trial(0), limits(), Vec::new()),
        20 => Event::RolledBack(0, limits()),
        _ => Event::Deadline,
    }
}

/// A generation that changed `web`, and that statuses from `revision` on tell of.
fn trial(revision: u64) -> Trial {
    let before = Before { fresh: true, up: true, restarts: 0, late: 0 };
    let services = BTreeMap::from([(Name::new("web").unwrap(), before)]);
    Trial { generation: 2, back_to: 1, revision, window: Duration::from_secs(60), services, ..Trial::default() }
}

fn at_revision(revision: u64, list: Vec<ServiceStatus>) -> Event {
    let services = list.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
    Event::Services(Arc::new(ServicesStatus { revision, services }))
}

fn on_probation(now: Instant) -> (Machine, oneshot::Receiver<ControlReply>) {
    let mut machine = healthy(now);
    let (reply, answer) = oneshot::channel();
    machine.handle(Event::WentLive(trial(1), limits(), vec![Asker { reply, verdict: true }]), now);
    machine.handle(at_revision(1, vec![service("web", ServiceState::Starting, true, None)]), now);
    (machine, answer)
}

fn names_of(effects: &[Effect]) -> Vec<String> {
    let name = |effect: &Effect| format!("{effect:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned();
    effects.iter().filter(|e| !matches!(e, Effect::AnnounceState { .. })).map(name).collect()
}

#[test]
fn an_edit_that_fails_is_rolled_back_before_it_ends_the_machine() {
    let now = Instant::now();
    let (mut machine, _answer) = on_probation(now);
    let failed = || vec![service("web", ServiceState::Failed, true, Some(Exit::Code(3)))];
    let effects = machine.handle(at_revision(1, failed()), now);
    assert_eq!(names_of(&effects), ["RollBack"]);
    let Effect::RollBack(faults, askers) = &effects[0] else { unreachable!() };
    assert_eq!((faults[0].what.as_str(), askers.len()), ("failed: because", 1));
    // What is said of the generation that goes does not count any more.
    assert_eq!(names_of(&machine.handle(at_revision(1, failed()), now)), Vec::<String>::new());
    machine.handle(Event::RolledBack(2, limits()), now);
    assert_eq!(names_of(&machine.handle(at_revision(1, failed()), now)), Vec::<String>::new());
    machine.handle(at_revision(2, vec![service("web", ServiceState::Ready, true, None)]), now);
    assert_eq!(machine.state, MachineState::Healthy);
    // The good generation is no longer on probation: now it counts.
    machine.handle(at_revision(2, failed()), now);
    assert_eq!(machine.state, MachineState::Failed);
}

#[test]
fn an_edit_passes_when_its_window_is_over_and_all_is_up() {
    let now = Instant::now();
    let (mut machine, _answer) = on_probation(now);
    let end = now + Duration::from_secs(60);
    assert_eq!(machine.next_deadline(), Some(end));
    assert_eq!(names_of(&machine.handle(Event::Deadline, end)), Vec::<String>::new(), "its own time is not over");
    assert_eq!(machine.next_deadline(), None, "the supervisor tells");
    let ready = vec![service("web", ServiceState::Ready, true, None)];
    assert_eq!(names_of(&machine.handle(at_revision(1, ready), end)), ["Pass", "Reply"]);
}

#[test]
fn who_waits_for_the_verdict_of_what_is_live_already_waits_with_the_others() {
    let now = Instant::now();
    let (mut machine, _answer) = on_probation(now);
    let asker = |verdict| Asker { reply: oneshot::channel().0, verdict };
    let effects = machine.handle(Event::Unchanged("hash".into(), vec![asker(true), asker(false)]), now);
    let Effect::TellUnchanged(_, replies) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!((replies.len(), machine.askers.len()), (1, 2));
    let effects = machine.handle(Event::StopWanted(StopCause::Request, None), now);
    assert!(effects.iter().any(|e| matches!(e, Effect::Reply(replies, Err(_)) if replies.len() == 2)), "{effects:?}");
}

/// An edit that is committed while the one before it fails is judged for itself.
#[test]
fn what_fails_while_the_next_edit_goes_live_is_not_held_against_it() {
    let now = Instant::now();
    let (mut machine, _answer) = on_probation(now);
    machine.going_live = true;
    let failed = vec![service("web", ServiceState::Failed, true, Some(Exit::Code(3)))];
    assert_eq!(names_of(&machine.handle(at_revision(1, failed), now)), Vec::<String>::new());
    machine.handle(Event::WentLive(trial(2), limits(), Vec::new()), now);
    assert!(machine.probation.is_some());
    machine.handle(at_revision(2, vec![service("web", ServiceState::Ready, true, None)]), now);
    assert_eq!(machine.state, MachineState::Healthy);
}

/// What a machine with an edit on probation makes of every event.
#[test]
fn the_table_on_probation() {
    let now = Instant::now();
    let mut table = Vec::new();
    let end = now + Duration::from_secs(60);
    for situation in ["on probation", "overdue", "rolling back", "building"] {
        for choice in 0..EVENTS {
            let (mut machine, _answer) = on_probation(now);
            match situation {
                "overdue" => drop(machine.handle(Event::Deadline, end)),
                "rolling back" => {
                    let failed = vec![service("web", ServiceState::Failed, true, None)];
                    machine.handle(at_revision(1, failed), now);
                }
                "building" => drop(machine.handle(Event::ReloadWanted(ReloadCause::Request, None), now)),
                _ => {}
            }
            let (event, what) = match (event(choice), EVENT_NAMES[usize::from(choice)]) {
                (Event::Services(status), what) => {
                    let status = ServicesStatus { revision: 1, ..status.as_ref().clone() };
                    (Event::Services(Arc::new(status)), what)
                }
                other => other,
            };
            let at = if situation == "overdue" || choice == 13 { end } else { now };
            let effects = names_of(&machine.handle(event, at));
            let probation = if machine.probation.is_some() { "on probation" } else { "-" };
            if !effects.is_empty() || (probation == "-") != (situation == "rolling back") {
                let (state, effects) = (machine.state, effects.join(", "));
                table.push(
                    format!("{situation:<12} + {what:<17} -> {probation:<12} {state:<15} {effects}")
                        .trim_end()
                        .to_owned(),
                );
            }
        }
    }
    insta::assert_snapshot!("the_table_on_probation", table.join("\n"));
}

/// Where each state may lead; the table of the diagram above, with itself left out.
fn may_follow(from: MachineState, to: MachineState) -> bool {
    use MachineState::{Draining, Failed, Starting, Stopped};
    match from {
        Starting => !matches!(to, Stopped),
        Draining => to == Stopped,
        Failed | Stopped => false,
        _ => !matches!(to, Starting | Stopped),
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_end_is_reached_once_and_only_forwards(
        choices in prop::collection::vec((any_event(), 0u64..40), 0..60)
    ) {
        let mut machine = Machine::new(limits());
        let mut now = Instant::now();
        let mut exited = 0;
        let mut building = 0i32;
        for (choice, seconds) in choices {
            now += Duration::from_secs(seconds);
            let before = machine.state;
            // Whatever becomes of a build, it is over when its outcome has come.
            if choice == 9 {
                building = (building - 1).max(0);
            }
            let effects = machine.handle(event(choice), now);
            if machine.state != before {
                let direct = may_follow(before, machine.state);
                prop_assert!(direct, "{before} -> {}", machine.state);
            }
            for effect in &effects {
                match effect {
                    Effect::Exit(code) => {
                        exited += 1;
                        prop_assert_eq!(*code == 0, machine.state == MachineState::Stopped);
                    }
                    Effect::Build(_) => building += 1,
                    _ => {}
                }
            }
            prop_assert!(building <= 1);
        }
        machine.handle(Event::StopWanted(StopCause::Request, None), now);
        machine.handle(Event::WorkersStopped, now);
        exited += exits(&machine.handle(Event::ServicesStopped, now)).map_or(0, |_| 1);
        prop_assert_eq!(exited, 1);
        prop_assert!(matches!(machine.state, MachineState::Stopped | MachineState::Failed));
    }
}
