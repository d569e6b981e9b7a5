use serde::Serialize;
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use crate::base::Seconds;

/// How the engine finds out that a service is ready.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    #[serde(flatten)]
    pub target: ProbeTarget,
    /// Time between two tries; from the start of the service the first is made at once. Default 200 ms.
    pub every: Seconds,
    /// One try may take so long. Default 2 s.
    pub timeout: Seconds,
    /// A service that is not ready so long after its start has failed to start. Default 60 s.
    pub within: Seconds,
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
}

impl Probe {
    pub(super) fn read(path: String, value: &Value) -> (Option<Self>, Vec<FieldProblem>) {
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
            if let Err(cause) = regex::Regex::new(&pattern) {
                fields.wrong("log", &format!("{pattern:?} is no regular expression: {cause}"));
            }
            targets.push(ProbeTarget::Log(pattern));
        }
        let every = fields.optional("every").unwrap_or(Seconds::from_millis(200));
        let timeout = fields.optional("timeout").unwrap_or(Seconds::from_secs(2));
        let within = fields.optional("within").unwrap_or(Seconds::from_secs(60));
        for (key, duration) in [("every", every), ("timeout", timeout), ("within", within)] {
            if duration.get().is_zero() {
                fields.wrong(key, "must be longer than zero");
            }
        }
        if targets.len() != 1 && fields.no_problem_yet() {
            let problem = FieldProblem::new(fields.path(), format!("a probe has one target, found {}", targets.len()))
                .help("write one of http, tcp, exec, log");
            fields.report(problem);
        }
        let probe = targets.pop().map(|target| Self { target, every, timeout, within });
        (probe, fields.finish())
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}
