//! The incremental form.

use std::collections::HashMap;

use super::*;
use crate::xds::account::NAME;

/// The first request of a client that was connected before and has `versions`.
fn again(client: &mut Client, kind: Kind, names: &[&str], versions: &HashMap<String, String>) {
    let request = DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        initial_resource_versions: versions.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    client.session.delta_request(request).unwrap();
}

/// Versions of what a client has.
fn versions(client: &Client, kind: Kind) -> HashMap<String, String> {
    client.status(kind).resources.unwrap().into_iter().map(|r| (r.name, r.version)).collect()
}

#[test]
fn only_what_is_new_is_sent() {
    let cache = all_kinds(&["a", "b"], 1).cache();
    for kind in Kind::ALL {
        let mut client = Client::new(&cache, Form::Delta);
        client.ask(kind, &["a"]);
        assert_eq!(client.settle(), [row(kind, &["a"], &[])]);
        client.ask(kind, &["a", "b"]);
        assert_eq!(client.settle(), [row(kind, &["b"], &[])]);
    }
}

#[test]
fn a_name_that_is_asked_for_again_counts_once_against_the_limit() {
    let limits = Limits { names: 3, ..Limits::default() };
    let cache = all_kinds(&["a", "b", "c", "d"], 1).cache();
    let mut client = Client::with(&cache, Form::Delta, false, limits);
    let mut ask = |subscribe: &[&str], unsubscribe: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        client.session.delta_request(DeltaDiscoveryRequest {
            type_url: Kind::Cluster.type_url().to_owned(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            ..DeltaDiscoveryRequest::default()
        })
    };
    ask(&["a", "b", "c", "c", "*"], &[]).unwrap();
    // An Envoy asks anew for what it has, to be sent it again.
    ask(&["a", "b", "c"], &[]).unwrap();
    ask(&["b", "c"], &["x"]).unwrap();
    ask(&["d"], &["a"]).unwrap();
    // The control: another one is too many, and one that is dropped makes room once.
    assert!(ask(&["a"], &[]).is_err());
    assert!(ask(&["a"], &["b", "b", "*", "nobody"]).is_ok());
    let refused = ask(&["b"], &["a", "a"]).and_then(|_| ask(&["c", "a"], &[])).unwrap_err().to_string();
    assert!(
        refused.contains("4 names") && refused.contains("at most 3") && refused.contains("v3.Cluster"),
        "{refused}"
    );

    let limits = Limits { names_bytes: 10, ..limits };
    let mut client = Client::with(&cache, Form::Delta, false, limits);
    client.try_ask(Kind::Cluster, &["12345"], None).unwrap();
    client.try_ask(Kind::Cluster, &["12345", "67890"], None).unwrap();
    assert!(client.try_ask(Kind::Cluster, &["12345", "67890", "1"], None).is_err(), "long ones count as what they are");
}

#[test]
fn a_client_that_comes_back_is_sent_what_it_does_not_have() {
    for kind in Kind::ALL {
        let fake = all_kinds(&["a", "b", "c"], 1);
        let mut client = Client::new(&fake.cache(), Form::Delta);
        client.ask(kind, &["a", "b", "c"]);
        client.settle();
        let mut had = versions(&client, kind);
        had.insert("not subscribed to".to_owned(), "7".to_owned());

        // Another run of the control plane: the same versions.
        let cache = fake.clone().with(kind, "b", 2).without(kind, "c").cache();
        let mut client = Client::new(&cache, Form::Delta);
        again(&mut client, kind, &["a", "b", "c"], &had);
        let sent = client.settle();
        let names = |of: fn(&Row) -> &Vec<String>| sent.iter().flat_map(of).map(String::as_str).collect::<Vec<_>>();
        assert_eq!((names(|r| &r.1), names(|r| &r.2)), (vec!["b"], vec!["c"]), "{kind:?}");

        // The control: without versions everything is sent.
        let mut client = Client::new(&cache, Form::Delta);
        again(&mut client, kind, &["a", "b"], &HashMap::new());
        assert_eq!(client.settle(), [row(kind, &["a", "b"], &[])]);
    }
}

