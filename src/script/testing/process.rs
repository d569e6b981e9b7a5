//! Programs, as a test says they run.

use std::collections::BTreeMap;
use std::time::Duration;

use rhai::{Array, Dynamic, Map};

use super::mock::write_file;
use super::told::map;
use super::world::{answer, delay_of, error_kind, no_answer, record, sleep, unmocked};
use crate::script::call::{Call, ScriptResult, error};
use crate::script::data::kind_of;
use crate::script::options::Options;

/// A program that would be run.
pub(in crate::script) struct Program {
    pub argv: Vec<String>,
    pub cwd: Option<String>,
    pub env: BTreeMap<String, String>,
    pub stdin: Option<String>,
    pub timeout: Option<Duration>,
}

pub(in crate::script) fn run_program(call: &Call, program: Program) -> ScriptResult<Map> {
    let Program { argv, cwd, env, stdin, timeout } = program;
    let text = |text: Option<String>| text.map_or(Dynamic::UNIT, Into::into);
    let request = map([
        ("argv", argv.iter().map(|word| Dynamic::from(word.clone())).collect::<Array>().into()),
        ("cwd", text(cwd.clone())),
        ("env", env.into_iter().map(|(name, value)| (name.into(), value.into())).collect::<Map>().into()),
        ("stdin", text(stdin)),
    ]);
    record("process", request.clone());
    let line = argv.join(" ");
    let name = argv[0].rsplit('/').next().unwrap_or_default();
    let what = format!("process {line:?}");
    let Some(given) = answer("process", None, &[name, &line], request, false)? else {
        return Err(unmocked(&what, &format!("mock::process({name:?}, #{{ stdout: \"..\" }})")));
    };
    if let Some(kind) = error_kind(&given) {
        return Err(match kind.as_str() {
            "missing" => error(format!("the program {:?} is not there", argv[0])),
            other => no_answer(&what, &format!("has an error {other:?} that programs do not have; write \"missing\"")),
        });
    }
    let mut given = if given.is_string() {
        map([("stdout", given)])
    } else {
        let kind = kind_of(&given);
        given.try_cast::<Map>().ok_or_else(|| no_answer(&what, &format!("gives a {kind}; write a map or a text")))?
    };
    let delay = delay_of(&mut given)?;
    let mut given = Options::new("mock::process", given);
    let (stdout, stderr) = (given.text("stdout")?.unwrap_or_default(), given.text("stderr")?.unwrap_or_default());
    let signal = given.take("signal").unwrap_or(Dynamic::UNIT);
    let code = given.take("code").unwrap_or(if signal.is_unit() { 0_i64.into() } else { Dynamic::UNIT });
    let files = given.map("files")?.unwrap_or_default();
    let truncated = given.flag("truncated")?.unwrap_or(false);
    given.finish()?;
    let timed_out = timeout.is_some_and(|timeout| delay > timeout);
    let took = timeout.map_or(delay, |timeout| delay.min(timeout));
    sleep(took)?;
    let cwd = cwd.map(|cwd| format!("{cwd}/")).unwrap_or_default();
    for (name, content) in files {
        write_file(call, &format!("{cwd}{name}"), &content.to_string())?;
    }
    let (code, signal) = if timed_out { (Dynamic::UNIT, 9_i64.into()) } else { (code, signal) };
    Ok(map([
        ("code", code),
        ("signal", signal),
        ("stdout", stdout.into()),
        ("stderr", stderr.into()),
        ("timed_out", timed_out.into()),
        ("truncated", truncated.into()),
        ("duration_ms", i64::try_from(took.as_millis()).unwrap_or(i64::MAX).into()),
    ]))
}
