//! Whose connection ends when somebody new comes and every place is taken. A choice over plain values: ends nothing itself.
//!
//! Who holds most connections loses one first: the oldest incomplete one (no whole request read yet, or a body that has not
//! come), else the one that has rested longest. Between holders of equally many the oldest goes. An answer under way is
//! spared. When somebody new has waited, those that have rested for a moment only go as well; and when nothing else is left to
//! end, the oldest event stream of who holds most streams.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::http::client::Holder;

/// Most connections that one look at all of them chooses.
pub(super) const CHOSEN_MAX: usize = 256;
/// What is incomplete, or between requests, for a shorter time is spared: the rest, or the next request, is probably on its
/// way. The sweep's clock is coarse, so in truth it may be half of that.
const YOUNG_MS: u64 = 500;
/// An answer whose reader has taken nothing for so long does not count as under way.
const STALLED_MS: u64 = 2_000;
/// Nor does one whose reader has not taken all of it in so long, nor all of those that it asked for meanwhile.
const ANSWER_MS: u64 = 10_000;

/// What a connection is, as far as its place is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// It owes the rest of a request.
    Incomplete,
    /// Between requests, or its reader reads too slowly.
    Resting,
    /// It owes the rest of a request, but not for long yet.
    Hopeful,
    /// Between requests, but not for long yet.
    Pausing,
    /// Events are written to it.
    Stream,
    /// A handler or an answer is at work.
    Working,
}

impl Claim {
    pub(super) fn incomplete(age_ms: u64) -> Self {
        if age_ms < YOUNG_MS { Self::Hopeful } else { Self::Incomplete }
    }

    pub(super) fn resting(age_ms: u64) -> Self {
        if age_ms < YOUNG_MS { Self::Pausing } else { Self::Resting }
    }

    pub(super) fn answering(age_ms: u64, silent_ms: u64) -> Self {
        if age_ms < ANSWER_MS && silent_ms < STALLED_MS { Self::Working } else { Self::Resting }
    }
}

/// One connection among those that hold the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) holder: Holder,
    pub(super) claim: Claim,
    /// When it became what it is.
    pub(super) since_ms: u64,
}

/// The numbers of those that are to go, at most [`CHOSEN_MAX`], in this order. `held` lists all, oldest first; `is_urgent`:
/// somebody has waited for a while.
pub(super) fn choose(held: &[Held], is_urgent: bool) -> Vec<usize> {
    let mut holds: HashMap<Holder, usize> = HashMap::new();
    for one in held.iter().filter(|one| one.holder != Holder::NOBODY) {
        *holds.entry(one.holder).or_default() += 1;
    }
    let holds = |holder: Holder| if holder == Holder::NOBODY { 1 } else { holds[&holder] };

    let chosen = in_turn(held, &[Claim::Incomplete, Claim::Resting], holds);
    if !chosen.is_empty() || !is_urgent {
        return chosen;
    }
    // A client that asks for something twice a second would otherwise keep its place for ever.
    let chosen = in_turn(held, &[Claim::Pausing], holds);
    if !chosen.is_empty() || held.iter().any(|one| one.claim == Claim::Hopeful) {
        return chosen;
    }
    oldest_stream(held).into_iter().collect()
}

/// Those of one of these claims, who holds most first.
fn in_turn(held: &[Held], claims: &[Claim], holds: impl Fn(Holder) -> usize) -> Vec<usize> {
    // Each holder's in the order in which they would go; one after the other they are a run.
    let mut may_go: Vec<_> = (0..held.len())
        .filter(|at| claims.contains(&held[*at].claim))
        .map(|at| (held[at].holder.0, held[at].claim, held[at].since_ms, at))
        .collect();
    may_go.sort_unstable();
    let is_nobody = |place: usize| may_go[place].0 == Holder::NOBODY.0;
    let starts_a_run =
        |place: usize| place == 0 || is_nobody(place) || may_go[place].0 != may_go[place - 1].0;

    let entry = |holds: usize, place: usize| (holds, Reverse((may_go[place].2, may_go[place].3)), place);
    let mut next: BinaryHeap<_> = (0..may_go.len())
        .filter(|place| starts_a_run(*place))
        .map(|place| entry(holds(Holder(may_go[place].0)), place))
        .collect();
    let mut chosen = Vec::new();
    while let Some((held_now, _, place)) = next.pop() {
        chosen.push(may_go[place].3);
        if chosen.len() == CHOSEN_MAX {
            break;
        }
        if place + 1 < may_go.len() && !starts_a_run(place + 1) {
            next.push(entry(held_now - 1, place + 1));
        }
    }
    chosen
}

