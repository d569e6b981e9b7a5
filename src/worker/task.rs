use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use metrics::{counter, gauge, histogram};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::abilities::{Abilities, Due, News};
use super::circuit::{self, Circuit};
use super::events::{
    AccountHeld, AccountLifted, CapabilitiesChanged, InventoryFailed, JobFailed, JobLost, JobOverdue, WorkerChanged,
};
use super::job::{Outcome, Reporter, hand_over};
use super::trace::{begin_run, end_run};
use super::{Connector, JobContext, RunningJob, WorkerState, WorkerStatus};
use crate::base::{Name, Timestamp};
use crate::queue::{
    Broker, BrokerError, Claim, ClaimRequest, Failure, FailureClass, HoldRequest, JobId, JobState, Registration, Token,
};
use crate::spec::{Capabilities, Inventory};
use crate::telemetry::{EventLog, Published, TraceScope, Traces, label};

/// How often a check that fails is made again, and one that holds while the worker waits for jobs.
const CHECK_FAILING: Duration = Duration::from_secs(2);
const CHECK_HOLDING: Duration = Duration::from_secs(30);
/// A status is read by people and by the machine's loop: neither needs every job's coming and going.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);
/// How many models a worker is taken to have loaded.
const MAX_LOADED: usize = 2;
/// Claims of one worker that are under way at once: one that the queue works on, and one for it to go on with.
const CLAIMS_AT_ONCE: usize = 2;
/// Where the first answer to what a backend has takes longer, the status says so.
const ANSWER_SOON: Duration = Duration::from_secs(1);
/// How long the queue may take to hold an account, before the job's outcome is handed over all the same.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connector may take to stop once it was told.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What beats are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Whether the services a worker needs are ready; the reason when they are not.
pub type Readiness = Result<(), String>;

pub struct WorkerConfig {
    pub name: Name,
    pub connector_name: Name,
    pub slots: u32,
    pub registration: Registration,
    pub capabilities: Capabilities,
    pub broker: Arc<dyn Broker>,
    pub connector: Arc<dyn Connector>,
    /// The queue's lease; the worker beats every third of it.
    pub lease: Duration,
    pub ready: watch::Receiver<Readiness>,
    pub events: EventLog,
    pub traces: Traces,
}

/// Namespace of [`Worker::start`].
pub struct Worker;

/// What one says to a worker.
#[derive(Clone)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

struct Shared {
    config: WorkerConfig,
    connector: Mutex<Arc<dyn Connector>>,
    slots: Mutex<u32>,
    abilities: Mutex<Abilities>,
    /// The queue knows other capabilities.
    outdated: AtomicBool,
    /// Jobs from their claim until the queue has their outcome.
    running: Mutex<BTreeMap<JobId, Running>>,
    /// Slots that are taken. A completed job's slot is free at once: the queue may hear of it beside the next claim.
    busy: AtomicUsize,
    status: Published<WorkerStatus>,
    changed: Notify,
    /// Something changed that the claiming task should look at.
    wake: Notify,
    /// A job has ended. Who is idle all the same need not look.
    ended: Notify,
    /// Set once: claim no more, and when to stop what still runs.
    drain: watch::Sender<Option<Instant>>,
    /// There is another connector: what the old one is asked need not be waited for.
    replaced: Notify,
    /// A job failed by no fault of its own: the connector's check decides when to go on.
    recheck: Notify,
    circuit: Mutex<Circuit>,
    stopped: CancellationToken,
    state: Mutex<(WorkerState, Option<String>)>,
    counts: Mutex<(u64, u64)>,
    /// Models of the latest jobs that named one: likely still loaded.
    loaded: Mutex<VecDeque<String>>,
}

struct Running {
    token: Token,
    since: Timestamp,
    cancel: CancellationToken,
    /// Why it was told to stop.
    why: Arc<Mutex<Option<StopReason>>>,
    reporter: Arc<Reporter>,
}

/// What was seen to before a claim.
struct Footing<'a> {
    connector: &'a Arc<dyn Connector>,
    checked: Option<Instant>,
    ready: &'a watch::Receiver<Readiness>,
}

/// What a job's failure tells all that share its worker's account.
struct Lesson {
    pause: Duration,
    /// Of the pauses that follow where one job is tried after it, if one is.
    longest: Option<Duration>,
    cause: &'static str,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    Cancelled,
    Lost,
    Drained,
}

