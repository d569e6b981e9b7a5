use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::DirEntryExt;

/// One process of `/proc`.
#[derive(Clone, Debug)]
pub struct Row {
    pub pid: u32,
    pub name: String,
    pub parent: u32,
    pub session: u32,
    pub zombie: bool,
    /// User and system time, that of children it has waited for included.
    pub cpu_ticks: u64,
    pub threads: u32,
    /// When it began, in ticks since boot: tells two processes with one number apart.
    pub begun_ticks: u64,
    pub resident_pages: u64,
}

/// Every process there is, in the order of their numbers.
pub fn snapshot() -> Vec<Row> {
    listing().into_iter().filter_map(|entry| row(entry.pid)).collect()
}

/// A process as the directory `/proc` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub pid: u32,
    /// Of its own directory. The kernel makes them up one after the other, so another process with the same number has another.
    pub inode: u64,
}

/// Every process there is, in the order of their numbers, by one read of `/proc`.
pub fn listing() -> Vec<Entry> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let entry =
        |entry: fs::DirEntry| Some(Entry { pid: entry.file_name().to_str()?.parse().ok()?, inode: entry.ino() });
    let mut found: Vec<Entry> = entries.flatten().filter_map(entry).collect();
    found.sort_unstable_by_key(|entry| entry.pid);
    found
}

pub fn row(pid: u32) -> Option<Row> {
    with_file(pid, "stat", |text| parse(pid, text))?
}

/// What `look` makes of a small file of a process. The kernel writes such a file whole into one read, which takes half of the
/// calls that reading to the end does: all processes are asked at each scrape.
pub fn with_file<T>(pid: u32, name: &str, look: impl FnOnce(&str) -> T) -> Option<T> {
    let mut buffer = [0; 4096];
    let mut file = File::open(format!("/proc/{pid}/{name}")).ok()?;
    let length = file.read(&mut buffer).ok()?;
    let mut rest = Vec::new();
    let bytes = if length < buffer.len() {
        &buffer[..length]
    } else {
        rest.extend_from_slice(&buffer);
        file.read_to_end(&mut rest).ok()?;
        &rest
    };
    // A name may hold anything.
    Some(look(&String::from_utf8_lossy(bytes)))
}

fn parse(pid: u32, text: &str) -> Option<Row> {
    // The name stands in parentheses and may hold anything, parentheses too.
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    // Numbered as in proc(5), where the state is the third; they are read in their order.
    let (mut fields, mut next) = (rest.split_ascii_whitespace(), 3);
    let mut field = |number: usize| {
        let skipped = number - next;
        next = number + 1;
        fields.nth(skipped)
    };
    let zombie = matches!(field(3)?, "Z" | "X");
    let mut number = |index: usize| field(index)?.parse::<u64>().ok();
    let small = |value: u64| u32::try_from(value).ok();
    Some(Row {
        pid,
        name,
        zombie,
        parent: small(number(4)?)?,
        session: small(number(6)?)?,
        cpu_ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        threads: small(number(20)?)?,
        begun_ticks: number(22)?,
        resident_pages: number(24)?,
    })
}

/// What `ps` shows of its arguments, cut short.
pub fn command(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim_end().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_may_hold_anything() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 5 6 20 0 3 0 555 1000 42 0";
        let row = super::parse(7, text).unwrap();
        assert_eq!((row.name.as_str(), row.parent, row.session, row.zombie), ("a) b (c)", 1, 7, false));
        assert_eq!((row.cpu_ticks, row.threads, row.begun_ticks), (34, 3, 555));
        assert_eq!(row.resident_pages, 42);
        assert!(super::parse(7, "7 (x").is_none());
        assert!(super::parse(7, "7 (x) S 1 7 7").is_none());
    }

    #[test]
    fn this_process_is_there() {
        let me = std::process::id();
        assert!(super::snapshot().iter().any(|row| row.pid == me && !row.zombie));
    }
}
