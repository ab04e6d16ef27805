//! The append side allocates nothing for a record: permit, append, waiting, acknowledgement.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use queue::{DiskOptions, NewRecord, Queue};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator; the counter is a plain thread-local cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_append_allocates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions::new(directory.path(), Arc::new(|| 1_000));
    let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
    let topic = queue.topic("orders").now_or_never().unwrap().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let payload = [7; 200];
    for round in 0..200 {
        let before = ALLOCATIONS.with(Cell::get);
        let permit = topic.try_permit(payload.len()).unwrap();
        let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload: &payload };
        let mut append = topic.append(permit, record);
        let mut polls = 0;
        loop {
            polls += 1;
            match Pin::new(&mut append).poll(&mut context) {
                Poll::Ready(outcome) => {
                    outcome.unwrap();
                    break;
                }
                Poll::Pending => std::thread::yield_now(),
            }
        }
        let allocated = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(allocated, 0, "in round {round}, after {polls} polls");
    }
}
