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
    for event in [Event::Start, Event::NeedsMet, Event::Spawned, Event::ProbeHeld] {
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
    assert_eq!(life.handle(Event::Spawned, &spec, 0.0, now), [Action::BeginProbe]);
    assert_eq!(life.shown(), ServiceState::Starting);
    let late = now + Duration::from_secs(61);
    assert_eq!(life.handle(Event::Timer, &spec, 0.0, late), [Action::EndProbe, Action::Signal]);
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
    assert_eq!(life.handle(CRASH, &spec, 0.0, later), [Action::EndProbe, Action::CleanLineage]);
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
    assert_eq!(waits, [500, 1000, 2000]);
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
        ("on_failure", Exit::Signal(9), State::Backoff { until: now + Duration::from_millis(500) }),
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
    assert_eq!(life.handle(Event::Stop, &spec, 0.0, now), [Action::EndProbe, Action::Signal]);
    life.handle(Event::Start, &spec, 0.0, now);
    assert!(life.handle(Event::NeedsMet, &spec, 0.0, now).is_empty(), "no second process");
    life.handle(CRASH, &spec, 0.0, now);
    assert!(life.handle(Event::NeedsMet, &spec, 0.0, now).is_empty(), "strays may be left");
    life.handle(Event::LineageGone, &spec, 0.0, now);
    assert_eq!(life.handle(Event::NeedsMet, &spec, 0.0, now), [Action::Spawn]);
}

fn any_event() -> impl Strategy<Value = u8> {
    0u8..12
}

proptest! {
    /// The world answers the actions; whatever order things happen in, there is never a second process, and a stop always
    /// comes to rest.
    #[test]
    fn never_two_processes_and_stop_always_ends(
        kind in prop::sample::select(vec!["service", "oneshot", "setup"]), probe: bool,
        choices in prop::collection::vec((any_event(), 0u64..20_000), 0..80)
    ) {
        let spec = spec(kind, "on_failure", probe && kind == "service");
        let mut life = Lifecycle::new();
        let mut now = Instant::now();
        let (mut process, mut strays) = (false, false);
        for (choice, millis) in choices {
            now += Duration::from_millis(millis);
            let event = match choice {
                0 => Event::Start,
                1 => Event::Stop,
                2 => Event::Restart,
                3 => Event::NeedsMet,
                4 => Event::ProbeHeld,
                5 | 6 if process => { process = false; strays = true; Event::Exited(Exit::Code(i32::from(choice) - 5)) }
                7 | 8 if strays && !process => { strays = false; Event::LineageGone }
                9 => Event::KillNow,
                _ => Event::Timer,
            };
            for action in life.handle(event, &spec, 0.5, now) {
                if action == Action::Spawn {
                    prop_assert!(!process && !strays, "a second process");
                    prop_assert_eq!(life.desired, Desired::Up);
                    if choice % 2 == 1 {
                        life.handle(Event::SpawnFailed, &spec, 0.5, now);
                    } else {
                        process = true;
                        life.handle(Event::Spawned, &spec, 0.5, now);
                    }
                }
            }
            prop_assert_eq!(life.has_process(), process || strays);
        }
        life.handle(Event::Stop, &spec, 0.5, now);
        if process {
            now += Duration::from_secs(31);
            life.handle(Event::Timer, &spec, 0.5, now);
            life.handle(Event::Exited(Exit::Signal(9)), &spec, 0.5, now);
        }
        life.handle(Event::LineageGone, &spec, 0.5, now);
        prop_assert_eq!(life.state, State::Stopped);
    }
}
