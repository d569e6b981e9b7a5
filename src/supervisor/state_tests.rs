use super::*;
use proptest::prelude::*;
use serde_json::json;

fn spec(kind: &str, mode: &str, probe: bool) -> ServiceSpec {
    let mut value = json!({ "name": "s", "command": "x", "kind": kind,
        "restart": { "mode": mode, "limit": 3, "window": "60s", "jitter": 0.0 } });
    if probe {
        value["ready"] = json!({ "tcp": 1 });
    }
    let (spec, problems) = ServiceSpec::read(0, &value);
    spec.unwrap_or_else(|| panic!("{problems:?}"))
}

const CRASH: Event = Event::Exited(Exit::Code(1));

fn ready(spec: &ServiceSpec, now: Instant) -> Lifecycle {
    let mut life = Lifecycle::new();
    for event in [Event::Start, Event::NeedsMet, Event::Spawned, Event::Held(ProbeKind::Ready)] {
        life.handle(event, spec, 0.0, now);
    }
    assert_eq!(life.shown(), ServiceState::Ready);
    life
}

#[test]
fn a_service_with_a_probe_is_ready_only_when_it_holds() {
    let spec = spec("service", "always", true);
    let now = Instant::now();
    let mut life = Lifecycle::new();
    assert!(life.handle(Event::Start, &spec, 0.0, now).is_empty());
    assert_eq!(life.handle(Event::NeedsMet, &spec, 0.0, now), [Action::Spawn]);
    assert_eq!(life.handle(Event::Spawned, &spec, 0.0, now), [Action::BeginProbe(ProbeKind::Ready)]);
    assert_eq!(life.shown(), ServiceState::Starting);
    let late = now + Duration::from_secs(61);
    assert_eq!(life.handle(Event::Timer, &spec, 0.0, late), [Action::EndProbes, Action::Signal]);
    life.handle(CRASH, &spec, 0.0, late);
    life.handle(Event::LineageGone, &spec, 0.0, late);
    assert_eq!(life.shown(), ServiceState::Backoff);
}

#[test]
fn the_first_crash_of_a_healthy_service_costs_no_wait() {
    let spec = spec("service", "always", false);
    let now = Instant::now();
    let mut life = ready(&spec, now);
    let later = now + Duration::from_secs(11);
    assert_eq!(life.handle(CRASH, &spec, 0.0, later), [Action::EndProbes, Action::CleanLineage { kill_at: None }]);
    life.handle(Event::LineageGone, &spec, 0.0, later);
    assert_eq!((life.state, life.restarts), (State::Waiting, 1));
}

#[test]
fn crashes_wait_longer_each_time_and_end_at_the_limit() {
    let spec = spec("service", "always", false);
    let mut now = Instant::now();
    let mut life = Lifecycle::new();
    life.handle(Event::Start, &spec, 0.0, now);
    let mut waits = Vec::new();
    while life.state != State::Failed {
        life.handle(Event::Spawned, &spec, 0.0, now);
        life.handle(CRASH, &spec, 0.0, now);
        life.handle(Event::LineageGone, &spec, 0.0, now);
        if let State::Backoff { until } = life.state {
            waits.push((until - now).as_millis());
            now = until;
            life.handle(Event::Timer, &spec, 0.0, now);
        }
    }
    assert_eq!(waits, [500, 1000], "the first restart waits for nothing");
    life.handle(Event::Start, &spec, 0.0, now);
    assert_eq!(life.state, State::Waiting, "by hand it starts again");
}

#[test]
fn failures_leave_the_window() {
    let spec = spec("service", "always", false);
    let mut now = Instant::now();
    let mut life = ready(&spec, now);
    for _ in 0..20 {
        life.handle(CRASH, &spec, 0.0, now);
        life.handle(Event::LineageGone, &spec, 0.0, now);
        now += Duration::from_secs(30);
        life.handle(Event::Timer, &spec, 0.0, now);
        life.handle(Event::Spawned, &spec, 0.0, now);
        assert!(life.has_process());
    }
}

#[test]
fn oneshots_complete_or_fail_by_their_mode() {
    let now = Instant::now();
    for (mode, exit, end) in [
        ("never", Exit::Code(0), State::Completed),
        ("never", Exit::Code(2), State::Failed),
        ("on_failure", Exit::Code(0), State::Completed),
        ("on_failure", Exit::Signal(9), State::Waiting),
    ] {
        let spec = spec("oneshot", mode, false);
        let mut life = Lifecycle::new();
        for event in [Event::Start, Event::Spawned, Event::Exited(exit), Event::LineageGone] {
            life.handle(event, &spec, 0.0, now);
        }
        assert_eq!(life.state, end, "{mode} {exit}");
    }
}

