//! The decisions of the event loop: pure, with the time as an argument.
//!
//! ```text
//!            all up             a service is down           it starts again
//!  Starting --------> Healthy <-----------------> ServiceFailure ----------> Restarting
//!     |                 ^ | ^     the queue is lost               tried again
//!     | setup or        | | +-------------------> ConnectionLoss ----------> Reconnecting
//!     | critical fails  | | ^     something is short            recover(m, ..)
//!     |                 | | +-------------------> ResourceExhausted -------> ResourceRecovery
//!     |                 | | SIGTERM, SIGINT, /drain                 |
//!     v                 | v                                         | critical service given up, connect_timeout,
//!   Failed <------------+ Draining --> Stopped                      v give_up_after
//!                                                                 Failed --> (jobs back, services stopped, exit code)
//! ```
//! Of several troubles the one that keeps the machine from working most is shown: the queue, then resources, then services.
//! A generation on probation (`probation`) is rolled back before a critical service of it can end the machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{Asker, Event, ReloadCause, StopCause, WithdrawnGpu};
use super::generation::{Generation, Refused};
use super::probation::{Fault, Probation, Trial, Verdict};
use crate::admin::{ControlReply, MachineState};
use crate::base::Name;
use crate::host::Level;
use crate::settings::Settings;
use crate::spec::Kind;
use crate::supervisor::{Desired, Exit, ServiceState, ServicesStatus};
use crate::worker::WorkerStatus;
use tokio::sync::oneshot;

/// What the event loop remembers.
#[derive(Debug)]
pub struct Machine {
    pub state: MachineState,
    pub reason: Option<String>,
    /// The start-up sequence is through and everything was up once.
    pub started: bool,
    startup_ended: bool,
    /// What is wrong with the services now.
    services: ServicesSummary,
    latest: Arc<ServicesStatus>,
    /// One that came while something went live.
    news: Option<Arc<ServicesStatus>>,
    /// Statuses of services before this revision tell of a generation that is over.
    known_from: u64,
    /// Something goes live just now: until it is known what, no status counts.
    going_live: bool,
    workers: BTreeMap<Name, WorkerStatus>,
    queue_lost: Option<QueueLost>,
    shortage: Option<Shortage>,
    reload: Reload,
    probation: Option<Probation>,
    /// Who waits for its verdict.
    askers: Vec<Asker>,
    ending: Ending,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connect_timeout: Duration,
    pub grace: Duration,
    /// A machine short of something for so long fails; none never does.
    pub give_up_after: Option<Duration>,
}

#[derive(Clone, Debug)]
struct QueueLost {
    since: Instant,
    why: String,
    tried_again: bool,
}

#[derive(Clone, Debug)]
struct Shortage {
    since: Instant,
    levels: Vec<Level>,
    /// The `recover` hook was called for it.
    recovering: bool,
    /// A call of the hook runs.
    running: bool,
}

impl Limits {
    pub fn of(settings: &Settings) -> Self {
        Self {
            connect_timeout: settings.queue.connect_timeout.get(),
            grace: settings.shutdown.grace.get(),
            give_up_after: Some(settings.resources.give_up_after.get()).filter(|limit| !limit.is_zero()),
        }
    }

    /// What of the grace period is kept for stopping the services when jobs use up the rest.
    fn reserve(&self) -> Duration {
        (self.grace / 3).min(Duration::from_secs(10))
    }
}

/// At most one build runs and one waits.
#[derive(Debug, Default)]
enum Reload {
    #[default]
    Idle,
    Building {
        askers: Vec<Asker>,
        next: Option<(ReloadCause, Vec<Asker>)>,
    },
}

/// How far the end has come. There is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    Workers { exit_code: u8, deadline: Instant, hurried: bool },
    Services { exit_code: u8 },
    Done { exit_code: u8 },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct ServicesSummary {
    /// Everything that is wanted up is ready or completed.
    all_up: bool,
    /// A service that is down against its will, and why.
    failing: Option<String>,
    /// All that are down are on their way up again.
    coming_back: bool,
    /// A service whose end is the machine's end: why, and the exit code.
    fatal: Option<(String, u8)>,
}

