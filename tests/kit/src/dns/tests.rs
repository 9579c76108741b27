use tokio::net::UdpSocket;

use super::*;

/// A query for `name`, written by hand.
fn query(name: &str, kind: u8) -> Vec<u8> {
    let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, kind, 0, 1]);
    message
}

async fn ask(server: &DnsServer, name: &str, kind: u8) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query(name, kind), server.address()).await.unwrap();
    let mut buffer = [0; 1024];
    let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
    buffer[..length].to_vec()
}

#[tokio::test]
async fn a_name_has_the_records_it_was_given() {
    let server = DnsServer::start().await;
    server.set("a.test", &["10.1.2.3", "::1"], 60);
    let answer = ask(&server, "A.test", 1).await;
    assert_eq!((&answer[..4], &answer[6..8]), (&[7, 9, 0x81, 0x80][..], &[0, 1][..]));
    assert!(answer.ends_with(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]), "{answer:?}");
    assert_eq!(ask(&server, "a.test", 28).await.last(), Some(&1));
    assert_eq!(server.queries(), 2);
}

#[tokio::test]
async fn names_fail_as_they_are_told() {
    let server = DnsServer::start().await;
    server.break_name("broken.test", DnsFault::ServerFailure);
    server.break_name("refused.test", DnsFault::Refused);
    server.break_name("unknown.test", DnsFault::NotImplemented);
    server.break_name("nothing.test", DnsFault::Nothing);
    server.set("empty.test", &[], 60);
    server.set("long.test", &["10.0.0.1"; 100], 60);
    // The code, the truncation bit, the records, and the SOA record of a negative answer.
    for (name, code, truncated, soa) in [
        ("no.test", 3, false, 1),
        ("broken.test", 2, false, 0),
        ("refused.test", 5, false, 0),
        ("unknown.test", 4, false, 0),
        ("nothing.test", 0, false, 0),
        ("empty.test", 0, false, 1),
        ("long.test", 0, true, 0),
    ] {
        let answer = ask(&server, name, 1).await;
        let got = (answer[3] & 15, answer[2] & 2 != 0, &answer[6..8], answer[9]);
        assert_eq!(got, (code, truncated, &[0, 0][..], soa), "{name}");
    }
}

#[tokio::test]
async fn one_family_of_a_name_fails_alone() {
    let server = DnsServer::start().await;
    server.set("a.test", &["10.1.2.3", "::1"], 60);
    server.break_family("A.test", Family::V6, DnsFault::ServerFailure);
    assert_eq!((ask(&server, "a.test", 1).await[3] & 15, ask(&server, "a.test", 28).await[3] & 15), (0, 2));
    server.set("a.test", &["10.1.2.3", "::1"], 60);
    assert_eq!(ask(&server, "a.test", 28).await[3] & 15, 0);
}

#[tokio::test]
async fn an_alias_is_told_with_what_it_stands_for_or_alone() {
    let server = DnsServer::start().await;
    server.set("b.test", &["10.1.2.3"], 60);
    server.set_alias("a.test", "B.test", 30);
    server.set_bare_alias("bare.test", "b.test", 30);
    server.set_alias("nobody.test", "no.test", 30);
    let b = [1, b'b', 4, b't', b'e', b's', b't', 0];
    let alias = |answer: &[u8]| {
        answer.windows(20).any(|part| part == [&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 30, 0, 8][..], &b].concat())
    };
    // The code, the records, the SOA record of a negative answer.
    for (name, kind, code, records, soa) in
        [("a.test", 1, 0, 2, 0), ("a.test", 28, 0, 1, 1), ("bare.test", 1, 0, 1, 0), ("nobody.test", 1, 3, 1, 1)]
    {
        let answer = ask(&server, name, kind).await;
        assert_eq!((answer[3] & 15, answer[7], answer[9]), (code, records, soa), "{name} {kind}");
        assert_eq!(alias(&answer), name != "nobody.test", "{name} {kind}: {answer:?}");
    }
    let answer = ask(&server, "a.test", 1).await;
    assert!(answer.ends_with(&[&b[..], &[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]].concat()), "{answer:?}");
}

#[test]
fn what_is_no_query_is_not_answered() {
    for message in [
        &[][..],
        &[0; 11],
        &[0; 40],
        &query("a.test", 1)[..20],
        &[7, 9, 0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
    ] {
        assert!(Query::read(message).is_none(), "{message:?}");
    }
}