#[test]
fn restart_during_a_stop_starts_again_only_when_all_is_gone() {
    let spec = spec("service", "always", false);
    let now = Instant::now();
    let mut life = ready(&spec, now);
    assert_eq!(life.handle(Event::Stop, &spec, 0.0, now), [Action::EndProbes, Action::Signal]);
    life.handle(Event::Start, &spec, 0.0, now);
    assert!(life.handle(Event::NeedsMet, &spec, 0.0, now).is_empty(), "no second process");
    life.handle(CRASH, &spec, 0.0, now);
    assert!(life.handle(Event::NeedsMet, &spec, 0.0, now).is_empty(), "strays may be left");
    life.handle(Event::LineageGone, &spec, 0.0, now);
    assert_eq!(life.handle(Event::NeedsMet, &spec, 0.0, now), [Action::Spawn]);
}

fn full_spec(kind: &str, probes: bool, drain: bool) -> ServiceSpec {
    let mut value = json!({ "name": "s", "command": "x", "kind": kind,
        "restart": { "mode": "on_failure", "limit": 3, "window": "60s", "jitter": 0.0 } });
    if probes {
        value["startup"] = json!({ "tcp": 1 });
        value["ready"] = json!({ "tcp": 2 });
        value["live"] = json!({ "tcp": 3 });
    }
    if drain {
        value["stop"] = json!({ "drain": { "exec": ["x"] } });
    }
    let (spec, problems) = ServiceSpec::read(0, &value);
    spec.unwrap_or_else(|| panic!("{problems:?}"))
}

#[test]
fn the_three_probes_follow_each_other() {
    let spec = full_spec("service", true, true);
    let now = Instant::now();
    let mut life = Lifecycle::new();
    life.handle(Event::Start, &spec, 0.0, now);
    let mut turn = |event| life.handle(event, &spec, 0.0, now);
    assert_eq!(turn(Event::Spawned), [Action::BeginProbe(ProbeKind::Startup)]);
    assert!(turn(Event::Held(ProbeKind::Ready)).is_empty(), "not its turn");
    let next = [Action::EndProbe(ProbeKind::Startup), Action::BeginProbe(ProbeKind::Ready)];
    assert_eq!(turn(Event::Held(ProbeKind::Startup)), next);
    assert_eq!(turn(Event::Held(ProbeKind::Ready)), [Action::BeginProbe(ProbeKind::Live)]);
    assert!(turn(Event::Lost(ProbeKind::Ready)).is_empty());
    assert_eq!(life.shown(), ServiceState::Unready);
    assert!(life.handle(Event::Held(ProbeKind::Ready), &spec, 0.0, now).is_empty());
    assert_eq!(life.shown(), ServiceState::Ready);
    assert_eq!(life.handle(Event::Lost(ProbeKind::Live), &spec, 0.0, now), [Action::EndProbes, Action::Signal]);
    assert_eq!(
        life.state,
        State::Stopping { kill_at: Some(now + Duration::from_secs(30)), after: After::Retry(Duration::ZERO) }
    );
}

#[test]
fn a_drain_hook_comes_before_the_signal_and_has_its_time() {
    let spec = full_spec("service", false, true);
    let now = Instant::now();
    let mut life = ready(&spec, now);
    assert_eq!(life.handle(Event::Stop, &spec, 0.0, now), [Action::EndProbes, Action::Drain]);
    let mut by_time = life.clone();
    assert_eq!(life.handle(Event::Drained, &spec, 0.0, now), [Action::EndProbes, Action::Signal]);
    let late = now + Duration::from_secs(30);
    assert_eq!(by_time.handle(Event::Timer, &spec, 0.0, late), [Action::EndProbes, Action::Signal]);
    assert_eq!(by_time.handle(Event::KillNow, &spec, 0.0, late), [Action::Kill]);
}

#[test]
fn what_was_given_up_is_tried_again_when_a_need_recovers() {
    let spec = spec("service", "always", false);
    let now = Instant::now();
    let mut life = ready(&spec, now);
    life.state = State::Failed;
    life.handle(Event::NeedRecovered, &spec, 0.0, now);
    assert_eq!(life.state, State::Waiting);
    life.handle(Event::Stop, &spec, 0.0, now);
    life.handle(Event::NeedRecovered, &spec, 0.0, now);
    assert_eq!(life.state, State::Stopped, "nobody wants it up");
}

