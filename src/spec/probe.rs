use serde::Serialize;
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use crate::base::Seconds;

/// How the engine finds out how a service is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    #[serde(flatten)]
    pub target: ProbeTarget,
    /// Time between two tries. Defaults: 200 ms until a service is ready, 10 s for liveness.
    pub every: Seconds,
    /// Only of `ready`: time between two tries once the service is ready; 0 asks no more. Default 5 s.
    pub recheck: Seconds,
    /// One try may take so long. Default 2 s.
    pub timeout: Seconds,
    /// Of `startup` and `ready`: a service that has not got there so long after its start has failed to start. Default
    /// 60 s. Of `live`: time after readiness before the first try. Default 0.
    pub within: Seconds,
    /// So many failures in a row count as one. Defaults: 3; before readiness every failure only delays.
    pub failures: u32,
    /// So many successes in a row count as one. Default 1.
    pub successes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Ready,
    Live,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTarget {
    /// GET answers with a status from 200 to 399. Only `http://`; redirects are not followed.
    Http(String),
    /// A TCP connection is accepted at `host:port`.
    Tcp(String),
    /// This program exits with 0.
    Exec(Vec<String>),
    /// A line of the service's output matches this regular expression.
    Log(String),
    /// The service says so on the socket `$NOTIFY_SOCKET`, as `sd_notify(3)` does: `READY=1` for readiness, `WATCHDOG=1` at
    /// least every `every` for liveness.
    Notify,
    /// This function of the machine's script, called with `m` and the service's name, returns true.
    Script(String),
}

impl ProbeKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Ready => "ready",
            Self::Live => "live",
        }
    }
}

impl Probe {
    pub(super) fn read(path: String, kind: ProbeKind, value: &Value) -> (Option<Self>, Vec<FieldProblem>) {
        let mut fields = match Fields::new(path, value) {
            Ok(fields) => fields,
            Err(problem) => return (None, vec![problem]),
        };
        let mut targets = Vec::new();
        if let Some(url) = fields.optional::<String>("http") {
            if !url.starts_with("http://") {
                fields.report(
                    FieldProblem::new(fields.path(), format!("\"http\": {url:?} is no http:// address"))
                        .token("http")
                        .help("write http://127.0.0.1:PORT/PATH"),
                );
            }
            targets.push(ProbeTarget::Http(url));
        }
        if let Some(value) = fields.raw("tcp") {
            let address = match value {
                Value::Number(port) if port.as_u64().is_some_and(|port| (1..=65535).contains(&port)) => {
                    Some(format!("127.0.0.1:{port}"))
                }
                Value::String(address) if has_port(address) => Some(address.clone()),
                _ => None,
            };
            match address {
                Some(address) => targets.push(ProbeTarget::Tcp(address)),
                None => fields.wrong("tcp", "expected a port or \"host:port\""),
            }
        }
        if let Some(argv) = fields.optional::<Vec<String>>("exec") {
            if argv.is_empty() {
                fields.wrong("exec", "expected [program, argument, ...]");
            }
            targets.push(ProbeTarget::Exec(argv));
        }
        if let Some(pattern) = fields.optional::<String>("log") {
            if let Err(cause) = regex::bytes::Regex::new(&pattern) {
                fields.wrong("log", &format!("{pattern:?} is no regular expression: {cause}"));
            }
            if kind == ProbeKind::Live {
                fields.wrong("log", "a line tells readiness, not liveness; use http, tcp, exec, notify or script");
            }
            targets.push(ProbeTarget::Log(pattern));
        }
        if fields.or_default::<bool>("notify") {
            targets.push(ProbeTarget::Notify);
        }
        if let Some(function) = fields.optional::<String>("script") {
            targets.push(ProbeTarget::Script(function));
        }
        let live = kind == ProbeKind::Live;
        let every = if live { Seconds::from_secs(10) } else { Seconds::from_millis(200) };
        let every = fields.optional("every").unwrap_or(every);
        let recheck = if kind == ProbeKind::Ready { fields.optional("recheck") } else { None };
        let recheck = recheck.unwrap_or(Seconds::from_secs(5));
        let timeout = fields.optional("timeout").unwrap_or(Seconds::from_secs(2));
        let within = if live { Seconds::default() } else { Seconds::from_secs(60) };
        let within = fields.optional("within").unwrap_or(within);
        for (key, duration) in [("every", every), ("timeout", timeout), ("within", within)] {
            if duration.get().is_zero() && !(live && key == "within") {
                fields.wrong(key, "must be longer than zero");
            }
        }
        let failures = fields.optional("failures").unwrap_or(3);
        let successes = fields.optional("successes").unwrap_or(1);
        for (key, count) in [("failures", failures), ("successes", successes)] {
            if count == 0 {
                fields.wrong(key, "must be at least 1");
            }
        }
        if targets.len() != 1 && fields.no_problem_yet() {
            let problem = FieldProblem::new(fields.path(), format!("a probe has one target, found {}", targets.len()))
                .help("write one of http, tcp, exec, log, notify, script");
            fields.report(problem);
        }
        let probe = targets.pop();
        let probe = probe.map(|target| Self { target, every, recheck, timeout, within, failures, successes });
        (probe, fields.finish())
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}
