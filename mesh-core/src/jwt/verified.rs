//! Which tokens a key set has found good: a caller shows the same one with each request, and its signature is by far
//! the dearest thing to check.
//!
//! Only the signature is remembered: of every request issuer, audience, subject and times are looked at anew, so an
//! entry outlives its token's end to no effect. It ends with its key set. What was refused is not remembered: that
//! would be room for whoever sends nonsense.

use std::sync::OnceLock;

use aws_lc_rs::digest;
use parking_lot::RwLock;

/// Sets of tokens, each with a lock of its own.
const SETS: usize = 256;
/// Tokens of a set; the oldest makes room.
const WAYS: usize = 8;

/// A token's bytes, all of them, as SHA-256: nobody makes another token with the same one.
pub(super) type Fingerprint = [u8; digest::SHA256_OUTPUT_LEN];

/// At most 2,048 tokens, in 66 KiB that are taken with the first.
#[derive(Default)]
pub(super) struct Verified(OnceLock<Box<[RwLock<Set>]>>);

/// The next place, and the tokens; zeros = none, which no token's fingerprint is.
#[derive(Clone, Copy, Default)]
struct Set(usize, [Fingerprint; WAYS]);

pub(super) fn fingerprint(token: &str) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    fingerprint
}

impl Verified {
    pub(super) fn contains(&self, token: &Fingerprint) -> bool {
        self.0.get().is_some_and(|sets| sets[set_of(token)].read().1.contains(token))
    }

    pub(super) fn insert(&self, token: Fingerprint) {
        let sets = self.0.get_or_init(|| std::iter::repeat_with(RwLock::default).take(SETS).collect());
        let Set(next, tokens) = &mut *sets[set_of(&token)].write();
        // Two requests with it may have come at once.
        if !tokens.contains(&token) {
            tokens[*next % WAYS] = token;
            *next = (*next + 1) % WAYS;
        }
    }
}

fn set_of(token: &Fingerprint) -> usize {
    usize::from(token[0]) % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_set_make_room_for_newer_ones_and_others_stay() {
        let verified = Verified::default();
        let token = |set: u8, n: u8| {
            let mut token = [1; 32];
            (token[0], token[1]) = (set, n);
            token
        };
        assert!(!verified.contains(&token(3, 0)));
        verified.insert(token(9, 0));
        for n in 0..=WAYS as u8 {
            verified.insert(token(3, n));
            // Again, which takes no second place.
            verified.insert(token(3, n));
        }
        assert!(!verified.contains(&token(3, 0)), "the oldest is gone");
        assert!((1..=WAYS as u8).all(|n| verified.contains(&token(3, n))));
        assert!(verified.contains(&token(9, 0)));
    }
}
