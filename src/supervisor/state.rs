//! One service's life: pure, total over every state and event, with the time as an argument.
//!
//! ```text
//!  Stopped --start--> Waiting --needs met--> Starting --probes hold--> Ready <--> Unready
//!     ^                  ^                      |  \                     |
//!     |                  | due                  |   \ exited             | exited
//!     |               Backoff <----------+      |    v                   v
//!     |                                  +------|-- Cleaning (strays are ended) --> Completed, Failed
//!     +-- Cleaning <--exited-- Stopping <-- Draining <--+-- stop, restart, over a limit
//!                                 ^---- not ready in time, not live
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::status::{Desired, ServiceState};
use crate::host::process::Exit;
use crate::spec::{Kind, ProbeKind, RestartMode, ServiceSpec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Stopped,
    /// For what it needs.
    Waiting,
    /// Runs; `deadline` is when what is probed now must hold.
    Starting {
        probing: Option<ProbeKind>,
        deadline: Option<Instant>,
    },
    Ready {
        since: Instant,
    },
    /// Was ready `since`, and the readiness probe fails now.
    Unready {
        since: Instant,
    },
    /// The drain hook runs; the signal comes after it, at the latest at `until`.
    Draining {
        until: Instant,
        after: After,
    },
    /// Told to stop; killed at `kill_at`, when it is set.
    Stopping {
        kill_at: Option<Instant>,
        after: After,
    },
    /// The process is gone, what it left behind is being ended.
    Cleaning {
        after: After,
    },
    Backoff {
        until: Instant,
    },
    Completed,
    Failed,
}

/// What comes when nothing is left of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Rest,
    Start,
    /// A failure that was decided before the process was gone.
    Retry(Duration),
    Complete,
    GiveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Start,
    Stop,
    Restart,
    NeedsMet,
    /// The process runs.
    Spawned,
    /// It could not be started.
    SpawnFailed,
    /// A probe holds.
    Held(ProbeKind),
    /// A probe fails, after so many tries as its spec allows.
    Lost(ProbeKind),
    /// It uses more than it may.
    OverLimit,
    /// The drain hook is through.
    Drained,
    Exited(Exit),
    /// Nothing is left of the process.
    LineageGone,
    /// Something that it needs has become ready again.
    NeedRecovered,
    Timer,
    /// The time for stopping is over.
    KillNow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Spawn,
    BeginProbe(ProbeKind),
    EndProbe(ProbeKind),
    EndProbes,
    /// Run the drain hook, then report [`Event::Drained`].
    Drain,
    /// The stop signal, to the process group.
    Signal,
    /// SIGKILL, to all that is left.
    Kill,
    /// End what a dead process left behind, then report [`Event::LineageGone`]: by the stop signal first, with SIGKILL at
    /// `kill_at`, or with SIGKILL at once.
    CleanLineage {
        kill_at: Option<Instant>,
    },
}

/// From so many failures in a row on, waiting for the next start is called a crash loop.
const CRASH_LOOP: usize = 3;

