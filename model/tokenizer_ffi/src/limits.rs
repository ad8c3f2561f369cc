//! Bounded memory and time for code that came with a model.
//!
//! A template can double a string a hundred times in a few hundred instructions, so counting instructions does not bound its
//! memory. It runs on a thread of its own whose allocations are counted; the one that goes over the budget never returns: the
//! thread reports and sleeps for ever, keeping at most its budget. (An allocator may not unwind, and returning null aborts the
//! process.)

use std::alloc::{GlobalAlloc, Layout};
use std::any::Any;
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;

thread_local! {
    // Bytes left; None: not counted.
    static BUDGET: Cell<Option<isize>> = const { Cell::new(None) };
    static REPORT: Cell<*const Report> = const { Cell::new(std::ptr::null()) };
}

// Tokenizing is a third allocation with the C library's.
static INNER: MiMalloc = MiMalloc;

pub struct MeteredAllocator;

#[inline]
fn charge(bytes: isize) {
    let _ = BUDGET.try_with(|budget| {
        if let Some(left) = budget.get() {
            budget.set(Some(left - bytes));
            if left < bytes {
                out_of_budget(budget);
            }
        }
    });
}

#[cold]
fn out_of_budget(budget: &Cell<Option<isize>>) -> ! {
    budget.set(None);
    REPORT.with(|report| unsafe { (*report.get()).finish(State::OutOfMemory) });
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

unsafe impl GlobalAlloc for MeteredAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size() as isize);
        INNER.alloc(layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size() as isize);
        INNER.alloc_zeroed(layout)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        charge(-(layout.size() as isize));
        INNER.dealloc(pointer, layout)
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        charge(size as isize - layout.size() as isize);
        INNER.realloc(pointer, layout, size)
    }
}

enum State {
    Running,
    Done,
    OutOfMemory,
}

struct Report {
    state: Mutex<State>,
    changed: Condvar,
}

impl Report {
    fn finish(&self, state: State) {
        *self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = state;
        self.changed.notify_all();
    }
}

pub enum Overrun {
    Memory,
    Time,
    Panic(String),
}

/// Runs `body` within `budget_bytes` of allocations and `limit` of time. After an overrun its thread stays behind, asleep or
/// still working: do not run such a body again.
pub fn run_bounded<T: Send + 'static>(
    budget_bytes: usize,
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Overrun> {
    let report = Arc::new(Report { state: Mutex::new(State::Running), changed: Condvar::new() });
    let theirs = Arc::clone(&report);
    let worker = thread::Builder::new()
        .name("template".into())
        .stack_size(64 << 20)
        .spawn(move || {
            REPORT.with(|cell| cell.set(Arc::as_ptr(&theirs)));
            BUDGET.with(|budget| budget.set(Some(budget_bytes as isize)));
            let result = catch_unwind(AssertUnwindSafe(body));
            BUDGET.with(|budget| budget.set(None));
            theirs.finish(State::Done);
            result
        })
        .map_err(|error| Overrun::Panic(format!("start a thread: {error}")))?;

    let deadline = Instant::now() + limit;
    let mut state = report.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    while matches!(*state, State::Running) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Overrun::Time);
        }
        state = report.changed.wait_timeout(state, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
    }
    if matches!(*state, State::OutOfMemory) {
        return Err(Overrun::Memory);
    }
    drop(state);
    let joined = worker.join().and_then(|result| result);
    joined.map_err(|panic| Overrun::Panic(panic_message(panic.as_ref())))
}

pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text.to_string()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "panicked".to_string()
    }
}