#[test]
fn a_wildcard_client_that_comes_back_is_told_what_is_gone_too() {
    let fake = all_kinds(&["a", "b"], 1);
    let mut client = Client::new(&fake.cache(), Form::Delta);
    client.ask(Kind::Cluster, &["*"]);
    client.settle();
    let had = versions(&client, Kind::Cluster);
    let mut client = Client::new(&fake.without(Kind::Cluster, "b").cache(), Form::Delta);
    again(&mut client, Kind::Cluster, &["*"], &had);
    assert_eq!(client.settle(), [row(Kind::Cluster, &[], &[]), row(Kind::Cluster, &[], &["b"])]);
}

#[test]
fn what_a_client_says_it_has_counts_until_it_is_taken_away() {
    let names = |count: usize| (0..count).map(|n| (format!("made-up-{n}"), String::new())).collect::<HashMap<_, _>>();
    for kind in [Kind::Cluster, Kind::Listener] {
        let (cache, account) = (all_kinds(&["a"], 1).cache(), Arc::default());
        let client = |limits| Client::for_account(NodeScope::default(), &cache, Form::Delta, false, limits, &account);
        let mut client_of = client(Limits::default());
        client_of.ask(kind, &["*"]);
        let without = account.bytes();
        drop(client_of);
        let mut one = client(Limits::default());
        again(&mut one, kind, &["*"], &names(100));
        assert!(account.bytes() > without + 100 * NAME, "{kind:?}");
        let (told, one_more) = (one.settle(), account.bytes());
        assert_eq!(
            (told.last().unwrap().2.len(), one_more),
            (100, without),
            "the control: nothing of it is left {kind:?}"
        );
        drop(one);
        assert_eq!(account.bytes(), 0);
        // There are so many, and names are as short as those sent.
        let say = |limits, versions: HashMap<String, String>| {
            client(limits).session.delta_request(DeltaDiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: vec!["*".to_owned()],
                initial_resource_versions: versions,
                ..DeltaDiscoveryRequest::default()
            })
        };
        let limits = Limits { bytes_of_one: without + 50 * NAME, ..Limits::default() };
        assert!(matches!(say(limits, names(100)), Err(Refused::TooMuch { .. })), "{kind:?}");
        say(limits, names(10)).unwrap();
        let long = [("a".repeat(5_000), String::new())].into();
        assert_eq!(say(Limits::default(), long), Err(Refused::NameTooLong { bytes: 5_000, limit: 4_096 }));
    }
}

#[test]
fn what_is_missing_is_told_once_and_sent_when_it_comes() {
    for kind in Kind::ALL {
        let none = Fake::default();
        let cache = none.cache();
        let mut client = Client::new(&cache, Form::Delta);
        client.ask(kind, &["nobody"]);
        assert_eq!(client.settle(), [row(kind, &[], &["nobody"])]);
        none.publish(&cache, "2");
        assert_eq!(client.settle(), []);
        none.with(kind, "nobody", 1).publish(&cache, "3");
        assert_eq!(client.settle(), [row(kind, &["nobody"], &[])]);

        let mut client = Client::with(&Fake::default().cache(), Form::Delta, true, Limits::default());
        client.ask(kind, &["nobody"]);
        let seen = client.next().unwrap();
        assert_eq!((seen.errors, seen.removed), (vec!["nobody".to_owned()], vec![]), "with its reason");
    }
}

/// A library that does not know `resource_errors` reads past them. The control: told by them alone, it learns nothing.
#[test]
fn an_older_library_is_told_what_is_missing_in_words_that_it_reads_r42() {
    for kind in Kind::ALL {
        for (told_by_errors, learnt) in [(false, 1), (true, 0)] {
            let cache = Fake::default().cache();
            let mut client = Client::with(&cache, Form::Delta, told_by_errors, Limits::default());
            client.ask(kind, &["nobody"]);
            let Some(Response::Delta(response)) = client.session.next(client.now) else { panic!("nothing was sent") };
            let older = Older::decode(response.encode_to_vec().as_slice()).unwrap();
            assert_eq!((older.removed_resources.len(), older.nonce), (learnt, "1".to_owned()), "{kind}");
        }
    }
}