/// A service's state with what it remembers of its failures.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    pub desired: Desired,
    pub state: State,
    /// When the failures of late happened that are not forgotten yet.
    failures: VecDeque<Instant>,
    /// Restarts that nobody asked for.
    pub restarts: u64,
    /// Starts that were not ready in time.
    pub late: u64,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self { desired: Desired::Down, state: State::Stopped, failures: VecDeque::new(), restarts: 0, late: 0 }
    }

    /// Decides. `chance` lies in 0..1 and feeds the jitter.
    pub fn handle(&mut self, event: Event, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        match event {
            Event::Start => self.start(),
            Event::Stop => self.stop(spec, now),
            Event::Restart => self.restart(spec, now),
            Event::NeedsMet if self.state == State::Waiting => vec![Action::Spawn],
            Event::Spawned => self.spawned(spec, now),
            Event::SpawnFailed => {
                if self.state == State::Waiting {
                    let after = self.after_failure(1, spec, chance, now);
                    self.settle(after, now);
                }
                Vec::new()
            }
            Event::Held(kind) => self.held(kind, spec, now),
            Event::Lost(kind) => self.lost(kind, spec, chance, now),
            Event::OverLimit => match self.state {
                State::Starting { .. } | State::Ready { .. } | State::Unready { .. } => {
                    let after = self.after_failure(0, spec, chance, now);
                    self.begin_stop(after, spec, now)
                }
                _ => Vec::new(),
            },
            Event::Drained => match self.state {
                State::Draining { after, .. } => self.signal(after, spec, now),
                _ => Vec::new(),
            },
            Event::Exited(exit) => self.exited(exit, spec, chance, now),
            Event::LineageGone => {
                if let State::Cleaning { after } = self.state {
                    self.settle(after, now);
                }
                Vec::new()
            }
            Event::NeedRecovered => {
                let given_up = self.state == State::Failed && spec.kind == Kind::Service;
                if self.desired == Desired::Up && (given_up || matches!(self.state, State::Backoff { .. })) {
                    self.failures.clear();
                    self.state = State::Waiting;
                }
                Vec::new()
            }
            Event::Timer => self.timer(spec, chance, now),
            Event::KillNow => match self.state {
                State::Draining { after, .. } | State::Stopping { after, .. } => {
                    self.state = State::Stopping { kill_at: None, after };
                    vec![Action::Kill]
                }
                State::Cleaning { .. } => vec![Action::Kill],
                _ => Vec::new(),
            },
            Event::NeedsMet => Vec::new(),
        }
    }

    /// When [`Event::Timer`] is wanted.
    pub fn timer_at(&self) -> Option<Instant> {
        match self.state {
            State::Starting { deadline, .. } => deadline,
            State::Stopping { kill_at, .. } => kill_at,
            State::Draining { until, .. } | State::Backoff { until } => Some(until),
            _ => None,
        }
    }

    /// Something of it may live.
    pub fn has_process(&self) -> bool {
        self.runs() || matches!(self.state, State::Cleaning { .. })
    }

    /// Its main process lives.
    pub fn runs(&self) -> bool {
        matches!(
            self.state,
            State::Starting { .. }
                | State::Ready { .. }
                | State::Unready { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
        )
    }

    /// What the outside sees.
    pub fn shown(&self) -> ServiceState {
        match self.state {
            State::Stopped => ServiceState::Stopped,
            State::Waiting => ServiceState::Waiting,
            State::Starting { .. } => ServiceState::Starting,
            State::Ready { .. } => ServiceState::Ready,
            State::Unready { .. } => ServiceState::Unready,
            State::Draining { .. } | State::Stopping { .. } | State::Cleaning { .. } => ServiceState::Stopping,
            State::Backoff { .. } if self.failures.len() >= CRASH_LOOP => ServiceState::CrashLoop,
            State::Backoff { .. } => ServiceState::Backoff,
            State::Completed => ServiceState::Completed,
            State::Failed => ServiceState::Failed,
        }
    }

    fn start(&mut self) -> Vec<Action> {
        self.desired = Desired::Up;
        match &mut self.state {
            State::Stopped | State::Completed | State::Failed | State::Backoff { .. } => {
                // Whoever starts by hand has mended something: the past does not count.
                self.failures.clear();
                self.state = State::Waiting;
            }
            State::Draining { after, .. } | State::Stopping { after, .. } | State::Cleaning { after } => {
                *after = After::Start;
            }
            State::Waiting | State::Starting { .. } | State::Ready { .. } | State::Unready { .. } => {}
        }
        Vec::new()
    }

    fn stop(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        self.desired = Desired::Down;
        match &mut self.state {
            State::Starting { .. } | State::Ready { .. } | State::Unready { .. } => {
                return self.begin_stop(After::Rest, spec, now);
            }
            State::Draining { after, .. } | State::Stopping { after, .. } | State::Cleaning { after } => {
                *after = After::Rest;
            }
            State::Waiting | State::Backoff { .. } | State::Failed | State::Completed => self.state = State::Stopped,
            State::Stopped => {}
        }
        Vec::new()
    }

    fn restart(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        if matches!(self.state, State::Starting { .. } | State::Ready { .. } | State::Unready { .. }) {
            self.desired = Desired::Up;
            self.failures.clear();
            return self.begin_stop(After::Start, spec, now);
        }
        self.start()
    }

    fn begin_stop(&mut self, after: After, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        let Some(drain) = &spec.stop.drain else { return self.signal(after, spec, now) };
        self.state = State::Draining { until: now + drain.timeout.get(), after };
        vec![Action::EndProbes, Action::Drain]
    }

    fn signal(&mut self, after: After, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        self.state = State::Stopping { kill_at: Some(now + spec.stop.grace.get()), after };
        vec![Action::EndProbes, Action::Signal]
    }

    fn spawned(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        if self.state != State::Waiting {
            return Vec::new();
        }
        if spec.kind != Kind::Service {
            self.state = State::Starting { probing: None, deadline: None };
            return Vec::new();
        }
        match (&spec.startup, &spec.ready) {
            (Some(probe), _) => self.begin_probe(ProbeKind::Startup, now + probe.within.get()),
            (None, Some(probe)) => self.begin_probe(ProbeKind::Ready, now + probe.within.get()),
            (None, None) => self.become_ready(spec, now),
        }
    }

    fn begin_probe(&mut self, kind: ProbeKind, deadline: Instant) -> Vec<Action> {
        self.state = State::Starting { probing: Some(kind), deadline: Some(deadline) };
        vec![Action::BeginProbe(kind)]
    }

    fn become_ready(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        self.state = State::Ready { since: now };
        if spec.live.is_some() { vec![Action::BeginProbe(ProbeKind::Live)] } else { Vec::new() }
    }

    fn held(&mut self, kind: ProbeKind, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        match (self.state, kind) {
            (State::Starting { probing: Some(ProbeKind::Startup), .. }, ProbeKind::Startup) => {
                let next = match &spec.ready {
                    Some(probe) => self.begin_probe(ProbeKind::Ready, now + probe.within.get()),
                    None => self.become_ready(spec, now),
                };
                [Action::EndProbe(ProbeKind::Startup)].into_iter().chain(next).collect()
            }
            (State::Starting { probing: Some(ProbeKind::Ready), .. }, ProbeKind::Ready) => self.become_ready(spec, now),
            (State::Unready { since }, ProbeKind::Ready) => {
                self.state = State::Ready { since };
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn lost(&mut self, kind: ProbeKind, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        match (self.state, kind) {
            (State::Ready { since }, ProbeKind::Ready) => {
                self.state = State::Unready { since };
                Vec::new()
            }
            (State::Ready { .. } | State::Unready { .. }, ProbeKind::Live) => {
                // What hangs does not drain.
                let after = self.after_failure(0, spec, chance, now);
                self.signal(after, spec, now)
            }
            _ => Vec::new(),
        }
    }

    fn exited(&mut self, exit: Exit, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        let (after, kill_at) = match self.state {
            // Its strays have what is left of the grace period.
            State::Stopping { after, kill_at } => (after, kill_at),
            State::Draining { after, .. } => (after, Some(now + spec.stop.grace.get())),
            State::Starting { .. } | State::Ready { .. } | State::Unready { .. } => {
                (self.after_exit(exit, spec, chance, now), None)
            }
            _ => return Vec::new(),
        };
        self.state = State::Cleaning { after };
        vec![Action::EndProbes, Action::CleanLineage { kill_at }]
    }

    fn after_exit(&mut self, exit: Exit, spec: &ServiceSpec, chance: f64, now: Instant) -> After {
        if let State::Ready { since } | State::Unready { since } = self.state
            && now.saturating_duration_since(since) >= spec.restart.healthy_after.get()
        {
            self.failures.clear();
        }
        match (spec.restart.mode, exit.success()) {
            (RestartMode::Always, _) | (RestartMode::OnFailure, false) => self.after_failure(0, spec, chance, now),
            (RestartMode::Never | RestartMode::OnFailure, true) => After::Complete,
            (RestartMode::Never, false) => After::GiveUp,
        }
    }

    /// The first restart comes at once, the second waits `initial`, and so on; `earlier` counts as that many more.
    fn after_failure(&mut self, earlier: u32, spec: &ServiceSpec, chance: f64, now: Instant) -> After {
        if spec.restart.mode == RestartMode::Never {
            return After::GiveUp;
        }
        let window = spec.restart.window.get();
        self.failures.retain(|at| now.saturating_duration_since(*at) < window);
        self.failures.push_back(now);
        let failures = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        if failures > spec.restart.limit {
            return After::GiveUp;
        }
        self.restarts += 1;
        match failures - 1 + earlier {
            0 => After::Retry(Duration::ZERO),
            waits => After::Retry(spec.restart.backoff.delay(waits, chance)),
        }
    }

    fn timer(&mut self, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        match self.state {
            State::Starting { deadline: Some(deadline), .. } if now >= deadline => {
                self.late += 1;
                let after = self.after_failure(1, spec, chance, now);
                self.signal(after, spec, now)
            }
            State::Draining { until, after } if now >= until => self.signal(after, spec, now),
            State::Stopping { kill_at: Some(kill_at), after } if now >= kill_at => {
                self.state = State::Stopping { kill_at: None, after };
                vec![Action::Kill]
            }
            State::Backoff { until } if now >= until => {
                self.state = State::Waiting;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn settle(&mut self, after: After, now: Instant) {
        self.state = match after {
            After::Rest => State::Stopped,
            After::Start => State::Waiting,
            After::Retry(delay) if delay.is_zero() => State::Waiting,
            After::Retry(delay) => State::Backoff { until: now + delay },
            After::Complete => State::Completed,
            After::GiveUp => State::Failed,
        };
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
