use axum::Json;
use serde_json::json;

use super::error::Done;
use super::openapi::{listing, openapi};
use super::plan::ReloadPlan;
use super::route::{JSON, LINES, Route, TEXT};
use super::server;
use super::status::MachineStatus;
use super::{console, events, health, jobs, machines, metrics, queue, services};
use crate::queue::{Explanation, Job, JobFilter, JobSchedule, Limit};
use crate::supervisor::ServiceStatus;

/// Every route of the HTTP API: what answers it and what is said of it.
pub(super) fn routes() -> Vec<Route> {
    let mut all = machine();
    all.extend(services());
    all.extend(jobs());
    all.extend(queue());
    all.extend(consoles());
    all
}

fn machine() -> Vec<Route> {
    vec![
        Route::get("/", async || listing(&routes())).about("All routes.").text(200, "One route a line."),
        Route::get("/openapi.json", async || Json(openapi()))
            .about("This API as an OpenAPI 3.1 document.")
            .json::<serde_json::Map<String, serde_json::Value>>(200, "The document."),
        Route::get("/livez", health::livez)
            .about("Whether the engine's loop answers within 5 s; nothing else counts.")
            .text(200, "It does.")
            .text(503, "It does not."),
        Route::get("/readyz", health::readyz)
            .about("Whether the machine has started, is not draining, and everything that should be up is.")
            .query::<health::ReadyQuery>()
            .text(200, "It is ready.")
            .text(503, "It is not; what is missing."),
        Route::get("/startupz", health::startupz)
            .about("Whether the start-up sequence is through.")
            .text(200, "It is.")
            .text(503, "It is not; its steps."),
        Route::get("/health", health::health)
            .about("Whether the machine is healthy, and what that is made of.")
            .json::<health::Health>(200, "It is healthy.")
            .json::<health::Health>(503, "It is not."),
        Route::get("/status", health::status)
            .about("Everything about the machine.")
            .json::<MachineStatus>(200, "The machine's published state."),
        Route::get("/metrics", metrics::render)
            .about("Metrics in the text format of Prometheus, or as OpenMetrics where `Accept` prefers it.")
            .text(200, "The metrics."),
        Route::get("/events", events::events)
            .about("The machine's events after a cursor, at most 1,000.")
            .query::<events::EventQuery>()
            .json::<events::Events>(200, "The events.")
            .streams("The events."),
        Route::post("/reload", server::reload)
            .about("Reads the machine's files again now.")
            .query::<server::ReloadQuery>()
            .json::<Done>(200, "What came of it.")
            .fails(&[422, 503]),
        Route::post("/plan", server::plan)
            .about("What a reload would do; changes nothing.")
            .query::<server::PlanQuery>()
            .json::<ReloadPlan>(200, "What would change.")
            .fails(&[422, 503]),
        Route::post("/drain", server::drain)
            .about("Finishes running jobs, stops services, ends the machine.")
            .json::<Done>(200, "It is told to.")
            .fails(&[422, 503]),
    ]
}

fn services() -> Vec<Route> {
    vec![
        Route::get("/services", services::list)
            .about("All services.")
            .query::<services::UsageQuery>()
            .json::<services::Services>(200, "The services by name."),
        Route::get("/services/{name}", services::one)
            .about("One service.")
            .json::<ServiceStatus>(200, "The service.")
            .fails(&[400, 404]),
        Route::post("/services/{name}/{verb}", services::act)
            .about("Starts, stops or restarts a service; the outcome is seen in its status.")
            .json::<Done>(202, "It is told to.")
            .fails(&[400, 404]),
        Route::get("/services/{name}/logs", services::logs)
            .about("The newest lines that a service wrote.")
            .query::<services::LogQuery>()
            .json::<services::LogLines>(200, "The lines, oldest first.")
            .streams("The lines, oldest first.")
            .fails(&[404]),
        Route::get("/logs", services::all_logs)
            .about("The newest lines of all services.")
            .query::<services::AllLogsQuery>()
            .json::<services::LogLines>(200, "The lines, oldest first."),
    ]
}