/// What the loop has to do; performed in order by `perform`.
#[derive(Debug)]
pub enum Effect {
    Build(ReloadCause),
    /// Answered with [`Event::WentLive`] or [`Event::Unchanged`].
    Commit(Box<Generation>, Vec<Asker>),
    Reject(Refused, Vec<Asker>),
    /// Files of this hash led to no new generation.
    TellUnchanged(String, Vec<Asker>),
    /// The generation that runs is good: there is no way back behind it.
    Pass {
        generation: u64,
        watched: bool,
    },
    /// Back to the last good generation; answered with [`Event::RolledBack`].
    RollBack(Vec<Fault>, Vec<Asker>),
    Reply(Vec<oneshot::Sender<ControlReply>>, Result<String, String>),
    /// Everything was up for the first time.
    AnnounceStarted,
    AnnounceState {
        from: MachineState,
        to: MachineState,
        reason: Option<String>,
    },
    /// Workers claim nothing for these GPUs, services wait for those that are lost; all others are there to be used.
    WithdrawGpus(Vec<WithdrawnGpu>),
    /// Workers claim no jobs for this reason, or claim again.
    HoldWorkers(Option<String>),
    /// Tell what is short, and call the `recover` hook where there is one.
    Recover(Vec<Level>),
    DrainWorkers {
        deadline: Instant,
    },
    StopServices {
        deadline: Instant,
    },
    Exit(u8),
}

