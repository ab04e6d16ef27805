//! Who may try: the user's token, the question, the pass and the limits. From memory alone: a refusal costs no I/O.

pub mod auth;
pub mod challenge;
pub mod limits;
pub mod pass;
