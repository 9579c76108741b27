//! A port that stays free for whoever is to listen at it.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A loopback address at which a server begins later, or ends and begins again: meanwhile nobody else who takes any free
/// port is given this one, and connections are refused.
///
/// It is bound and not listened to. Linux gives such a port to those who ask for it by its number, for servers bind with
/// `SO_REUSEADDR`, and to nobody else. Other systems do not, and there it may be lost.
#[derive(Debug)]
pub struct ReservedAddress {
    address: SocketAddr,
    _held: Option<TcpSocket>,
}

impl ReservedAddress {
    /// One that is free.
    #[expect(clippy::new_without_default, reason = "another call gives another address")]
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option that every system has");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = socket.local_addr().expect("it is bound");
        Self { address, _held: cfg!(target_os = "linux").then_some(socket) }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpListener;

    use super::*;

    /// How often somebody who takes any free port is given this one. Linux has some 14,000 of them for listeners.
    fn given_away(address: SocketAddr) -> usize {
        let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        (0..200_000).filter(|_| any().is_ok_and(|any| any == address)).count()
    }

    #[test]
    fn an_address_is_kept_for_the_server_that_was_there() {
        let reserved = ReservedAddress::new();
        let first = TcpListener::bind(reserved.address()).expect("it is for this one");
        assert!(TcpListener::bind(reserved.address()).is_err(), "the control: it is listened to");
        drop(first);
        let refused = std::net::TcpStream::connect(reserved.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(given_away(reserved.address()), 0);
        drop(TcpListener::bind(reserved.address()).expect("and for it again"));
        // The control: nobody keeps it.
        let address = reserved.address();
        drop(reserved);
        assert!(given_away(address) > 0);
    }
}