impl Machine {
    pub fn new(limits: Limits) -> Self {
        Self {
            state: MachineState::Starting,
            reason: Some("booting".to_owned()),
            started: false,
            startup_ended: false,
            services: ServicesSummary::default(),
            latest: Arc::default(),
            news: None,
            known_from: 0,
            going_live: false,
            workers: BTreeMap::new(),
            queue_lost: None,
            shortage: None,
            reload: Reload::Idle,
            probation: None,
            askers: Vec::new(),
            ending: Ending::No,
            limits,
        }
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Services(status) => self.news = Some(status),
            Event::Workers(workers) => self.workers = workers,
            Event::Deadline => {}
            Event::Queue(Ok(())) => self.queue_lost = None,
            Event::Queue(Err(why)) => {
                let (since, tried_again) = self.queue_lost.take().map_or((now, false), |lost| (lost.since, true));
                self.queue_lost = Some(QueueLost { since, why, tried_again });
            }
            Event::Resources(levels) => self.resources(levels, now, &mut effects),
            Event::Gpus(withdrawn) => effects.push(Effect::WithdrawGpus(withdrawn)),
            Event::RecoveryBegun => {
                if let Some(shortage) = &mut self.shortage {
                    shortage.recovering = true;
                }
            }
            Event::RecoveryEnded => {
                if let Some(shortage) = &mut self.shortage {
                    shortage.running = false;
                }
            }
            Event::StartupEnded(Ok(())) => self.startup_ended = true,
            Event::StartupEnded(Err(why)) => self.fail(&format!("start-up failed: {why}"), 1, now, &mut effects),
            Event::ReloadWanted(cause, reply) => self.want_reload(cause, reply, &mut effects),
            Event::ReloadBuilt(outcome) => self.reload_built(outcome, &mut effects),
            Event::WentLive(trial, limits, askers) => self.went_live(trial, limits, askers, now, &mut effects),
            Event::Unchanged(hash, askers) => self.unchanged(hash, askers, &mut effects),
            Event::RolledBack(revision, limits) => {
                self.going_live = false;
                self.known_from = revision;
                self.limits = limits;
            }
            Event::StopWanted(cause, reply) => self.want_stop(&cause, reply, now, &mut effects),
            Event::WorkersStopped => self.workers_stopped(now, &mut effects),
            Event::ServicesStopped => self.services_stopped(&mut effects),
        }
        // Two tell of them, and an older word may come later.
        let known_from = self.known_from.max(self.latest.revision);
        if !self.going_live
            && let Some(status) = self.news.take_if(|status| status.revision >= known_from)
        {
            self.services = summarize(&status);
            self.latest = status;
        }
        self.settle(now, &mut effects);
        effects
    }

    /// When [`Event::Deadline`] is wanted.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ending != Ending::No {
            return None;
        }
        let queue = self.queue_lost.as_ref().map(|lost| lost.since + self.limits.connect_timeout);
        let shortage = self.shortage.as_ref().zip(self.limits.give_up_after).map(|(short, limit)| short.since + limit);
        let probation = self.probation.as_ref().and_then(Probation::next_deadline);
        queue.into_iter().chain(shortage).chain(probation).min()
    }

    /// Brings the state in line with what is known.
    fn settle(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.ending != Ending::No {
            return self.forget_probation(effects);
        }
        self.judge(now, effects);
        if let Some((why, code)) = self.services.fatal.clone() {
            self.fail(&why, code, now, effects);
            return self.forget_probation(effects);
        }
        if let Some(short) = &self.shortage
            && let Some(limit) = self.limits.give_up_after
            && now.saturating_duration_since(short.since) >= limit
        {
            let limit = humantime::format_duration(limit);
            let why = format!("still short after {limit}: {}", describe(&short.levels));
            return self.fail(&why, 1, now, effects);
        }
        if let Some(QueueLost { since, why, .. }) = &self.queue_lost
            && now.saturating_duration_since(*since) >= self.limits.connect_timeout
        {
            let lost_for = humantime::format_duration(self.limits.connect_timeout);
            let why = format!("the queue could not be reached for {lost_for}: {why}");
            return self.fail(&why, 1, now, effects);
        }
        if !self.started && self.startup_ended && self.services.all_up {
            self.started = true;
            effects.push(Effect::AnnounceStarted);
        }
        let (state, reason) = if !self.started {
            (MachineState::Starting, self.services.failing.clone().or_else(|| self.reason.clone()))
        } else if let Some(lost) = &self.queue_lost {
            let state = if lost.tried_again { MachineState::Reconnecting } else { MachineState::ConnectionLoss };
            (state, Some(lost.why.clone()))
        } else if let Some(short) = &self.shortage {
            let state = if short.recovering { MachineState::ResourceRecovery } else { MachineState::ResourceExhausted };
            (state, Some(format!("short of {}", describe(&short.levels))))
        } else if let Some(why) = &self.services.failing {
            let back = self.services.coming_back;
            (if back { MachineState::Restarting } else { MachineState::ServiceFailure }, Some(why.clone()))
        } else {
            (MachineState::Healthy, None)
        };
        self.enter(state, reason, effects);
    }

    /// The latest status tells of the generation that runs.
    fn knows_services(&self) -> bool {
        !self.going_live && self.latest.revision >= self.known_from
    }

    fn went_live(&mut self, trial: Trial, limits: Limits, askers: Vec<Asker>, now: Instant, effects: &mut Vec<Effect>) {
        self.limits = limits;
        self.going_live = false;
        self.known_from = trial.revision;
        self.askers.extend(askers);
        let generation = trial.generation;
        if trial.is_empty() {
            self.probation = None;
            effects.push(Effect::Pass { generation, watched: false });
            let answer = Ok(format!("generation {generation} is live; it touches nothing that could fail"));
            effects.push(Effect::Reply(replies(std::mem::take(&mut self.askers)), answer));
        } else {
            self.probation = Some(Probation::begin(trial, self.probation.take(), now));
        }
    }

    fn unchanged(&mut self, hash: String, askers: Vec<Asker>, effects: &mut Vec<Effect>) {
        self.going_live = false;
        let wait = self.probation.is_some();
        let (waiting, at_once) = askers.into_iter().partition(|asker: &Asker| wait && asker.verdict);
        self.askers.extend(waiting);
        effects.push(Effect::TellUnchanged(hash, at_once));
    }

    /// What becomes of the generation that is on probation.
    fn judge(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if !self.knows_services() {
            return;
        }
        let Some(probation) = &mut self.probation else { return };
        let generation = probation.generation();
        match probation.judge(&self.latest, &self.workers, now) {
            Verdict::Wait => {}
            Verdict::Passed => {
                self.probation = None;
                effects.push(Effect::Pass { generation, watched: true });
                let answer = Ok(format!("generation {generation} is live and has passed its probation"));
                effects.push(Effect::Reply(replies(std::mem::take(&mut self.askers)), answer));
            }
            Verdict::Failed(faults) => {
                self.probation = None;
                // What is known of the services is of the generation that goes.
                self.going_live = true;
                self.services.fatal = None;
                effects.push(Effect::RollBack(faults, std::mem::take(&mut self.askers)));
            }
        }
    }

    /// A machine that ends has no edit to judge.
    fn forget_probation(&mut self, effects: &mut Vec<Effect>) {
        self.probation = None;
        if !self.askers.is_empty() {
            let answer = Err("the machine is stopping".to_owned());
            effects.push(Effect::Reply(replies(std::mem::take(&mut self.askers)), answer));
        }
    }

    /// The probation of the generation that runs, where it is on one.
    pub fn probation(&self) -> Option<&Probation> {
        self.probation.as_ref()
    }

    fn resources(&mut self, levels: Vec<Level>, now: Instant, effects: &mut Vec<Effect>) {
        if levels.is_empty() {
            if self.shortage.take().is_some() {
                effects.push(Effect::HoldWorkers(None));
            }
            return;
        }
        let before = self.shortage.take();
        let running = before.as_ref().is_some_and(|shortage| shortage.running);
        if !running && self.ending == Ending::No {
            effects.push(Effect::HoldWorkers(Some(format!("the machine is short of {}", describe(&levels)))));
            effects.push(Effect::Recover(levels.clone()));
        }
        let (since, recovering) = before.map_or((now, false), |shortage| (shortage.since, shortage.recovering));
        self.shortage = Some(Shortage { since, levels, recovering, running: true });
    }

    fn enter(&mut self, state: MachineState, reason: Option<String>, effects: &mut Vec<Effect>) {
        self.reason.clone_from(&reason);
        if state != self.state {
            effects.push(Effect::AnnounceState { from: self.state, to: state, reason });
            self.state = state;
        }
    }

    fn fail(&mut self, why: &str, exit_code: u8, now: Instant, effects: &mut Vec<Effect>) {
        if self.ending != Ending::No {
            return;
        }
        self.enter(MachineState::Failed, Some(why.to_owned()), effects);
        // Nothing is gained by waiting: jobs go back to the queue for machines that can run them.
        self.ending = Ending::Workers { exit_code, deadline: now + self.limits.grace, hurried: true };
        effects.push(Effect::DrainWorkers { deadline: now });
    }

    fn want_stop(
        &mut self,
        cause: &StopCause,
        reply: Option<oneshot::Sender<ControlReply>>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let replies: Vec<_> = reply.into_iter().collect();
        match self.ending {
            Ending::No => {
                self.enter(MachineState::Draining, Some(cause.to_string()), effects);
                let deadline = now + self.limits.grace;
                self.ending = Ending::Workers { exit_code: 0, deadline, hurried: false };
                effects.push(Effect::DrainWorkers {
                    deadline: now + (self.limits.grace.saturating_sub(self.limits.reserve())),
                });
                effects.push(Effect::Reply(replies, Ok("draining".to_owned())));
            }
            // Asked twice: whoever asks does not want to wait for jobs.
            Ending::Workers { exit_code, hurried: false, .. } => {
                let deadline = now + self.limits.reserve();
                self.ending = Ending::Workers { exit_code, deadline, hurried: true };
                effects.push(Effect::DrainWorkers { deadline: now });
                effects.push(Effect::Reply(replies, Ok("draining without waiting for jobs".to_owned())));
            }
            Ending::Services { .. } => {
                effects.push(Effect::StopServices { deadline: now });
                effects.push(Effect::Reply(replies, Ok("killing what still runs".to_owned())));
            }
            Ending::Workers { .. } | Ending::Done { .. } => {
                effects.push(Effect::Reply(replies, Ok("stopping already".to_owned())));
            }
        }
    }

    fn workers_stopped(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if let Ending::Workers { exit_code, deadline, .. } = self.ending {
            self.ending = Ending::Services { exit_code };
            effects.push(Effect::StopServices { deadline: deadline.max(now) });
        }
    }

    fn services_stopped(&mut self, effects: &mut Vec<Effect>) {
        if let Ending::Services { exit_code } = self.ending {
            self.ending = Ending::Done { exit_code };
            if self.state == MachineState::Draining {
                let reason = self.reason.clone();
                self.enter(MachineState::Stopped, reason, effects);
            }
            effects.push(Effect::Exit(exit_code));
        }
    }

    fn want_reload(&mut self, cause: ReloadCause, asker: Option<Asker>, effects: &mut Vec<Effect>) {
        if self.ending != Ending::No {
            let answer = Err("the machine is stopping".to_owned());
            effects.push(Effect::Reply(replies(asker.into_iter().collect()), answer));
            return;
        }
        match &mut self.reload {
            Reload::Idle => {
                self.reload = Reload::Building { askers: asker.into_iter().collect(), next: None };
                effects.push(Effect::Build(cause));
            }
            Reload::Building { next, .. } => {
                let (_, askers) = next.get_or_insert((cause, Vec::new()));
                askers.extend(asker);
            }
        }
    }

    fn reload_built(&mut self, outcome: Result<Box<Generation>, Refused>, effects: &mut Vec<Effect>) {
        let Reload::Building { askers, next } = std::mem::take(&mut self.reload) else { return };
        if self.ending == Ending::No {
            effects.push(match outcome {
                Ok(generation) => {
                    self.going_live = true;
                    Effect::Commit(generation, askers)
                }
                Err(refused) => Effect::Reject(refused, askers),
            });
        } else {
            effects.push(Effect::Reply(replies(askers), Err("the machine is stopping".to_owned())));
        }
        if let Some((cause, askers)) = next {
            self.reload = Reload::Building { askers, next: None };
            effects.push(Effect::Build(cause));
        }
    }
}

