use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};

/// A path below a directory that it cannot leave: neither `..` nor a link leads out, however fast somebody swaps directories
/// for links meanwhile, since the kernel itself (`openat2`) or a walk over open directories finds the way.
#[derive(Clone, Debug)]
pub struct Rooted {
    /// None where it is not there: then nothing is.
    root: Option<Arc<Dir>>,
    /// Below the root; `.` is the root itself.
    path: PathBuf,
    shown: PathBuf,
}

impl Rooted {
    /// `path` below `root`.
    ///
    /// # Errors
    /// When the root cannot be opened; one that is not there can.
    pub fn new(root: &Path, path: &Path) -> io::Result<Self> {
        let dir = match Dir::open_ambient_dir(root, ambient_authority()) {
            Ok(dir) => Some(Arc::new(dir)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(cause),
        };
        let relative = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self { root: dir, path: relative.to_owned(), shown: root.join(path) })
    }

    fn root(&self) -> io::Result<&Dir> {
        self.root.as_deref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// As people write it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// Another file in the same directory.
    #[must_use]
    pub fn beside(&self, name: &str) -> Self {
        Self { root: self.root.clone(), path: self.path.with_file_name(name), shown: self.shown.with_file_name(name) }
    }

    pub fn exists(&self) -> bool {
        self.root().is_ok_and(|root| root.exists(&self.path))
    }

    /// Its length in bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.root()?.metadata(&self.path)?.len())
    }

    /// For reading. What is no regular file is refused: a pipe would hold up whoever opens it.
    pub fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = self.root()?.open_with(&self.path, &options)?.into_std();
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
    }

    /// All that is in it.
    ///
    /// # Errors
    /// With its length where it has more than `most` bytes.
    pub fn read(&self, most: u64) -> io::Result<Vec<u8>> {
        let file = self.open()?;
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes)?;
        if length > most || bytes.len() as u64 > most {
            return Err(io::Error::other(format!("it has {length} bytes, the most is {most}")));
        }
        Ok(bytes)
    }

    /// Of a directory.
    pub fn names(&self) -> io::Result<impl Iterator<Item = String>> {
        let entries = self.root()?.read_dir(&self.path)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()))
    }

    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        self.root()?.write(&self.path, content)
    }

    /// A new file, for writing.
    pub fn create_new(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        Ok(self.root()?.open_with(&self.path, &options)?.into_std())
    }

    /// Takes the place of `other`.
    pub fn rename_to(&self, other: &Self) -> io::Result<()> {
        self.root()?.rename(&self.path, other.root()?, &other.path)
    }

    /// Makes a directory and those above it.
    pub fn make_dirs(&self) -> io::Result<()> {
        self.root()?.create_dir_all(&self.path)
    }

    /// Removes a file, a link, or a directory with all that is in it. What is not there is no error.
    pub fn remove(&self) -> io::Result<()> {
        if self.path == Path::new(".") {
            return Err(io::Error::other("it is the directory that scripts work in"));
        }
        let outcome = self.root().and_then(|root| {
            let directory = root.symlink_metadata(&self.path)?.is_dir();
            if directory { root.remove_dir_all(&self.path) } else { root.remove_file(&self.path) }
        });
        match outcome {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn below(root: &Path, path: &str) -> Rooted {
        Rooted::new(root, Path::new(path)).unwrap()
    }

    #[test]
    fn a_path_stays_below_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("key"), "secret").unwrap();
        std::fs::write(root.join("sub/own"), "own").unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink("sub/own", root.join("inside")).unwrap();
        symlink("../outside/key", root.join("up")).unwrap();
        assert_eq!(below(&root, "sub/own").read(10).unwrap(), b"own");
        assert_eq!(below(&root, "inside").read(10).unwrap(), b"own", "a link may lead anywhere inside");
        assert_eq!(below(&root, "sub/../inside").read(10).unwrap(), b"own");
        for path in ["out/key", "up", "../outside/key", "sub/../../outside/key"] {
            assert!(below(&root, path).read(10).is_err(), "{path}");
            assert!(below(&root, path).write(b"changed").is_err(), "{path}");
            assert!(!below(&root, path).exists(), "{path}");
        }
        assert!(below(&root, "out/new").make_dirs().is_err());
        below(&root, "out").remove().unwrap();
        assert_eq!(std::fs::read_to_string(outside.join("key")).unwrap(), "secret", "the link went, not what it named");
        assert!(below(&root, "sub/own").read(2).unwrap_err().to_string().contains("3 bytes"));
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(below(&root, "pipe").open().is_err(), "and it does not wait for a writer");
        assert!(below(&root, "").remove().is_err());
        assert_eq!(below(&root, "").names().unwrap().count(), 4);
    }

    /// Whoever checks a path first and opens it then loses against this.
    #[test]
    fn no_swapped_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for place in [root.join("d"), outside.clone()] {
            std::fs::create_dir_all(&place).unwrap();
        }
        std::fs::write(root.join("d/file"), "inside").unwrap();
        std::fs::write(outside.join("file"), "outside").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (real, link, spare) = (root.join("d"), root.join("link"), root.join("spare"));
                // `d` is now the directory, now the link that leads out.
                while !over.load(Ordering::Relaxed) {
                    let _ = std::fs::rename(&real, &spare).and_then(|()| std::fs::rename(&link, &real));
                    let _ = std::fs::rename(&real, &link).and_then(|()| std::fs::rename(&spare, &real));
                }
            });
            let (mut reads, mut refusals) = (0_u32, 0_u32);
            let began = std::time::Instant::now();
            // Both have to be met, or nothing was raced.
            while (reads < 500 || refusals < 500) && began.elapsed().as_secs() < 20 {
                match below(&root, "d/file").read(100) {
                    Ok(text) => {
                        assert_eq!(text, b"inside");
                        reads += 1;
                    }
                    Err(_) => refusals += 1,
                }
                let _ = below(&root, "d/file").write(b"inside");
                let _ = below(&root, "d/new").create_new();
                let _ = below(&root, "d/new").remove();
                let _ = below(&root, "d/made/deep").make_dirs();
            }
            over.store(true, Ordering::Relaxed);
            assert!(reads > 0 && refusals > 0, "{reads} reads, {refusals} refusals");
        });
        let found: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, ["file"], "nothing was made outside");
        assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "outside");
    }
}