const EVERY_EVENT: [Event; 20] = [
    Event::Start,
    Event::Stop,
    Event::Restart,
    Event::NeedsMet,
    Event::Spawned,
    Event::SpawnFailed,
    Event::Held(ProbeKind::Startup),
    Event::Held(ProbeKind::Ready),
    Event::Held(ProbeKind::Live),
    Event::Lost(ProbeKind::Startup),
    Event::Lost(ProbeKind::Ready),
    Event::Lost(ProbeKind::Live),
    Event::OverLimit,
    Event::Drained,
    Event::Exited(Exit::Code(0)),
    CRASH,
    Event::LineageGone,
    Event::NeedRecovered,
    Event::Timer,
    Event::KillNow,
];

/// Every state meets every event: the table that a reader can check line by line.
#[test]
fn the_whole_table() {
    let spec = full_spec("service", true, true);
    let now = Instant::now();
    let at = Some(now + Duration::from_secs(5));
    let states = [
        State::Stopped,
        State::Waiting,
        State::Starting { probing: Some(ProbeKind::Startup), deadline: Some(now) },
        State::Starting { probing: Some(ProbeKind::Ready), deadline: Some(now) },
        State::Ready { since: now },
        State::Unready { since: now },
        State::Draining { until: now, after: After::Rest },
        State::Stopping { kill_at: at, after: After::Rest },
        State::Cleaning { after: After::Rest },
        State::Backoff { until: now },
        State::Completed,
        State::Failed,
    ];
    let mut table = Vec::new();
    for state in states {
        for event in EVERY_EVENT {
            let mut life = Lifecycle { desired: Desired::Up, state, failures: VecDeque::new(), restarts: 0, late: 0 };
            let actions = life.handle(event, &spec, 0.0, now);
            if life.state == state && actions.is_empty() {
                continue;
            }
            let name = |state: State| format!("{state:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
            let actions: Vec<String> = actions
                .iter()
                .map(|action| format!("{action:?}").split(" {").next().unwrap_or_default().to_owned())
                .collect();
            let line = format!("{:<9} + {event:?} -> {} {}", name(state), name(life.state), actions.join(", "));
            table.push(line);
        }
    }
    insta::assert_snapshot!("the_whole_table", table.join("\n"));
}

proptest! {
    /// The world answers the actions; whatever order things happen in, there is never a second process, no signal goes to a
    /// process that is gone, and a stop always comes to rest.
    #[test]
    fn never_two_processes_and_stop_always_ends(
        kind in prop::sample::select(vec!["service", "oneshot", "setup"]), probes: bool, drain: bool,
        choices in prop::collection::vec((0..EVERY_EVENT.len(), 0u64..20_000, any::<bool>()), 0..120)
    ) {
        let spec = full_spec(kind, probes && kind == "service", drain);
        let mut life = Lifecycle::new();
        let mut now = Instant::now();
        let (mut process, mut strays) = (false, false);
        for (choice, millis, spawn_fails) in choices {
            now += Duration::from_millis(millis);
            let event = match EVERY_EVENT[choice] {
                Event::Exited(exit) if process => { process = false; strays = true; Event::Exited(exit) }
                Event::LineageGone if strays && !process => { strays = false; Event::LineageGone }
                Event::Exited(_) | Event::LineageGone | Event::Spawned | Event::SpawnFailed => Event::Timer,
                event => event,
            };
            let restarts = life.restarts;
            for action in life.handle(event, &spec, 0.5, now) {
                match action {
                    Action::Spawn => {
                        prop_assert!(!process && !strays, "a second process");
                        prop_assert_eq!(life.desired, Desired::Up);
                        if spawn_fails {
                            life.handle(Event::SpawnFailed, &spec, 0.5, now);
                        } else {
                            process = true;
                            life.handle(Event::Spawned, &spec, 0.5, now);
                        }
                    }
                    Action::Signal | Action::Drain | Action::BeginProbe(_) => prop_assert!(process),
                    Action::Kill => prop_assert!(process || strays),
                    Action::CleanLineage { .. } => prop_assert!(!process && strays),
                    Action::EndProbe(_) | Action::EndProbes => {}
                }
            }
            prop_assert!(life.restarts - restarts <= 1);
            prop_assert_eq!(life.has_process(), process || strays);
            prop_assert_eq!(life.runs(), process);
            prop_assert!(life.failures.len() <= 4, "the limit holds");
            if let State::Draining { .. } | State::Backoff { .. } = life.state {
                prop_assert!(life.timer_at().is_some(), "every wait ends");
            }
        }
        life.handle(Event::Stop, &spec, 0.5, now);
        for _ in 0..2 {
            now += Duration::from_secs(31);
            life.handle(Event::Timer, &spec, 0.5, now);
        }
        if process {
            life.handle(Event::Exited(Exit::Signal(9)), &spec, 0.5, now);
        }
        life.handle(Event::LineageGone, &spec, 0.5, now);
        prop_assert_eq!(life.state, State::Stopped);
    }
}