/// The response as it was before gRFC A88.
#[derive(Clone, PartialEq, prost::Message)]
struct Older {
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(string, repeated, tag = "6")]
    removed_resources: Vec<String>,
}

#[test]
fn a_name_subscribed_to_again_is_sent_again() {
    let cache = all_kinds(&["a"], 1).cache();
    let mut client = Client::new(&cache, Form::Delta);
    client.ask(Kind::Routes, &["a"]);
    client.settle();
    again(&mut client, Kind::Routes, &["a"], &HashMap::new());
    assert_eq!(client.settle(), [row(Kind::Routes, &["a"], &[])], "the client may have forgotten it");
}

#[test]
fn unsubscribing_from_a_covered_name_says_that_it_stays() {
    let cache = all_kinds(&["a", "b"], 1).cache();
    let mut client = Client::new(&cache, Form::Delta);
    client.ask(Kind::Cluster, &["*", "a"]);
    client.settle();
    client.ask(Kind::Cluster, &["*"]);
    assert_eq!(client.settle(), [row(Kind::Cluster, &["a"], &[])]);
    // Without the wildcard only what is named stays.
    client.ask(Kind::Cluster, &["*", "a"]);
    client.settle();
    client.ask(Kind::Cluster, &["a"]);
    assert_eq!((client.settle(), client.status(Kind::Cluster).sent), (vec![], 1));
}

#[test]
fn subscriptions_count_whatever_the_nonce_and_are_answered_after_the_response_on_its_way() {
    let cache = all_kinds(&["a", "b"], 1).cache();
    let mut client = Client::new(&cache, Form::Delta);
    client.ask(Kind::Endpoints, &["a"]);
    let first = client.next().unwrap();
    client.nonce[Kind::Endpoints.index()] = String::new();
    client.ask(Kind::Endpoints, &["a", "b"]);
    assert_eq!(client.next(), None);
    client.nonce[Kind::Endpoints.index()] = first.nonce;
    assert!(client.answer(Kind::Endpoints, None).acked);
    assert_eq!(client.settle(), [row(Kind::Endpoints, &["b"], &[])]);
}

#[test]
fn what_is_gone_or_missing_is_told_in_parts_that_clients_take() {
    let names: Vec<String> = (0..10).map(|i| format!("{i}{}", "n".repeat(199))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for explained in [false, true] {
        for kind in Kind::ALL {
            // How many of those ten are told in each response, and how large the largest is.
            let told = |response_bytes, was_there: bool| {
                let limits = Limits { response_bytes, ..Limits::default() };
                let cache = if was_there { all_kinds(&names, 1).cache() } else { Fake::default().cache() };
                let mut client = Client::with(&cache, Form::Delta, explained, limits);
                client.ask(kind, &names);
                if was_there {
                    client.settle();
                    Fake::default().publish(&cache, "2");
                }
                let (mut counts, mut largest) = (Vec::new(), 0);
                while let Some(response) = client.session.next(client.now) {
                    let Response::Delta(response) = response else { panic!("another form") };
                    counts.push(response.removed_resources.len() + response.resource_errors.len());
                    largest = largest.max(response.encoded_len());
                    client.nonce[kind.index()] = response.nonce;
                    client.answer(kind, None);
                }
                assert_eq!(
                    client.states(kind),
                    names.iter().map(|name| ((*name).to_owned(), "missing")).collect::<Vec<_>>()
                );
                (counts, largest)
            };
            for was_there in [true, false] {
                let (counts, largest) = told(1_000, was_there);
                assert_eq!(counts.iter().sum::<usize>(), 10, "{kind} {counts:?}");
                assert!(counts.len() > 1 && largest < 1_200, "{kind} {counts:?} {largest}");
                assert_eq!(told(1 << 20, was_there).0, [10], "the control: all at once where there is room");
            }
        }
    }
}