impl Worker {
    /// Starts claiming as soon as everything is ready.
    pub fn start(config: WorkerConfig, tracker: &TaskTracker) -> WorkerHandle {
        let status = WorkerStatus {
            name: config.name.clone(),
            connector: config.connector_name.clone(),
            account: config.capabilities.account.clone(),
            slots: config.slots,
            state: WorkerState::Waiting,
            reason: None,
            models: config.capabilities.models.len(),
            inventory: None,
            running: Vec::new(),
            completed: 0,
            failed: 0,
        };
        let shared = Arc::new(Shared {
            connector: Mutex::new(Arc::clone(&config.connector)),
            slots: Mutex::new(config.slots),
            abilities: Mutex::new(Abilities::new(config.capabilities.clone())),
            outdated: AtomicBool::new(false),
            running: Mutex::default(),
            busy: AtomicUsize::new(0),
            status: Published::new(status),
            changed: Notify::new(),
            wake: Notify::new(),
            ended: Notify::new(),
            drain: watch::Sender::new(None),
            replaced: Notify::new(),
            recheck: Notify::new(),
            circuit: Mutex::default(),
            stopped: CancellationToken::new(),
            state: Mutex::new((WorkerState::Waiting, None)),
            counts: Mutex::default(),
            loaded: Mutex::default(),
            config,
        });
        let (claiming, beating, publishing) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        tracker.spawn(async move { publishing.keep_published().await });
        let jobs = tracker.clone();
        tracker.spawn(async move { claiming.run(&jobs).await });
        tracker.spawn(async move { beating.keep_lease().await });
        WorkerHandle { shared }
    }
}

impl WorkerHandle {
    pub fn status(&self) -> Arc<WorkerStatus> {
        self.shared.status.get()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<WorkerStatus>> {
        self.shared.status.subscribe()
    }

    /// Jobs in flight finish on the connector they began with.
    pub fn replace_connector(&self, connector: Arc<dyn Connector>) {
        *lock(&self.shared.connector) = connector;
        lock(&self.shared.abilities).is_replaced();
        self.shared.replaced.notify_one();
        *lock(&self.shared.circuit) = Circuit::default();
        self.shared.recheck.notify_one();
        // One whose check fails does not wait for its next try.
        self.shared.wake.notify_one();
    }

    pub fn set_slots(&self, slots: u32) {
        *lock(&self.shared.slots) = slots;
        self.shared.wake.notify_one();
        self.shared.publish();
    }

    /// What the machine's script says of it from now on; what its backend has is added. Jobs in flight are not asked about it.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        if lock(&self.shared.abilities).say(capabilities) {
            self.shared.outdated.store(true, Ordering::Relaxed);
        }
        self.shared.wake.notify_one();
        self.shared.publish();
    }

    /// Claims no more. At `deadline` jobs that still run are told to stop and released, no attempt charged. A later call
    /// can only bring the deadline forward.
    pub fn drain(&self, deadline: Instant) {
        self.shared.drain.send_modify(|current| *current = Some(current.map_or(deadline, |old| old.min(deadline))));
        self.shared.wake.notify_one();
    }

    /// Returns when the worker has left the queue and nothing of it runs any more.
    pub async fn stopped(&self) {
        self.shared.stopped.cancelled().await;
    }
}

