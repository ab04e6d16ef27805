//! The one binary: reads the configuration, chooses adapters, wires, runs, shuts down. Nothing else.
#![forbid(unsafe_code)]

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