fn jobs() -> Vec<Route> {
    let job = || json!({ "service": "command", "payload": { "program": "sha256", "stdin": "text" } });
    vec![
        Route::get("/jobs", jobs::list)
            .about("Jobs without payloads and results: those that wait or run in their order, then ended ones, newest first.")
            .query::<JobFilter>()
            .json::<jobs::Jobs>(200, "The jobs.")
            .asks_queue(),
        Route::post("/jobs", jobs::submit)
            .about("Queues jobs; each 200 of a call whole or not at all.")
            .header("traceparent", "The trace of whoever asks (W3C); with `tracestate`. The jobs belong to it.")
            .body::<jobs::OneOrMany>(JSON, job())
            .body::<String>(LINES, format!("{}\n{}\n", job(), job()).into())
            .json::<jobs::JobsSubmitted>(201, "What became of each, in the order given.")
            .fails(&[409, 422])
            .asks_queue(),
        Route::post("/batches", jobs::submit_batch)
            .about("Queues jobs that belong together, and one that is claimable when all of them have ended.")
            .header("traceparent", "The trace of whoever asks (W3C); with `tracestate`. The jobs belong to it.")
            .body::<jobs::Batch>(JSON, json!({ "jobs": [job(), job()], "callback": job() }))
            .json::<jobs::BatchSubmitted>(201, "What became of each.")
            .fails(&[409, 422])
            .asks_queue(),
        Route::get("/jobs/{id}", jobs::get)
            .about("One job with its result and history.")
            .json::<Job>(200, "The job.")
            .fails(&[400, 404])
            .asks_queue(),
        Route::get("/jobs/{id}/explain", jobs::explain)
            .about("Why a job does not run: worker by worker, the first reason.")
            .json::<Explanation>(200, "The reasons.")
            .fails(&[400, 404])
            .asks_queue(),
        Route::get("/jobs/{id}/events", jobs::events)
            .about("What happened to a job after a cursor, at most 1,000 events.")
            .query::<jobs::EventQuery>()
            .json::<jobs::JobEvents>(200, "The events; a stream ends with one named `end` after the last.")
            .streams("The events; a stream ends with one named `end` after the last.")
            .fails(&[404])
            .asks_queue(),
        Route::get("/jobs/{id}/ws", jobs::socket)
            .about("A job's events as messages of a WebSocket, then `{\"end\": ...}`.")
            .query::<jobs::EventQuery>()
            .switches(101, "A WebSocket; each message is an event as JSON.")
            .fails(&[404, 426])
            .asks_queue(),
        Route::post("/jobs/{id}/cancel", jobs::cancel)
            .about("Cancels a job, waiting or running.")
            .json::<jobs::JobNow>(200, "The state it is in; a running one is told to stop.")
            .fails(&[400, 404, 409])
            .asks_queue(),
        Route::post("/jobs/{id}/retry", jobs::retry)
            .about("Queues a failed or cancelled job again, with fresh attempts.")
            .json::<jobs::JobNow>(200, "The state it is in.")
            .fails(&[400, 404, 409])
            .asks_queue(),
    ]
}

fn consoles() -> Vec<Route> {
    vec![
        Route::post("/consoles", console::open)
            .about("Opens a console, which evaluates scripts. Only where `http.console` allows it, and always with the token.")
            .json::<console::ConsoleIsOpen>(201, "It is open.")
            .fails(&[409, 422, 503]),
        Route::post("/consoles/{console}", console::evaluate)
            .about("Evaluates a script in a console; its variables stay. A client that goes away cancels it.")
            .query::<console::ConsoleQuery>()
            .body::<String>(TEXT, "service::list()".into())
            .answers::<String>(200, LINES, "As they come: `{\"printed\"}` for each line that it prints; last `{\"value\"}` or `{\"problem\"}`.")
            .fails(&[404, 409, 422, 503]),
        Route::post("/consoles/{console}/cancel", console::cancel)
            .about("Stops what a console evaluates; its variables stay.")
            .json::<Done>(200, "It is told to.")
            .fails(&[404]),
        Route::delete("/consoles/{console}", console::close)
            .about("Ends a console.")
            .json::<Done>(200, "It ends.")
            .fails(&[404]),
    ]
}