impl Shared {
    async fn run(self: Arc<Self>, jobs: &TaskTracker) {
        gauge!("machinist_worker_slots", "worker" => self.config.name.to_string()).set(f64::from(*lock(&self.slots)));
        let mut registered = false;
        let mut account = None;
        let mut checked: Option<Instant> = None;
        let mut ready = self.config.ready.clone();
        while self.drain.borrow().is_none() {
            let not_ready = ready.borrow_and_update().clone().err();
            if let Some(why) = not_ready {
                *lock(&self.circuit) = Circuit::default();
                lock(&self.abilities).is_gone();
                self.set_state(WorkerState::Waiting, Some(why));
                self.rest().await;
                self.pause(Duration::MAX, &mut ready).await;
                continue;
            }
            let _ = self.replaced.notified().now_or_never();
            let due = lock(&self.abilities).due(Instant::now());
            // What the check finds out is handed on to the question what the backend has.
            if self.recheck.notified().now_or_never().is_some() || due.is_some() {
                checked = None;
            }
            let connector = Arc::clone(&lock(&self.connector));
            if checked.is_none_or(|at| at.elapsed() >= CHECK_HOLDING) {
                // The answer may take its time, and be no.
                self.rest().await;
                let outcome = AssertUnwindSafe(connector.check()).catch_unwind().await;
                if let Err(failure) = outcome.unwrap_or_else(|_| Err(panicked("the check"))) {
                    checked = None;
                    // From here on the check tells when the backend is back.
                    *lock(&self.circuit) = Circuit::default();
                    lock(&self.abilities).is_gone();
                    self.set_state(WorkerState::NotReady, Some(failure.message));
                    self.pause(CHECK_FAILING, &mut ready).await;
                    continue;
                }
                checked = Some(Instant::now());
            }
            if let Some(due) = due
                && !self.ask(Arc::clone(&connector), due, jobs).await
            {
                continue;
            }
            if self.outdated.swap(false, Ordering::Relaxed) || !registered {
                let capabilities = lock(&self.abilities).all();
                match self.config.broker.register(&self.config.registration, &capabilities).await {
                    Ok(()) => {
                        registered = true;
                        account = capabilities.account.clone();
                    }
                    Err(cause) => {
                        self.outdated.store(true, Ordering::Relaxed);
                        self.set_state(WorkerState::Disconnected, Some(cause.to_string()));
                        self.pause(CHECK_FAILING, &mut ready).await;
                        continue;
                    }
                }
            }
            let mut free = self.free();
            if free < self.worth_a_claim() {
                // One claim for all slots that become free now, rather than one for each.
                tokio::task::yield_now().await;
                free = self.free();
            }
            if free == 0 {
                self.set_state(WorkerState::Active, None);
                self.rest().await;
                let until_asked = lock(&self.abilities).wait(Instant::now());
                self.pause(until_asked, &mut ready).await;
                continue;
            }
            let allowed = lock(&self.circuit).may_claim(free, Instant::now());
            let limit = match allowed {
                Ok(limit) => limit,
                Err(shut) => {
                    self.set_state(WorkerState::NotReady, Some(shut.why));
                    self.rest().await;
                    self.pause(shut.wait.unwrap_or(Duration::MAX), &mut ready).await;
                    continue;
                }
            };
            let footing = Footing { connector: &connector, checked, ready: &ready };
            match self.claim(limit, account.as_ref(), jobs, &footing).await {
                Ok(idle) => {
                    if idle {
                        self.wait_for_jobs(&mut checked, &mut ready).await;
                    }
                }
                Err(cause @ BrokerError::Held { .. }) => {
                    // A limit is everyday life; what holds an account is something to know.
                    let limit = matches!(&cause, BrokerError::Held { why, .. } if why.is_empty());
                    let state = if limit { WorkerState::Active } else { WorkerState::Held };
                    self.set_state(state, Some(cause.to_string()));
                    self.wait_for_jobs(&mut checked, &mut ready).await;
                }
                Err(BrokerError::NotRegistered(_)) => registered = false,
                Err(cause) => {
                    self.set_state(WorkerState::Disconnected, Some(cause.to_string()));
                    self.pause(CHECK_FAILING, &mut ready).await;
                }
            }
        }
        self.finish(registered).await;
    }

    /// Claims for so many free slots, and begins what it gets. While more waits than was claimed, and nothing else is to be seen to, it
    /// claims for further slots as they become free: the queue then finds the next jobs while the last ones are begun and run here.
    /// Whether the queue has told this worker that nothing waits, and is to wake it.
    async fn claim(
        self: &Arc<Self>,
        limit: u32,
        account: Option<&Name>,
        jobs: &TaskTracker,
        footing: &Footing<'_>,
    ) -> Result<bool, BrokerError> {
        let mut under_way = FuturesOrdered::from_iter([self.ask_for(limit)]);
        let mut reserved = limit;
        let mut more = false;
        loop {
            let further = more && under_way.len() < CLAIMS_AT_ONCE && self.still_holds(footing);
            let free = if further { self.free().saturating_sub(reserved) } else { 0 };
            if free > 0 && free >= self.worth_a_claim() {
                under_way.push_back(self.ask_for(free));
                reserved += free;
                continue;
            }
            let answer = tokio::select! {
                biased;
                answer = under_way.next() => answer,
                () = self.ended.notified(), if further => continue,
            };
            let Some((limit, answer)) = answer else { return Ok(false) };
            reserved -= limit;
            let idle = answer.map(|claims| {
                self.set_state(WorkerState::Active, None);
                let idle = claims.is_empty() || self.config.broker.is_idle(&self.config.registration);
                if let Some(first) = claims.first() {
                    lock(&self.circuit).claimed(&first.token.job);
                }
                for claim in claims {
                    self.begin(claim, account.cloned(), jobs);
                }
                idle
            });
            more = matches!(idle, Ok(false));
            if under_way.is_empty() && !more {
                return idle;
            }
        }
    }

