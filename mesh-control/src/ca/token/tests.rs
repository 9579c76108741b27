use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use rcgen::{CertificateParams, KeyPair};

use super::*;

fn at(seconds: u64) -> (Arc<AtomicU64>, Clock) {
    let now = Arc::new(AtomicU64::new(seconds));
    let read = now.clone();
    (now, Clock::new(move || UNIX_EPOCH + Duration::from_secs(read.load(Ordering::SeqCst))))
}

/// A key that is asked about, each time with a new request.
struct Asker(KeyPair);

impl Asker {
    fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    fn asks(&self) -> RequestedKey {
        RequestedKey::from_csr_pem(&CertificateParams::default().serialize_request(&self.0).unwrap().pem().unwrap())
            .unwrap()
    }
}

/// What somebody asks about who asks once.
fn any() -> RequestedKey {
    Asker::new().asks()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn s93_a_token_works_once_even_across_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let (_, clock) = at(1_000);
    let tokens = JoinTokens::with_clock(home.path(), clock.clone()).unwrap();
    let token = tokens.mint("default", "reviews", MINUTE).unwrap();
    let (claims, _) = tokens.verify_and_consume(&token, &any()).unwrap();
    assert_eq!((claims.namespace(), claims.service_account()), ("default", "reviews"));
    assert!(matches!(tokens.verify_and_consume(&token, &any()), Err(TokenRefused::Spent)));
    let restarted = JoinTokens::with_clock(home.path(), clock).unwrap();
    assert!(matches!(restarted.verify_and_consume(&token, &any()), Err(TokenRefused::Spent)));
}

#[test]
fn s93_of_many_takers_at_once_one_succeeds() {
    let home = tempfile::tempdir().unwrap();
    let tokens = JoinTokens::with_clock(home.path(), at(1_000).1).unwrap();
    let token = tokens.mint("default", "reviews", MINUTE).unwrap();
    let taken: usize = std::thread::scope(|scope| {
        let takers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| tokens.verify_and_consume(&token, &any()).is_ok())).collect();
        takers.into_iter().map(|taker| usize::from(taker.join().unwrap())).sum()
    });
    assert_eq!(taken, 1);
}

#[test]
fn s87_expired_forged_and_foreign_tokens_are_refused() {
    let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (now, clock) = at(1_000);
    let tokens = JoinTokens::with_clock(home.path(), clock.clone()).unwrap();
    let token = tokens.mint("default", "reviews", MINUTE).unwrap();

    let foreign = JoinTokens::with_clock(elsewhere.path(), clock).unwrap();
    assert!(matches!(foreign.verify(&token, &any()), Err(TokenRefused::NotOurs)));

    let (payload, tag) = token.split_once('.').unwrap();
    let claims = String::from_utf8(BASE64URL.decode(payload).unwrap()).unwrap();
    let forged = BASE64URL.encode(claims.replace("reviews", "admin"));
    for bad in [format!("{forged}.{tag}"), format!("{payload}."), payload.to_owned(), String::new(), "a.b.c".into()] {
        assert!(matches!(tokens.verify(&bad, &any()), Err(TokenRefused::NotOurs)), "{bad}");
    }

    assert!(tokens.verify(&token, &any()).is_ok());
    now.store(1_060, Ordering::SeqCst);
    assert!(matches!(tokens.verify(&token, &any()), Err(TokenRefused::Expired)));
}

#[test]
fn s93_a_token_is_not_taken_at_its_last_second_by_somebody_who_checked_it_before() {
    let home = tempfile::tempdir().unwrap();
    let (now, clock) = at(1_000);
    let tokens = JoinTokens::with_clock(home.path(), clock).unwrap();
    let token = tokens.mint("default", "reviews", MINUTE).unwrap();
    let (first, second) = (tokens.verify(&token, &any()).unwrap(), tokens.verify(&token, &any()).unwrap());
    tokens.consume(&first, &any()).unwrap();
    now.store(1_060, Ordering::SeqCst);
    assert!(matches!(tokens.consume(&second, &any()), Err(TokenRefused::Expired)));
    // Nor if the clock is set back afterwards, which makes the token good again.
    tokens.forget_expired();
    now.store(1_059, Ordering::SeqCst);
    assert!(matches!(tokens.verify(&token, &any()), Err(TokenRefused::Spent)));
    assert!(matches!(tokens.consume(&second, &any()), Err(TokenRefused::Spent)));
}

#[test]
fn life_is_cut_to_ten_minutes_and_records_are_dropped_after_it() {
    let home = tempfile::tempdir().unwrap();
    let (now, clock) = at(1_000);
    let tokens = JoinTokens::with_clock(home.path(), clock).unwrap();
    let token = tokens.mint("default", "reviews", Duration::from_secs(86_400)).unwrap();
    tokens.verify_and_consume(&token, &any()).unwrap();
    assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 1);
    now.store(1_600, Ordering::SeqCst);
    assert!(matches!(tokens.verify(&token, &any()), Err(TokenRefused::Expired)));
    now.store(2_199, Ordering::SeqCst);
    tokens.forget_expired();
    assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 1);
    now.store(2_200, Ordering::SeqCst);
    tokens.forget_expired();
    assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 0);
}

