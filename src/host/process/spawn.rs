#![expect(unsafe_code, reason = "posix_spawn has no safe wrapper that makes a session; see the comment on `spawn`")]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access, pipe2};

use std::sync::Arc;

use super::exec::{self, ExecSetup};
use super::{Lineage, MARK};

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct SpawnSpec {
    /// The program and its arguments; a program without `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    pub cwd: Option<PathBuf>,
    /// The whole environment; the mark is added.
    pub env: Vec<(OsString, OsString)>,
    pub stdin: Stdin,
    /// Tells whose process this is: `<machine>/<engine incarnation>/<owner>/<n>`.
    pub mark: String,
    /// Programs that may outlive it, by the name that `ps` shows.
    pub detach: Arc<[String]>,
    /// What has to happen in the process before the program runs; costs an exec more.
    pub setup: Option<ExecSetup>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdin {
    #[default]
    Null,
    Pipe,
}

/// A started process and the engine's ends of its pipes.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    pub lineage: Lineage,
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// The engine's ends.
pub(super) struct Pipes {
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Where `program` lies, looked up as an exec in `cwd` with this `PATH` would.
pub fn find_program(program: &str, cwd: Option<&Path>, path: Option<&OsStr>) -> Option<PathBuf> {
    let executable = |candidate: &Path| candidate.is_file() && access(candidate, AccessFlags::X_OK).is_ok();
    if program.contains('/') {
        let full = cwd.map_or_else(|| PathBuf::from(program), |cwd| cwd.join(program));
        return executable(&full).then_some(full);
    }
    let default = OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    std::env::split_paths(path.unwrap_or(default)).map(|dir| dir.join(program)).find(|full| executable(full))
}

/// Starts a process in a session of its own, with default signal dispositions, an empty signal mask, and nothing open but
/// its three standard streams (everything the engine opens is closed on exec).
///
/// `posix_spawn` and not fork: the cost of a fork grows with the engine's memory, and a forked child of a program with
/// threads may only do what is safe in a signal handler.
pub(super) fn spawn(spec: &SpawnSpec) -> io::Result<(u32, Pipes)> {
    let path = spec.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let program = spec.argv.first().map_or("", String::as_str);
    let Some(program) = find_program(program, spec.cwd.as_deref(), path) else {
        return Err(Errno::ENOENT.into());
    };
    let mut argv = spec.argv.iter().map(|arg| c_string(OsStr::new(arg))).collect::<io::Result<Vec<_>>>()?;
    let mut env = environment(spec)?;
    let mut program = c_string(program.as_os_str())?;
    if let Some(setup) = &spec.setup {
        env.push(exec::to_environment(setup, &program)?);
        program = c_string(OsStr::new("/proc/self/exe"))?;
        argv.insert(0, c_string(OsStr::new(exec::EXEC_NAME))?);
    }
    let cwd = spec.cwd.as_ref().map(|cwd| c_string(cwd.as_os_str())).transpose()?;

    let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC)?;
    let stdin = match spec.stdin {
        Stdin::Null => None,
        Stdin::Pipe => Some(pipe2(OFlag::O_CLOEXEC)?),
    };
    let null = c_string(OsStr::new("/dev/null"))?;

    let mut actions = FileActions::new()?;
    match &stdin {
        Some((child_stdin, _)) => actions.dup2(child_stdin.as_raw_fd(), 0)?,
        None => actions.open(0, &null)?,
    }
    actions.dup2(child_stdout.as_raw_fd(), 1)?;
    actions.dup2(child_stderr.as_raw_fd(), 2)?;
    if let Some(cwd) = &cwd {
        actions.chdir(cwd)?;
    }
    let attributes = Attributes::new_session()?;
    let argv_pointers = pointers(&argv);
    let env_pointers = pointers(&env);
    let mut pid: libc::pid_t = 0;
    // SAFETY: all pointers refer to values that live until after the call; both arrays end with a null pointer; actions
    // and attributes are initialised.
    let result = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv_pointers.as_ptr(),
            env_pointers.as_ptr(),
        )
    };
    check(result)?;
    let pid = u32::try_from(pid).map_err(|_| io::Error::other("posix_spawn gave no process id"))?;
    Ok((pid, Pipes { stdin: stdin.map(|(_, ours)| ours), stdout, stderr }))
}

fn environment(spec: &SpawnSpec) -> io::Result<Vec<CString>> {
    let mark = (OsString::from(MARK), OsString::from(&spec.mark));
    let others = spec.env.iter().filter(|(name, _)| name != MARK);
    let mut env = Vec::with_capacity(spec.env.len() + 1);
    for (name, value) in others.chain([&mark]) {
        let mut entry = name.as_bytes().to_vec();
        entry.push(b'=');
        entry.extend_from_slice(value.as_bytes());
        env.push(CString::new(entry)?);
    }
    Ok(env)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

struct FileActions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    fn dup2(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: initialised in `new`.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from, to) })
    }

    fn open(&mut self, fd: RawFd, path: &CString) -> io::Result<()> {
        // SAFETY: initialised in `new`; the path is copied by the call.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(self.0.as_mut_ptr(), fd, path.as_ptr(), libc::O_RDONLY, 0)
        })
    }

    fn chdir(&mut self, path: &CString) -> io::Result<()> {
        // SAFETY: initialised in `new`; the path is copied by the call.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(self.0.as_mut_ptr(), path.as_ptr()) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

/// Rust programs ignore SIGPIPE, whoever started the engine may have ignored others.
const MAY_BE_IGNORED: [libc::c_int; 12] = [
    libc::SIGPIPE,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCHLD,
    libc::SIGALRM,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

impl Attributes {
    fn new_session() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut this = Self(attributes);
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: every set is initialised by sigemptyset or sigfillset before it is used; the attributes are
        // initialised above.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(this.0.as_mut_ptr(), set.as_ptr()))?;
            libc::sigemptyset(set.as_mut_ptr());
            // What is caught goes back to its default by itself; these may be ignored, which an exec would keep.
            for signal in MAY_BE_IGNORED {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            check(libc::posix_spawnattr_setsigdefault(this.0.as_mut_ptr(), set.as_ptr()))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
            let flags = libc::c_short::try_from(flags).unwrap_or_default() | libc::POSIX_SPAWN_SETSID;
            check(libc::posix_spawnattr_setflags(this.0.as_mut_ptr(), flags))?;
        }
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new_session`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}