fn oldest_stream(held: &[Held]) -> Option<usize> {
    let is_stream = |at: &usize| held[*at].claim == Claim::Stream;
    let mut streams: HashMap<Holder, usize> = HashMap::new();
    for at in (0..held.len()).filter(is_stream) {
        *streams.entry(held[at].holder).or_default() += 1;
    }
    let of = |holder: Holder| if holder == Holder::NOBODY { 1 } else { streams[&holder] };
    (0..held.len())
        .filter(is_stream)
        .min_by_key(|at| (Reverse(of(held[*at].holder)), held[*at].since_ms, *at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn held(holder: &str, claim: Claim, since_ms: u64) -> Held {
        let holder = match holder {
            "" => Holder::NOBODY,
            address => Holder::of(address.parse::<IpAddr>().expect("an address")),
        };
        Held { holder, claim, since_ms }
    }

    #[test]
    fn who_holds_most_loses_first_until_all_hold_the_same() {
        use Claim::{Hopeful, Incomplete, Resting, Working};
        let all = [
            held("192.0.2.1", Incomplete, 1),
            held("192.0.2.2", Resting, 2),
            held("192.0.2.2", Incomplete, 5),
            held("192.0.2.2", Incomplete, 4),
            held("192.0.2.2", Hopeful, 9),
            held("192.0.2.3", Working, 3),
            held("192.0.2.3", Working, 3),
            held("192.0.2.3", Incomplete, 8),
        ];
        // .2 holds four, then three as .3 does: the older goes. In the end .1, which is the oldest of all.
        assert_eq!(choose(&all, true), [3, 2, 7, 1, 0]);
    }

    #[test]
    fn connections_of_nobody_in_particular_count_one_each() {
        use Claim::{Incomplete, Resting};
        let all = [
            held("", Incomplete, 1),
            held("", Resting, 2),
            held("", Incomplete, 3),
            held("2001:db8:0:1::1", Incomplete, 7),
            held("2001:db8:0:1::2", Incomplete, 8),
        ];
        assert_eq!(choose(&all, false), [3, 0, 1, 2, 4]);
    }

    #[test]
    fn streams_end_when_nothing_else_can() {
        use Claim::{Hopeful, Incomplete, Pausing, Stream, Working};
        let streams = [
            held("192.0.2.1", Stream, 1),
            held("192.0.2.2", Stream, 3),
            held("192.0.2.2", Stream, 2),
            held("192.0.2.3", Working, 0),
        ];
        assert_eq!(choose(&streams, true), [2]);
        assert_eq!(choose(&streams, false), [0; 0]);
        // Who holds most connections has no stream: the room that streams take is with somebody else.
        let working = held("192.0.2.5", Working, 0);
        assert_eq!(choose(&[&[working; 3], &streams[..]].concat(), true), [5]);
        let nobodys = [held("", Stream, 5), held("", Stream, 6), held("", Stream, 7)];
        assert_eq!(choose(&[&streams[..], &nobodys].concat(), true), [2], "they count one each");
        let with = |claim| [&streams[..], &[held("192.0.2.4", claim, 9)]].concat();
        assert_eq!(choose(&with(Incomplete), true), [4]);
        assert_eq!(choose(&with(Hopeful), true), [0; 0], "it will be old enough in a moment");
        assert_eq!((choose(&with(Pausing), false), choose(&with(Pausing), true)), (vec![], vec![4]));
    }

    #[test]
    fn a_look_chooses_a_bounded_number() {
        let many: Vec<_> = (0..20_000).map(|n| held("192.0.2.1", Claim::Incomplete, n)).collect();
        assert_eq!(choose(&many, true), (0..CHOSEN_MAX).collect::<Vec<_>>());
    }
}
