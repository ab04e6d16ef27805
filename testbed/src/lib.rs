//! Real servers on free loopback ports with temporary data: started, killed, frozen, cut, and never left behind.
#![forbid(unsafe_code)]
