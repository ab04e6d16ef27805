//! A crowd from outside: open-loop arrivals against a target, then an audit of what it was promised.
#![forbid(unsafe_code)]

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