    /// Asks the queue for jobs for so many slots; told with the answer.
    fn ask_for(&self, limit: u32) -> BoxFuture<'static, (u32, Result<Vec<Claim>, BrokerError>)> {
        let request = ClaimRequest {
            registration: self.config.registration.clone(),
            limit,
            loaded: lock(&self.loaded).iter().cloned().collect(),
        };
        let broker = Arc::clone(&self.config.broker);
        async move { (limit, broker.claim(&request).await) }.boxed()
    }

    /// Whether another claim may follow at once: nothing changed, nothing is due, and no job went wrong.
    fn still_holds(&self, footing: &Footing<'_>) -> bool {
        self.drain.borrow().is_none()
            && footing.checked.is_some_and(|at| at.elapsed() < CHECK_HOLDING)
            && !footing.ready.has_changed().unwrap_or(false)
            && !self.outdated.load(Ordering::Relaxed)
            && lock(&self.abilities).due(Instant::now()).is_none()
            && lock(&self.circuit).is_untouched(Instant::now())
            && Arc::ptr_eq(footing.connector, &lock(&self.connector))
    }

    /// Asks what the backend has: before anything is claimed, or beside it. Whether to go on: not where there is another connector by
    /// now, or the worker is to end.
    async fn ask(self: &Arc<Self>, connector: Arc<dyn Connector>, due: Due, jobs: &TaskTracker) -> bool {
        let question = lock(&self.abilities).ask(Instant::now());
        // Looked at after that: whoever replaces it afterwards takes the question back.
        if !Arc::ptr_eq(&connector, &lock(&self.connector)) {
            lock(&self.abilities).is_gone();
            return false;
        }
        let this = Arc::clone(self);
        let answered = async move {
            let answer = AssertUnwindSafe(connector.capabilities()).catch_unwind().await;
            this.take_in(question, answer.unwrap_or_else(|_| Err(panicked("the hook capabilities"))));
        };
        if due == Due::Again {
            let stopped = self.stopped.clone();
            jobs.spawn(async move { stopped.run_until_cancelled(answered).await });
            return true;
        }
        self.rest().await;
        let mut drain = self.drain.subscribe();
        let slow = async {
            tokio::time::sleep(ANSWER_SOON).await;
            if lock(&self.state).0 != WorkerState::Active {
                self.set_state(WorkerState::Waiting, Some("its backend is asked what it has".to_owned()));
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = answered => return true,
            () = slow => {}
            () = self.replaced.notified() => {}
            _ = drain.wait_for(Option::is_some) => {}
        }
        lock(&self.abilities).is_gone();
        false
    }

    fn take_in(&self, question: u64, answer: Result<Option<Inventory>, Failure>) {
        let answer = answer.map_err(|failure| failure.message);
        let news = lock(&self.abilities).answer(question, answer, Timestamp::now());
        let worker = self.config.name.clone();
        match news {
            None => {}
            Some(News::Failed(reason)) => self.config.events.emit(&InventoryFailed { worker, reason }),
            Some(News::Changed(before, now)) => {
                self.outdated.store(true, Ordering::Relaxed);
                self.config.events.emit(&CapabilitiesChanged::new(worker, &before, &now));
            }
        }
        self.publish();
        self.wake.notify_one();
    }

    /// Until there may be something to claim, or to check again.
    async fn wait_for_jobs(&self, checked: &mut Option<Instant>, ready: &mut watch::Receiver<Readiness>) {
        let patience = checked.map_or(CHECK_HOLDING, |at| CHECK_HOLDING.saturating_sub(at.elapsed()));
        let patience = patience.min(lock(&self.abilities).wait(Instant::now()));
        tokio::select! {
            () = self.config.broker.wait(&self.config.registration, patience) => {}
            () = self.wake.notified() => {}
            () = self.recheck.notified() => *checked = None,
            // A gate that nobody holds any more stays as it is.
            Ok(()) = ready.changed() => {}
        }
    }

    fn free(&self) -> u32 {
        let (slots, held) = (*lock(&self.slots) as usize, lock(&self.running).len());
        let free = slots.saturating_sub(self.busy.load(Ordering::Acquire));
        // Outcomes that the queue does not take must not pile up.
        u32::try_from(free.min((2 * slots).saturating_sub(held))).unwrap_or(u32::MAX)
    }

    /// So many free slots are claimed for at once: the queue finds jobs for them while those that are here run. Were both left
    /// to the same moment, the queue and this process would wait for each other in turn.
    fn worth_a_claim(&self) -> u32 {
        lock(&self.slots).div_ceil(4)
    }

    fn leave_slot(&self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify_one();
    }

    async fn pause(&self, at_most: Duration, ready: &mut watch::Receiver<Readiness>) {
        tokio::select! {
            () = self.wake.notified() => {}
            () = self.ended.notified() => {}
            Ok(()) = ready.changed() => {}
            () = tokio::time::sleep(at_most.min(CHECK_HOLDING)) => {}
        }
    }

    /// It does not claim for now: no job is to wait for this worker meanwhile.
    async fn rest(&self) {
        // Where the queue cannot be told, it finds out with the next heartbeats that nobody has begun what this worker was assigned.
        if let Err(cause) = self.config.broker.rest(&self.config.registration).await {
            tracing::debug!(worker = %self.config.name, "the queue was not told that it rests: {cause}");
        }
    }

    /// Waits for the running jobs, at the deadline stops them, and takes leave.
    async fn finish(&self, registered: bool) {
        self.set_state(WorkerState::Draining, None);
        self.rest().await;
        let mut drain = self.drain.subscribe();
        while !lock(&self.running).is_empty() {
            let deadline = drain.borrow_and_update().unwrap_or_else(Instant::now);
            tokio::select! {
                () = self.ended.notified() => {}
                _ = drain.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => {
                    self.stop_running(StopReason::Drained, |_| true);
                    // They end on their own time; what does not end is left to the lease.
                    let _ = tokio::time::timeout(STOP_PATIENCE, async {
                        while !lock(&self.running).is_empty() {
                            self.ended.notified().await;
                        }
                    }).await;
                    break;
                }
            }
        }
        if registered {
            let leave = self.config.broker.deregister(&self.config.registration);
            let _ = tokio::time::timeout(Duration::from_secs(2), leave).await;
        }
        self.set_state(WorkerState::Stopped, None);
        self.stopped.cancel();
    }

    fn begin(self: &Arc<Self>, claim: Claim, account: Option<Name>, jobs: &TaskTracker) {
        let (broker, token) = (Arc::clone(&self.config.broker), claim.token.clone());
        let reporter = Arc::new(Reporter::start(broker, token, &self.config.connector_name, &claim.job.usage));
        let cancel = CancellationToken::new();
        let running = Running {
            token: claim.token.clone(),
            since: Timestamp::now(),
            cancel: cancel.clone(),
            why: Arc::default(),
            reporter: Arc::clone(&reporter),
        };
        let why = Arc::clone(&running.why);
        self.busy.fetch_add(1, Ordering::AcqRel);
        lock(&self.running).insert(claim.token.job.clone(), running);
        self.publish();
        let (this, connector) = (Arc::clone(self), Arc::clone(&lock(&self.connector)));
        let run = async move { this.run_job(claim, account, connector, cancel, &why, reporter).await };
        // On the heap: a task is moved a few times, and this is much to move.
        jobs.spawn(Box::pin(run));
    }

    /// `account`: what the job was claimed with, and learns something of; an edit may have put in another one since.
    async fn run_job(
        self: Arc<Self>,
        claim: Claim,
        account: Option<Name>,
        connector: Arc<dyn Connector>,
        cancel: CancellationToken,
        why: &Mutex<Option<StopReason>>,
        reporter: Arc<Reporter>,
    ) {
        let begun = Instant::now();
        let timeout = claim.job.submission.timeout.get();
        let deadline = begun + timeout;
        let traces = &self.config.traces;
        let mut span = begin_run(traces, &claim.job, &self.config.connector_name);
        let trace = TraceScope { traces: traces.clone(), trace: span.trace().clone() };
        let context = JobContext { cancel: cancel.clone(), deadline, sink: reporter.sink(), trace };
        let id = claim.token.job.clone();
        let affinity = claim.job.submission.affinity.clone();
        let service = claim.job.submission.service.to_string();
        let broker = &self.config.broker;
        let run = AssertUnwindSafe(async move {
            let job = broker.load(claim.job).await.map_err(|cause| not_loaded(&cause))?;
            connector.run(Arc::new(job), context).await
        })
        .catch_unwind();
        tokio::pin!(run);
        let mut timed_out = false;
        let result = tokio::select! {
            // A job that is done at once needs no timer.
            biased;
            result = &mut run => Some(result),
            () = tokio::time::sleep_until(deadline.into()) => {
                timed_out = true;
                cancel.cancel();
                tokio::time::timeout(STOP_PATIENCE, &mut run).await.ok()
            }
        };
        let reason = *lock(why);
        let timeout_failure = || {
            let limit = humantime::format_duration(timeout);
            Outcome::Failed(Failure::new(FailureClass::Timeout, format!("it ran longer than {limit} and was stopped")))
        };
        let outcome = match &result {
            Some(Ok(Ok(value))) if !timed_out => Outcome::Completed(value.clone()),
            _ if timed_out => timeout_failure(),
            Some(Ok(Err(failure))) => match (failure.class, reason) {
                (_, Some(StopReason::Drained)) => Outcome::Released("its worker is stopping".to_owned()),
                (_, Some(StopReason::Cancelled)) => {
                    Outcome::Failed(Failure::new(FailureClass::Cancelled, "cancelled by request"))
                }
                _ => Outcome::Failed(failure.clone()),
            },
            _ => Outcome::Failed(panicked("the connector")),
        };
        let ended = match &outcome {
            Outcome::Completed(_) => "completed",
            Outcome::Released(_) => "released",
            Outcome::Failed(failure) if failure.class == FailureClass::Cancelled => "cancelled",
            Outcome::Failed(failure) if failure.class == FailureClass::Timeout => "timeout",
            Outcome::Failed(_) => "failed",
        };
        end_run(&mut span, ended, &outcome);
        drop(span);
        let connector_name = self.config.connector_name.to_string();
        if let Outcome::Failed(failure) = &outcome {
            let class = failure.class.as_str();
            counter!("machinist_job_failures_total", "connector" => connector_name.clone(), "class" => class)
                .increment(1);
        }
        histogram!("machinist_job_duration_seconds", "connector" => connector_name, "outcome" => ended)
            .record(begun.elapsed().as_secs_f64());
        if let (Outcome::Completed(_), Some(affinity)) = (&outcome, affinity) {
            let mut loaded = lock(&self.loaded);
            loaded.retain(|model| *model != affinity.model);
            loaded.push_back(affinity.model);
            while loaded.len() > MAX_LOADED {
                loaded.pop_front();
            }
            // Jobs may have waited for this.
            self.wake.notify_one();
        }
        let lesson = self.learn(&id, &outcome, account.is_some(), claim.trial);
        // After another outcome the worker may have to claim no more.
        let slot_left = matches!(outcome, Outcome::Completed(_));
        if slot_left {
            self.leave_slot();
        }
        if let (Some(lesson), Some(account)) = (lesson, &account) {
            // Before the job is handed over, which somebody else might claim at once.
            self.hold(account, &claim.token, lesson).await;
        }
        reporter.flush().await;
        if slot_left {
            let service = label("machinist_jobs_finished_total", &service);
            counter!("machinist_jobs_finished_total", "service" => service, "outcome" => "completed").increment(1);
        }
        let tried = account.filter(|_| claim.trial);
        let tried = tried.filter(|tried| lock(&self.abilities).all().account.as_ref() == Some(tried));
        self.deliver(&claim.token, &outcome, tried).await;
        if result.is_none() {
            self.config.events.emit(&JobOverdue { worker: self.config.name.clone(), job: id.clone() });
            // The slot is free when the work has stopped, not before.
            drop(run.await);
        }
        lock(&self.running).remove(&id);
        if slot_left {
            self.ended.notify_one();
        } else {
            self.leave_slot();
            // What went wrong may decide when it claims next.
            self.wake.notify_one();
        }
        self.publish();
    }

    /// What the outcome tells of the backend; what others with the account should know of it, where there is one.
    fn learn(&self, job: &JobId, outcome: &Outcome, shared: bool, trial: bool) -> Option<Lesson> {
        let mut circuit = lock(&self.circuit);
        let Outcome::Failed(failure) = outcome else {
            match outcome {
                Outcome::Completed(_) => circuit.succeeded(job),
                _ => circuit.ended(job),
            }
            return None;
        };
        let said = failure.message.clone();
        match failure.class {
            // A backend that is gone must not cost every job that waits an attempt.
            FailureClass::Retryable | FailureClass::Timeout => {
                circuit.failed(job, failure, Instant::now());
                self.recheck.notify_one();
                let why = if trial { Some(said) } else { circuit.opened() }?;
                let (pause, longest) = (circuit::PAUSE, Some(circuit::LONGEST_PAUSE));
                Some(Lesson { pause, longest, cause: "failures", why })
            }
            FailureClass::RateLimited if shared => {
                circuit.ended(job);
                Some(Lesson { pause: failure.rate_pause(), longest: None, cause: "rate", why: said })
            }
            FailureClass::RateLimited => {
                circuit.rest(job, Instant::now() + failure.rate_pause(), &said);
                None
            }
            FailureClass::Account if !shared => {
                // Where the check does not see it, the same job would be claimed again at once.
                circuit.refused(job, &said, Instant::now());
                self.recheck.notify_one();
                None
            }
            FailureClass::Account => {
                circuit.ended(job);
                self.recheck.notify_one();
                let (pause, longest) = (CHECK_HOLDING, Some(circuit::LONGEST_ACCOUNT));
                Some(Lesson { pause, longest, cause: "account", why: said })
            }
            FailureClass::WrongMachine => {
                circuit.ended(job);
                lock(&self.abilities).doubt();
                None
            }
            FailureClass::Fatal | FailureClass::Cancelled => {
                circuit.ended(job);
                None
            }
        }
    }

    /// Has all that share the account learn it. Where the queue cannot be told, it stays this worker's own.
    async fn hold(&self, account: &Name, token: &Token, lesson: Lesson) {
        let Lesson { pause, longest, cause, why } = lesson;
        let (account, token) = (account.clone(), token.clone());
        let request = HoldRequest { account, token, pause, longest, why };
        let held = tokio::time::timeout(HOLD_PATIENCE, self.config.broker.hold(&request)).await;
        let Ok(Ok((until, news))) = held else {
            if cause == "account" {
                lock(&self.circuit).refused(&request.token.job, &request.why, Instant::now());
            }
            return;
        };
        // From here on the account's hold stands for it.
        *lock(&self.circuit) = Circuit::default();
        if news {
            let HoldRequest { account, token, longest, why, .. } = request;
            let (worker, job, trial) = (self.config.name.clone(), token.job, longest.is_some());
            self.config.events.emit(&AccountHeld { account, worker, job, until, trial, cause, why });
        }
    }

    /// `tried`: the account that the job was tried for.
    async fn deliver(&self, token: &Token, outcome: &Outcome, tried: Option<Name>) {
        let state = hand_over(self.config.broker.as_ref(), token, outcome).await;
        let (worker, job) = (self.config.name.clone(), token.job.clone());
        match (state, outcome) {
            (None, _) => self.config.events.emit(&JobLost { worker, job }),
            (Some(JobState::Completed), _) => {
                lock(&self.counts).0 += 1;
                if let Some(account) = tried {
                    self.config.events.emit(&AccountLifted { account, worker, job });
                }
            }
            (Some(JobState::Failed), Outcome::Failed(failure)) => {
                lock(&self.counts).1 += 1;
                self.config.events.emit(&JobFailed { worker, job, failure: failure.clone() });
            }
            (Some(_), _) => {}
        }
    }

    /// Renews the lease and acts on what the answer says of the jobs held here.
    async fn keep_lease(&self) {
        let beat = (self.config.lease / 3).max(Duration::from_millis(50));
        // A worker that could not renew stops its jobs before the queue gives them to others.
        let margin = self.config.lease / 6;
        let mut renewed = Instant::now();
        let mut cancellations = self.config.broker.cancellations();
        let mut reconnections = self.config.broker.reconnections();
        loop {
            // All workers of a process beat at the same instants, so that the queue hears of them in one call.
            let next = EPOCH.elapsed().as_nanos() % beat.as_nanos();
            let pause = beat.saturating_sub(Duration::from_nanos(u64::try_from(next).unwrap_or(0)));
            tokio::select! {
                () = self.stopped.cancelled() => return,
                cancelled = cancellations.recv() => {
                    match cancelled {
                        Ok(id) => self.stop_running(StopReason::Cancelled, |running| *running == id),
                        // The next beat tells what was missed.
                        Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                            cancellations = self.config.broker.cancellations();
                        }
                    }
                    continue;
                }
                Ok(()) = reconnections.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let held: Vec<Token> = lock(&self.running).values().map(|running| running.token.clone()).collect();
            let asked = Instant::now();
            let loaded: BTreeSet<String> = lock(&self.loaded).iter().cloned().collect();
            let heartbeat = self.config.broker.heartbeat(&self.config.registration, &held, &loaded);
            match tokio::time::timeout(beat, heartbeat).await {
                Ok(Ok(reply)) => {
                    renewed = asked;
                    self.stop_running(StopReason::Cancelled, |id| reply.cancelled.contains(id));
                    self.stop_running(StopReason::Lost, |id| reply.lost.contains(id));
                }
                Ok(Err(BrokerError::NotRegistered(_))) => self.stop_running(StopReason::Lost, |_| !held.is_empty()),
                Ok(Err(_)) | Err(_) => {
                    if renewed.elapsed() + margin >= self.config.lease {
                        self.stop_running(StopReason::Lost, |_| true);
                    }
                }
            }
            self.publish();
        }
    }

    fn stop_running(&self, reason: StopReason, which: impl Fn(&JobId) -> bool) {
        for (id, running) in lock(&self.running).iter() {
            if which(id) {
                lock(&running.why).get_or_insert(reason);
                running.cancel.cancel();
            }
        }
    }

    fn set_state(&self, state: WorkerState, reason: Option<String>) {
        let new = (state, reason);
        let mut current = lock(&self.state);
        if *current == new {
            return;
        }
        let changed = current.0 != new.0;
        current.clone_from(&new);
        drop(current);
        if changed {
            let (worker, (state, reason)) = (self.config.name.clone(), new);
            self.config.events.emit(&WorkerChanged { worker, state, reason });
        }
        self.publish();
    }

    /// The status will be published soon.
    fn publish(&self) {
        self.changed.notify_one();
    }

    /// Publishes changes, many small ones as one.
    async fn keep_published(&self) {
        loop {
            tokio::select! {
                () = self.changed.notified() => self.publish_now(),
                () = self.stopped.cancelled() => return self.publish_now(),
            }
            tokio::time::sleep(PUBLISH_EVERY).await;
        }
    }

    fn publish_now(&self) {
        let running: Vec<RunningJob> = lock(&self.running)
            .iter()
            .map(|(id, running)| RunningJob {
                id: id.clone(),
                since: running.since,
                progress: running.reporter.progress(),
            })
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
        gauge!("machinist_worker_busy", "worker" => self.config.name.to_string())
            .set(self.busy.load(Ordering::Acquire) as f64);
        let (state, reason) = lock(&self.state).clone();
        let (completed, failed) = *lock(&self.counts);
        let (capabilities, inventory) = {
            let abilities = lock(&self.abilities);
            (abilities.all(), abilities.status())
        };
        self.status.set_if_changed(WorkerStatus {
            name: self.config.name.clone(),
            connector: self.config.connector_name.clone(),
            account: capabilities.account.clone(),
            slots: *lock(&self.slots),
            state,
            reason,
            models: capabilities.models.len(),
            inventory,
            running,
            completed,
            failed,
        });
    }
}

/// What the job is to work on could not be read.
fn not_loaded(cause: &BrokerError) -> Failure {
    let class = match cause {
        BrokerError::Unavailable { .. } => FailureClass::Retryable,
        _ => FailureClass::Fatal,
    };
    Failure::new(class, format!("its payload could not be loaded: {cause}"))
}

fn panicked(what: &str) -> Failure {
    Failure::new(FailureClass::Retryable, format!("{what} panicked; the engine's log has the place"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No lock here is held over a panic that leaves its value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
