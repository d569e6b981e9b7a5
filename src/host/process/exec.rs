#![expect(unsafe_code, reason = "setpriority has no safe wrapper")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, Uid, User, execve, initgroups, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use crate::spec::{ProcessSetup, Rlimit};

/// The name under which the engine's own program runs as the step between a spawn and the program itself.
pub const EXEC_NAME: &str = "machinist-exec";
const VARIABLE: &str = "MACHINIST_EXEC";
/// As shells do: the program could not be executed, or is not there.
const CANNOT_EXECUTE: u8 = 126;

/// What `posix_spawn` cannot do for a child. The child runs the engine's program under another name, which does this and
/// then becomes the real program: the same pid, no wrapper stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSetup {
    /// Files of cgroups into which the process writes itself.
    pub cgroups: Vec<PathBuf>,
    pub process: ProcessSetup,
}

#[derive(Serialize, Deserialize)]
struct Order {
    setup: ExecSetup,
    program: Vec<u8>,
}

pub(super) fn to_environment(setup: &ExecSetup, program: &CString) -> io::Result<CString> {
    let order = Order { setup: setup.clone(), program: program.as_bytes().to_vec() };
    Ok(CString::new(format!("{VARIABLE}={}", serde_json::to_string(&order)?))?)
}

/// Runs in the child; returns only when something failed, which its standard error then tells.
pub fn exec_main() -> ExitCode {
    let failure = match become_program() {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    eprintln!("machinist: {failure}");
    ExitCode::from(CANNOT_EXECUTE)
}

fn become_program() -> Result<std::convert::Infallible, String> {
    let order = std::env::var(VARIABLE).map_err(|_| format!("{EXEC_NAME} is run by the engine, not by hand"))?;
    let order: Order = serde_json::from_str(&order).map_err(|cause| format!("{VARIABLE} is broken: {cause}"))?;
    let mut env: Vec<(Vec<u8>, Vec<u8>)> =
        std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
    env.retain(|(name, _)| name != VARIABLE.as_bytes());
    let ExecSetup { cgroups, process: setup } = order.setup;
    let failed = |what: String| move |cause: &dyn std::fmt::Display| format!("{what}: {cause}");
    for file in &cgroups {
        std::fs::write(file, "0").map_err(|cause| failed(format!("cannot enter {}", file.display()))(&cause))?;
    }
    if let Some(score) = setup.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|cause| failed(format!("cannot set oom_score_adj to {score}"))(&cause))?;
    }
    for (limit, value) in &setup.rlimits {
        setrlimit(resource(*limit), value.soft, value.hard).map_err(|cause| {
            failed(format!("cannot set the limit {limit:?} to {}:{}", value.soft, value.hard))(&cause)
        })?;
    }
    if let Some(nice) = setup.nice {
        // SAFETY: no pointers.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
            return Err(failed(format!("cannot set nice to {nice}"))(&io::Error::last_os_error()));
        }
    }
    if let Some(mask) = setup.umask {
        umask(Mode::from_bits_truncate(mask));
    }
    change_user(&setup, &mut env)?;
    let program = CString::new(order.program).map_err(|cause| cause.to_string())?;
    let argv: Vec<CString> =
        std::env::args_os().skip(1).filter_map(|argument| CString::new(argument.into_vec()).ok()).collect();
    let env: Vec<CString> =
        env.into_iter().filter_map(|(name, value)| CString::new([name, b"=".to_vec(), value].concat()).ok()).collect();
    execve(&program, &argv, &env)
        .map_err(|cause| format!("{} cannot be executed: {cause}", OsStr::from_bytes(program.as_bytes()).display()))
}

/// Groups first: afterwards there is no right to set them.
fn change_user(setup: &ProcessSetup, env: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), String> {
    let user = setup.user.as_deref().map(find_user).transpose()?;
    let group = setup.group.as_deref().map(find_group).transpose()?;
    let gid = group.or(user.as_ref().map(|(_, gid, _)| *gid));
    if let Some(gid) = gid.filter(|gid| *gid != Gid::effective() || user.is_some()) {
        let groups = match &user {
            Some((_, _, Some(entry))) => {
                CString::new(entry.name.as_str()).map_or(Ok(()), |name| initgroups(&name, gid))
            }
            _ => setgroups(&[gid]),
        };
        let same = user.as_ref().is_some_and(|(uid, _, _)| *uid == Uid::effective());
        if !same {
            groups.map_err(|cause| format!("cannot set the groups: {cause}"))?;
            setgid(gid).map_err(|cause| format!("cannot become group {gid}: {cause}"))?;
        }
    }
    if let Some((uid, _, entry)) = user {
        if uid != Uid::effective() {
            setuid(uid).map_err(|cause| format!("cannot become user {uid}: {cause}"))?;
        }
        if let Some(entry) = entry {
            let home = entry.dir.into_os_string().into_vec();
            for (name, value) in
                [("USER", entry.name.clone().into_bytes()), ("LOGNAME", entry.name.into_bytes()), ("HOME", home)]
            {
                env.retain(|(known, _)| known != name.as_bytes());
                env.push((name.as_bytes().to_vec(), value));
            }
        }
    }
    Ok(())
}

fn find_user(text: &str) -> Result<(Uid, Gid, Option<User>), String> {
    let entry = match text.parse::<u32>() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    match (entry, text.parse::<u32>()) {
        (Ok(Some(entry)), _) => Ok((entry.uid, entry.gid, Some(entry))),
        // A number needs no entry: containers run as any.
        (_, Ok(number)) => Ok((Uid::from_raw(number), Gid::from_raw(number), None)),
        (Ok(None), _) => Err(format!("there is no user {text:?}")),
        (Err(cause), _) => Err(format!("the user {text:?} cannot be looked up: {cause}")),
    }
}

fn find_group(text: &str) -> Result<Gid, String> {
    if let Ok(number) = text.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(format!("there is no group {text:?}")),
        Err(cause) => Err(format!("the group {text:?} cannot be looked up: {cause}")),
    }
}

const fn resource(limit: Rlimit) -> Resource {
    match limit {
        Rlimit::As => Resource::RLIMIT_AS,
        Rlimit::Core => Resource::RLIMIT_CORE,
        Rlimit::Cpu => Resource::RLIMIT_CPU,
        Rlimit::Data => Resource::RLIMIT_DATA,
        Rlimit::Fsize => Resource::RLIMIT_FSIZE,
        Rlimit::Memlock => Resource::RLIMIT_MEMLOCK,
        Rlimit::Nofile => Resource::RLIMIT_NOFILE,
        Rlimit::Nproc => Resource::RLIMIT_NPROC,
        Rlimit::Stack => Resource::RLIMIT_STACK,
    }
}
