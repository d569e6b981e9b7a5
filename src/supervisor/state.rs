//! One service's life: pure, total over every state and event, with the time as an argument.
//!
//! ```text
//!  Stopped --start--> Waiting --needs met--> Starting --probe holds--> Ready
//!     ^                  ^                      |  \                     |
//!     |                  | due                  |   \ exited             | exited
//!     |               Backoff <----------+      |    v                   v
//!     |                                  +------|-- Cleaning (strays are killed) --> Completed, Failed
//!     +------- Cleaning <--exited-- Stopping <--+---- stop, restart, not ready in time
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::status::{Desired, ServiceState};
use crate::host::process::Exit;
use crate::spec::{Kind, RestartMode, ServiceSpec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Stopped,
    /// For what it needs.
    Waiting,
    /// Runs; `deadline` is when it must be ready.
    Starting {
        deadline: Option<Instant>,
    },
    Ready {
        since: Instant,
    },
    /// Told to stop; killed at `kill_at`, when it is set.
    Stopping {
        kill_at: Option<Instant>,
        after: After,
    },
    /// The process is gone, what it left behind is being killed.
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
    /// The readiness probe holds.
    ProbeHeld,
    Exited(Exit),
    /// Nothing is left of the process.
    LineageGone,
    Timer,
    /// The time for stopping is over.
    KillNow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Spawn,
    BeginProbe,
    EndProbe,
    /// The stop signal, to the process group.
    Signal,
    /// SIGKILL, to all that is left.
    Kill,
    /// Kill what a dead process left behind, then report [`Event::LineageGone`].
    CleanLineage,
}

/// A service's state with what it remembers of its failures.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    pub desired: Desired,
    pub state: State,
    /// When the failures of late happened that are not forgotten yet.
    failures: VecDeque<Instant>,
    /// Restarts that nobody asked for.
    pub restarts: u64,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self { desired: Desired::Down, state: State::Stopped, failures: VecDeque::new(), restarts: 0 }
    }

    /// Decides. `chance` lies in 0..1 and feeds the jitter.
    pub fn handle(&mut self, event: Event, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        match event {
            Event::Start => self.start(),
            Event::Stop => self.stop(spec, now),
            Event::Restart => self.restart(spec, now),
            Event::NeedsMet => {
                if self.state == State::Waiting {
                    return vec![Action::Spawn];
                }
                Vec::new()
            }
            Event::Spawned => self.spawned(spec, now),
            Event::SpawnFailed => {
                if self.state == State::Waiting {
                    let after = self.after_failure(spec, chance, now);
                    self.settle(after, now);
                }
                Vec::new()
            }
            Event::ProbeHeld => {
                if let State::Starting { .. } = self.state
                    && spec.kind == Kind::Service
                {
                    self.state = State::Ready { since: now };
                    return vec![Action::EndProbe];
                }
                Vec::new()
            }
            Event::Exited(exit) => self.exited(exit, spec, chance, now),
            Event::LineageGone => {
                if let State::Cleaning { after } = self.state {
                    self.settle(after, now);
                }
                Vec::new()
            }
            Event::Timer => self.timer(spec, chance, now),
            Event::KillNow => {
                if let State::Stopping { kill_at, .. } = &mut self.state {
                    *kill_at = None;
                    return vec![Action::Kill];
                }
                Vec::new()
            }
        }
    }

    /// When [`Event::Timer`] is wanted.
    pub fn timer_at(&self) -> Option<Instant> {
        match self.state {
            State::Starting { deadline } => deadline,
            State::Stopping { kill_at, .. } => kill_at,
            State::Backoff { until } => Some(until),
            _ => None,
        }
    }

    pub fn has_process(&self) -> bool {
        matches!(
            self.state,
            State::Starting { .. } | State::Ready { .. } | State::Stopping { .. } | State::Cleaning { .. }
        )
    }

    /// What the outside sees.
    pub fn shown(&self) -> ServiceState {
        match self.state {
            State::Stopped => ServiceState::Stopped,
            State::Waiting => ServiceState::Waiting,
            State::Starting { .. } => ServiceState::Starting,
            State::Ready { .. } => ServiceState::Ready,
            State::Stopping { .. } | State::Cleaning { .. } => ServiceState::Stopping,
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
            State::Stopping { after, .. } | State::Cleaning { after } => *after = After::Start,
            State::Waiting | State::Starting { .. } | State::Ready { .. } => {}
        }
        Vec::new()
    }

    fn stop(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        self.desired = Desired::Down;
        match &mut self.state {
            State::Starting { .. } | State::Ready { .. } => return self.begin_stop(After::Rest, spec, now),
            State::Stopping { after, .. } | State::Cleaning { after } => *after = After::Rest,
            State::Waiting | State::Backoff { .. } | State::Failed | State::Completed => self.state = State::Stopped,
            State::Stopped => {}
        }
        Vec::new()
    }

    fn restart(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        if matches!(self.state, State::Starting { .. } | State::Ready { .. }) {
            self.desired = Desired::Up;
            self.failures.clear();
            return self.begin_stop(After::Start, spec, now);
        }
        self.start()
    }

    fn begin_stop(&mut self, after: After, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        self.state = State::Stopping { kill_at: Some(now + spec.stop.grace.get()), after };
        vec![Action::EndProbe, Action::Signal]
    }

    fn spawned(&mut self, spec: &ServiceSpec, now: Instant) -> Vec<Action> {
        if self.state != State::Waiting {
            return Vec::new();
        }
        match (&spec.ready, spec.kind) {
            (Some(probe), Kind::Service) => {
                self.state = State::Starting { deadline: Some(now + probe.within.get()) };
                vec![Action::BeginProbe]
            }
            (None, Kind::Service) => {
                self.state = State::Ready { since: now };
                Vec::new()
            }
            (_, Kind::Oneshot | Kind::Setup) => {
                self.state = State::Starting { deadline: None };
                Vec::new()
            }
        }
    }

    fn exited(&mut self, exit: Exit, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        let after = match self.state {
            State::Stopping { after, .. } => after,
            State::Starting { .. } | State::Ready { .. } => self.after_exit(exit, spec, chance, now),
            _ => return Vec::new(),
        };
        self.state = State::Cleaning { after };
        vec![Action::EndProbe, Action::CleanLineage]
    }

    fn after_exit(&mut self, exit: Exit, spec: &ServiceSpec, chance: f64, now: Instant) -> After {
        if let State::Ready { since } = self.state
            && now.saturating_duration_since(since) >= spec.restart.healthy_after.get()
        {
            self.failures.clear();
            if spec.restart.mode == RestartMode::Always
                || (spec.restart.mode == RestartMode::OnFailure && !exit.success())
            {
                self.restarts += 1;
                self.failures.push_back(now);
                return After::Retry(Duration::ZERO);
            }
        }
        match (spec.restart.mode, exit.success()) {
            (RestartMode::Always, _) | (RestartMode::OnFailure, false) => self.after_failure(spec, chance, now),
            (RestartMode::Never | RestartMode::OnFailure, true) => After::Complete,
            (RestartMode::Never, false) => After::GiveUp,
        }
    }

    fn after_failure(&mut self, spec: &ServiceSpec, chance: f64, now: Instant) -> After {
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
        After::Retry(spec.restart.backoff.delay(failures, chance))
    }

    fn timer(&mut self, spec: &ServiceSpec, chance: f64, now: Instant) -> Vec<Action> {
        match self.state {
            State::Starting { deadline: Some(deadline) } if now >= deadline => {
                let after = self.after_failure(spec, chance, now);
                self.begin_stop(after, spec, now)
            }
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