#[test]
fn names_that_make_no_identity_are_not_minted() {
    let home = tempfile::tempdir().unwrap();
    let tokens = JoinTokens::with_clock(home.path(), at(1_000).1).unwrap();
    for (namespace, account) in [("", "a"), ("a/b", "c"), ("a", ".."), ("a", "b c")] {
        assert!(tokens.mint(namespace, account, MINUTE).is_err(), "{namespace:?} {account:?}");
    }
}

#[test]
fn s93_whoever_asks_again_with_the_same_key_is_answered_again_until_the_token_ends() {
    let home = tempfile::tempdir().unwrap();
    let (now, clock) = at(1_000);
    let tokens = JoinTokens::with_clock(home.path(), clock.clone()).unwrap();
    let token = tokens.mint("default", "reviews", MINUTE).unwrap();
    let (asker, other) = (Asker::new(), Asker::new());
    let used =
        |tokens: &JoinTokens, asker: &Asker| tokens.verify_and_consume(&token, &asker.asks()).map(|(_, used)| used);
    assert_eq!(used(&tokens, &asker).unwrap(), TokenUse::First);
    assert_eq!(used(&tokens, &asker).unwrap(), TokenUse::Again);
    let restarted = JoinTokens::with_clock(home.path(), clock).unwrap();
    assert_eq!(used(&restarted, &asker).unwrap(), TokenUse::Again);
    for tokens in [&tokens, &restarted] {
        assert!(matches!(used(tokens, &other), Err(TokenRefused::Spent)));
        assert!(matches!(tokens.verify(&token, &other.asks()), Err(TokenRefused::Spent)));
    }
    now.store(1_060, Ordering::SeqCst);
    assert!(matches!(used(&tokens, &asker), Err(TokenRefused::Expired)));
}

#[test]
fn s93_of_many_takers_with_one_key_all_succeed_and_one_is_the_first() {
    let home = tempfile::tempdir().unwrap();
    let tokens = JoinTokens::with_clock(home.path(), at(1_000).1).unwrap();
    let (token, asker) = (tokens.mint("default", "reviews", MINUTE).unwrap(), Asker::new());
    let key = asker.asks();
    let used: Vec<TokenUse> = std::thread::scope(|scope| {
        let takers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| tokens.verify_and_consume(&token, &key).unwrap().1)).collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).collect()
    });
    assert_eq!(used.iter().filter(|used| **used == TokenUse::First).count(), 1);
    assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn s93_a_record_that_does_not_say_whose_it_is_is_nobodys() {
    let home = tempfile::tempdir().unwrap();
    let tokens = JoinTokens::with_clock(home.path(), at(1_000).1).unwrap();
    let (token, asker) = (tokens.mint("default", "reviews", MINUTE).unwrap(), Asker::new());
    let (claims, _) = tokens.verify_and_consume(&token, &asker.asks()).unwrap();
    let record = tokens.record(&claims);
    let good = fs::read(&record).unwrap();
    let mut bad = vec![Vec::new(), b"spki-sha256".to_vec(), b"\xff\0\n".to_vec(), vec![b'a'; 1 << 20]];
    bad.extend((0..good.len()).map(|end| good[..end].to_vec()));
    bad.push([&good[..], b"\n"].concat());
    bad.push(good.to_ascii_uppercase());
    for content in bad {
        fs::write(&record, &content).unwrap();
        for key in [asker.asks(), any()] {
            assert!(matches!(tokens.verify(&token, &key), Err(TokenRefused::Spent)), "{content:?}");
            assert!(matches!(tokens.consume(&claims, &key), Err(TokenRefused::Spent)), "{content:?}");
        }
    }
    fs::write(&record, &good).unwrap();
    assert_eq!(tokens.consume(&claims, &asker.asks()).unwrap(), TokenUse::Again, "the control");
}

#[test]
fn what_a_crash_leaves_is_removed_with_the_records() {
    let home = tempfile::tempdir().unwrap();
    let (now, clock) = at(1_000);
    let tokens = JoinTokens::with_clock(home.path(), clock).unwrap();
    let token = tokens.mint("default", "reviews", MINUTE).unwrap();
    let claims = tokens.verify(&token, &any()).unwrap();
    // Half written, and not in its place.
    fs::write(tokens.record(&claims).with_extension("0123"), "spki").unwrap();
    assert_eq!(tokens.consume(&claims, &any()).unwrap(), TokenUse::First, "it stands in nobody's way");
    now.store(1_660, Ordering::SeqCst);
    tokens.forget_expired();
    assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 0);
}