fn replies(askers: Vec<Asker>) -> Vec<oneshot::Sender<ControlReply>> {
    askers.into_iter().map(|asker| asker.reply).collect()
}

fn describe(levels: &[Level]) -> String {
    let texts: Vec<String> = levels.iter().map(|level| format!("{} ({})", level.resource, level.detail)).collect();
    texts.join(", ")
}

fn summarize(status: &ServicesStatus) -> ServicesSummary {
    let mut summary = ServicesSummary { all_up: true, coming_back: true, ..ServicesSummary::default() };
    for service in status.services.values().filter(|service| service.desired == Desired::Up) {
        let up = service.state.is_ready();
        summary.all_up &= up;
        let detail = service.reason.as_deref().unwrap_or("no reason is known");
        let coming_back = !up && service.restarts > 0;
        let down = matches!(
            service.state,
            ServiceState::Failed | ServiceState::Backoff | ServiceState::CrashLoop | ServiceState::Unready
        );
        // It waits for what no restart brings back.
        let down = down || service.held.is_some();
        summary.coming_back &= !down;
        if down || coming_back {
            let what = format!("service {} is {}: {detail}", service.name, service.state);
            summary.failing.get_or_insert(what);
        }
        let ends_machine = service.critical || service.kind == Kind::Setup;
        if service.state == ServiceState::Failed && ends_machine && summary.fatal.is_none() {
            let what = if service.critical { "critical service" } else { "setup step" };
            let code = service.last_exit.map_or(1, exit_code_of);
            summary.fatal = Some((format!("{what} {} failed: {detail}", service.name), code));
        }
    }
    summary
}

/// The code that the engine ends with for a service's end: its own code, 128 + signal, 127 when it could not be started;
/// never 0, which would say that all was well.
fn exit_code_of(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(1),
        Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(1),
        Exit::NotStarted(_) => 127,
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
