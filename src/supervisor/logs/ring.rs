use std::collections::VecDeque;

use super::{LogLine, LogStream};
use crate::base::{Name, Timestamp};

/// Recent lines in one buffer of bytes that is reused: keeping a line allocates nothing.
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
    next_seq: u64,
    first_seq: u64,
}

/// What stands before each line.
#[derive(Clone, Copy)]
struct Header {
    len: u32,
    at: u64,
    incarnation: u64,
    stream: LogStream,
}

const HEADER: usize = 21;

impl Header {
    fn write(self, to: &mut VecDeque<u8>) {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.at.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[20] = match self.stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
        };
        // From a slice it is one copy.
        to.extend(&bytes);
    }

    fn read(from: &VecDeque<u8>, at: usize) -> Self {
        let mut header = [0; HEADER];
        copy(from, at, &mut header);
        let (len, rest) = header.split_at(4);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        Self {
            len: u32::from_le_bytes(len.try_into().unwrap_or_default()),
            at: number(&rest[..8]),
            incarnation: number(&rest[8..16]),
            stream: if rest[16] == 1 { LogStream::Stdout } else { LogStream::Stderr },
        }
    }

    fn size(self) -> usize {
        HEADER + self.len as usize
    }
}

impl Ring {
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity, next_seq: 1, first_seq: 1 }
    }

    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.make_room(0);
        self.bytes.shrink_to(capacity);
    }

    /// The sequence number of the newest line, 0 when there was none.
    pub fn latest(&self) -> u64 {
        self.next_seq - 1
    }

    pub fn push(&mut self, at: Timestamp, incarnation: u64, stream: LogStream, line: &[u8]) {
        // One line longer than the ring is kept as far as it fits.
        let line = &line[..line.len().min(self.capacity.saturating_sub(HEADER))];
        self.make_room(HEADER + line.len());
        self.next_seq += 1;
        if self.capacity < HEADER {
            self.first_seq = self.next_seq;
            return;
        }
        if self.bytes.capacity() < self.capacity && self.bytes.len() + HEADER + line.len() > self.bytes.capacity() {
            let wanted = (self.bytes.capacity() * 2).max(4096).max(self.bytes.len() + HEADER + line.len());
            self.bytes.reserve_exact(wanted.min(self.capacity) - self.bytes.len());
        }
        let len = u32::try_from(line.len()).unwrap_or(u32::MAX);
        Header { len, at: at.as_millis(), incarnation, stream }.write(&mut self.bytes);
        self.bytes.extend(line);
    }

    /// The newest `limit` lines after `after` that `wanted` takes, oldest first.
    pub fn lines(
        &self,
        service: &Name,
        after: u64,
        limit: usize,
        wanted: &mut dyn FnMut(LogStream, &[u8], Timestamp) -> bool,
    ) -> Vec<LogLine> {
        let mut lines: VecDeque<LogLine> = VecDeque::new();
        let (mut at, mut seq) = (0, self.first_seq);
        let mut text = Vec::new();
        while at < self.bytes.len() {
            let header = Header::read(&self.bytes, at);
            if seq > after {
                text.resize(header.len as usize, 0);
                copy(&self.bytes, at + HEADER, &mut text);
                let written = Timestamp::from_millis(header.at);
                if wanted(header.stream, &text, written) {
                    if lines.len() == limit {
                        lines.pop_front();
                    }
                    lines.push_back(LogLine {
                        seq,
                        at: written,
                        service: service.clone(),
                        incarnation: header.incarnation,
                        stream: header.stream,
                        text: String::from_utf8_lossy(&text).into_owned(),
                    });
                }
            }
            at += header.size();
            seq += 1;
        }
        lines.into_iter().take(limit).collect()
    }

    /// Old lines go many at a time: taking them out one by one would cost more than keeping them.
    fn make_room(&mut self, wanted: usize) {
        if self.bytes.len() + wanted <= self.capacity {
            return;
        }
        let enough = (self.bytes.len() + wanted - self.capacity).max(self.capacity / 16);
        let mut freed = 0;
        while freed < enough && freed < self.bytes.len() {
            freed += Header::read(&self.bytes, freed).size();
            self.first_seq += 1;
        }
        self.bytes.drain(..freed);
    }
}

fn copy(from: &VecDeque<u8>, at: usize, to: &mut [u8]) {
    let (head, tail) = from.as_slices();
    let from_head = head.len().saturating_sub(at).min(to.len());
    if from_head > 0 {
        to[..from_head].copy_from_slice(&head[at..at + from_head]);
    }
    let begin = at.saturating_sub(head.len());
    let left = to.len() - from_head;
    to[from_head..].copy_from_slice(&tail[begin..begin + left]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_ring_keeps_the_newest_lines_within_its_bytes(
            lines in prop::collection::vec(prop::collection::vec(32u8..127, 0..60), 0..200), capacity in 100usize..2000, after in 0u64..220,
        ) {
            let name = Name::new("web").unwrap();
            let mut ring = Ring::new(capacity);
            for (number, line) in lines.iter().enumerate() {
                let stream = if number % 2 == 0 { LogStream::Stdout } else { LogStream::Stderr };
                ring.push(Timestamp::from_millis(number as u64), 7, stream, line);
                prop_assert!(ring.bytes.len() <= capacity && ring.bytes.capacity() <= capacity.max(4096));
            }
            let kept = ring.lines(&name, 0, usize::MAX, &mut |_, _, _| true);
            let missing = lines.len() - kept.len();
            for (index, line) in kept.iter().enumerate() {
                prop_assert_eq!(line.seq, (missing + index + 1) as u64);
                prop_assert_eq!(line.text.as_bytes(), &lines[missing + index][..]);
                prop_assert_eq!(line.at.as_millis(), (missing + index) as u64);
            }
            let used: usize = lines.iter().rev().take(kept.len() + 1).map(|line| line.len() + HEADER).sum();
            prop_assert!(missing == 0 || used > capacity - capacity / 16 - 81, "room for more");
            let newer = ring.lines(&name, after, 5, &mut |_, _, _| true);
            let expected: Vec<u64> = kept.iter().map(|line| line.seq).filter(|seq| *seq > after).collect();
            let expected = &expected[expected.len().saturating_sub(5)..];
            prop_assert_eq!(newer.iter().map(|line| line.seq).collect::<Vec<_>>(), expected);
        }
    }
}
