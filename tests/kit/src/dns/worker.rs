//! The tasks of a name server: one for UDP, one for TCP with one more a connection; all end with their handle.
#![allow(clippy::disallowed_methods, reason = "a worker file: the tasks belong to `Worker`")]

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::Zone;
use super::wire::{TCP_LIMIT, UDP_LIMIT};

/// Owns the tasks.
pub(super) struct Worker([JoinHandle<()>; 2]);

impl Worker {
    pub(super) fn spawn(udp: UdpSocket, tcp: TcpListener, zone: Arc<Zone>) -> Self {
        Self([tokio::spawn(datagrams(udp, zone.clone())), tokio::spawn(connections(tcp, zone))])
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// One port that is free for both.
pub(super) async fn bind() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a loopback port");
        let port = tcp.local_addr().expect("a bound socket has an address").port();
        if let Ok(udp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for UDP and TCP");
}

async fn datagrams(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = [0; 4096];
    loop {
        // An error is an earlier answer that nobody wanted any more.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = zone.answer(&buffer[..length], UDP_LIMIT) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn connections(listener: TcpListener, zone: Arc<Zone>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((socket, _)) = accepted {
                    open.spawn(connection(socket, zone.clone()));
                }
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn connection(mut socket: TcpStream, zone: Arc<Zone>) {
    while let Ok(length) = socket.read_u16().await {
        let mut message = vec![0; length.into()];
        if socket.read_exact(&mut message).await.is_err() {
            return;
        }
        zone.over_tcp.send_modify(|n| *n += 1);
        let Some(answer) = zone.answer(&message, TCP_LIMIT) else { continue };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer);
        if socket.write_all(&framed).await.is_err() {
            return;
        }
    }
}
