#![expect(unsafe_code, reason = "an allocator cannot be written without")]
//! The engine's allocator: the system's, which counts what each thread holds. What a script hoards is known at every step
//! of it, and the script ends before the engine does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back. What other threads give back for it is not seen.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// Bytes that the current thread has allocated less those that it has freed.
pub fn held_by_thread() -> isize {
    HELD.with(Cell::get)
}

/// What another thread left allocated counts as the current one's from now on.
pub fn take_over(bytes: isize) {
    HELD.with(|held| held.set(held.get().wrapping_add(bytes)));
}

fn count(bytes: usize, sign: isize) {
    // No allocation is larger than isize::MAX.
    HELD.with(|held| held.set(held.get().wrapping_add(bytes.cast_signed() * sign)));
}

// SAFETY: everything is handed on to the system's allocator as it came. A thread-local of a number that is made of a
// constant needs neither memory nor a destructor, so counting is allowed here and at any time of a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = unsafe { System.alloc(layout) };
        if !taken.is_null() {
            count(layout.size(), 1);
        }
        taken
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let taken = unsafe { System.alloc_zeroed(layout) };
        if !taken.is_null() {
            count(layout.size(), 1);
        }
        taken
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) };
        count(layout.size(), -1);
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let moved = unsafe { System.realloc(pointer, layout, size) };
        if !moved.is_null() {
            count(layout.size(), -1);
            count(size, 1);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_holds_is_counted() {
        std::thread::spawn(|| {
            let before = held_by_thread();
            let mut bytes = vec![0_u8; 1_000_000];
            assert!(held_by_thread() - before >= 1_000_000);
            bytes.reserve_exact(2_000_000);
            assert!((3_000_000..3_100_000).contains(&(held_by_thread() - before)));
            bytes.truncate(10);
            bytes.shrink_to_fit();
            assert!(held_by_thread() - before < 1_000);
            drop(bytes);
            assert_eq!(held_by_thread(), before);
        })
        .join()
        .unwrap();
    }
}
