#![expect(unsafe_code, reason = "madvise and malloc_trim have no safe wrappers")]

/// Gives back the memory that only the start needed: pages of code that will not run again, and what was allocated and
/// freed. What is needed after all comes back from the page cache.
///
/// Only pages that equal their file are given back: mappings without a single page of their own.
pub fn give_back() {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (begin, end) in clean_file_mappings(&maps) {
        // SAFETY: the range is a private file mapping of this process that is not writable and has no page that differs from
        // its file, so that every page dropped is read again from there when it is needed.
        unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_DONTNEED) };
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments that could be wrong.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The ranges of private, read-only file mappings that hold only pages of their file.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        // The first line of a mapping begins with its range, all others with a name and a colon.
        if line.split_ascii_whitespace().next().is_some_and(|word| !word.ends_with(':')) {
            current = candidate(line);
        } else if let Some(range) = current
            && let Some(rest) = line.strip_prefix("Anonymous:")
        {
            if rest.split_ascii_whitespace().next() == Some("0") {
                found.push(range);
            }
            current = None;
        }
    }
    found
}

/// The range of a mapping by its first line, when it is one to look at.
fn candidate(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (begin, end) = fields.next()?.split_once('-')?;
    let range = (usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = fields.next()?;
    let path = fields.nth(3).unwrap_or_default();
    let wanted = matches!(permissions, "r-xp" | "r--p") && path.starts_with('/');
    wanted.then_some(range)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_clean_file_pages_are_chosen() {
        let smaps = "\
            1000-2000 r--p 00000000 fe:00 1 /bin/x\nRss: 4 kB\nAnonymous:             0 kB\n\
            2000-4000 r-xp 00000000 fe:00 1 /bin/x\nAnonymous:             0 kB\n\
            4000-5000 r--p 00000000 fe:00 1 /bin/x\nAnonymous:             4 kB\n\
            5000-6000 rw-p 00000000 fe:00 1 /bin/x\nAnonymous:             0 kB\n\
            6000-7000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n\
            7000-8000 r--s 00000000 fe:00 1 /tmp/shared\nAnonymous:             0 kB\n";
        assert_eq!(super::clean_file_mappings(smaps), [(0x1000, 0x2000), (0x2000, 0x4000)]);
    }

    #[test]
    fn the_process_lives_on() {
        super::give_back();
        assert_eq!(format!("{:?}", vec![1, 2]), "[1, 2]");
    }
}
