//! The option `retry`.

use crate::base::Seconds;
use crate::host::http::{RetryOn, RetryPolicy};
use crate::script::call::{ScriptResult, error};
use crate::script::options::Options;
use crate::script::prelude::*;

/// `3`, `false`, or `#{ max, on, unsafe, initial, longest, patience }`.
pub(super) fn retry(value: &Dynamic) -> ScriptResult<RetryPolicy> {
    let mut policy = RetryPolicy::default();
    let wrong =
        || error("retry: must be a number of tries, false, or #{ max, on, unsafe, initial, longest, patience }");
    if let Ok(max) = value.as_int() {
        policy.max = u32::try_from(max).map_err(|_| wrong())?;
        return Ok(policy);
    }
    if value.as_bool() == Ok(false) {
        policy.max = 0;
        return Ok(policy);
    }
    let mut options = Options::new("retry", value.clone().try_cast::<Map>().ok_or_else(wrong)?);
    policy.max = options.count("max")?.unwrap_or(policy.max);
    policy.unsafe_too = options.flag("unsafe")?.unwrap_or(false);
    if let Some(initial) = options.duration("initial")? {
        policy.backoff.initial = Seconds::new(initial);
    }
    if let Some(longest) = options.duration("longest")? {
        policy.backoff.max = Seconds::new(longest);
    }
    if let Some(patience) = options.duration("patience")? {
        policy.patience = patience;
    }
    if let Some(on) = options.array("on")? {
        let read = |value: &Dynamic| match value.as_int() {
            Ok(status) => u16::try_from(status).ok().map(RetryOn::Status),
            Err(_) => match value.to_string().as_str() {
                "connect" => Some(RetryOn::Connect),
                "timeout" => Some(RetryOn::Timeout),
                _ => None,
            },
        };
        let on: Option<Vec<RetryOn>> = on.iter().map(read).collect();
        policy.on = Some(on.ok_or_else(|| options.wrong("on", "holds statuses, \"connect\" and \"timeout\""))?);
    }
    options.finish()?;
    Ok(policy)
}