fn queue() -> Vec<Route> {
    vec![
        Route::get("/queue", queue::stats)
            .about("Numbers of the queue: in all, by service, and by the pool that jobs ask for.")
            .json::<queue::QueueReport>(200, "The numbers.")
            .asks_queue(),
        Route::get("/machines", machines::list)
            .about("The machines on the queue, and those that were there within a day, with their last word.")
            .json::<machines::Machines>(200, "The machines by id.")
            .asks_queue(),
        Route::get("/queue/classes", queue::classes)
            .about("Kinds of requirement with their jobs, and what holds them back.")
            .query::<queue::Page>()
            .json::<queue::Classes>(200, "The classes of the page.")
            .asks_queue(),
        Route::get("/queue/workers", queue::workers)
            .about("Workers whose lease holds, and what they can do.")
            .json::<queue::Workers>(200, "By their name, MACHINE/WORKER.")
            .asks_queue(),
        Route::get("/queue/workers/{machine}/{worker}", queue::explain_worker)
            .about("What a worker could run, what waits for it, and why it may not run the rest.")
            .json::<crate::queue::WorkerExplanation>(200, "Class by class.")
            .fails(&[400, 404])
            .asks_queue(),
        Route::get("/queue/accounts", queue::accounts)
            .about("What workers share that use the same key: jobs that run with it, its limit, and what holds it.")
            .json::<queue::Accounts>(200, "All that were ever used or limited.")
            .asks_queue(),
        Route::get("/queue/limits", queue::limits)
            .about("What is paused or limited.")
            .json::<queue::Limits>(200, "The scopes with a limit.")
            .asks_queue(),
        Route::post("/queue/limits", queue::set_limit)
            .about("Limits how many jobs of a scope run or start; `{}` lifts it. A pause stays as it is.")
            .query::<queue::ScopeQuery>()
            .body::<Limit>(JSON, json!({ "max_running": 4, "per_second": 2.5, "burst": 5 }))
            .json::<queue::LimitNow>(200, "The limit that holds now.")
            .asks_queue(),
        Route::post("/queue/pause", queue::pause)
            .about("Starts no more jobs of a scope.")
            .query::<queue::ScopeQuery>()
            .json::<queue::LimitNow>(200, "The limit that holds now.")
            .asks_queue(),
        Route::post("/queue/resume", queue::resume)
            .about("Starts jobs of a paused scope again; of an account it lifts what holds it, too.")
            .query::<queue::ScopeQuery>()
            .json::<queue::LimitNow>(200, "The limit that holds now.")
            .asks_queue(),
        Route::post("/queue/drain", queue::drain)
            .about("Pauses a scope and answers when none of its jobs runs.")
            .query::<queue::ScopeQuery>()
            .json::<queue::LimitNow>(200, "None of its jobs runs.")
            .asks_queue(),
        Route::get("/queue/schedules", queue::schedules)
            .about("Jobs that are submitted again and again.")
            .json::<queue::Schedules>(200, "The schedules.")
            .asks_queue(),
        Route::post("/queue/schedules", queue::put_schedule)
            .about("Submits a job whenever the time comes.")
            .body::<JobSchedule>(
                JSON,
                json!({ "name": "nightly", "cron": "30 4 * * *", "job": { "service": "command" } }),
            )
            .json::<queue::ScheduleNext>(200, "When it comes first.")
            .fails(&[422])
            .asks_queue(),
        Route::delete("/queue/schedules/{name}", queue::drop_schedule)
            .about("Removes a schedule.")
            .json::<queue::Removed>(200, "It is removed.")
            .fails(&[400, 404])
            .asks_queue(),
        Route::post("/queue/verify", queue::verify)
            .about("Checks every invariant of what is stored, and mends what is wrong when asked to.")
            .query::<queue::VerifyQuery>()
            .json::<queue::Verified>(200, "What is wrong.")
            .asks_queue(),
        Route::post("/queue/purge", queue::purge)
            .about("Drops jobs of a state.")
            .query::<queue::PurgeQuery>()
            .json::<queue::Purged>(200, "How many.")
            .asks_queue(),
        Route::get("/queue/export", queue::export)
            .about("Every job, one per line.")
            .answers::<String>(200, LINES, "A job as JSON per line.")
            .asks_queue(),
    ]
}
