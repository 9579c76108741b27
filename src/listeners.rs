//! Sockets of this process at which policy is not enforced: what others than the mesh listen on here.
//!
//! Found in `/proc`, where Linux lists what listens (`/proc/self/net`) and what this process has open (`/proc/self/fd`);
//! elsewhere nothing is known. Looked for as long as a server serves, ever more seldom. Refuses to know what is served there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_core::error::Code;
use mesh_server::Readiness;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

/// From the begin of a server to the first look; each further wait is twice as long. An application that serves several
/// listeners has given all of them by then.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two looks where others are refused, and where they are told of: with many connections the tables are
/// long.
const LONGEST: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(600)];
/// The least port of those that the system gives, where it does not say.
const EPHEMERAL: u16 = 32_768;

/// What a mesh knows of the listeners of its process.
pub(crate) struct Listeners {
    look: Look,
    refused: bool,
    allowed: Vec<Allowed>,
    own: Mutex<BTreeSet<u64>>,
    debug: OnceLock<SocketAddr>,
    said: Mutex<BTreeSet<Listener>>,
    unknown: OnceLock<()>,
    others: AtomicU64,
}

type Look = Arc<dyn Fn() -> io::Result<Vec<Listener>> + Send + Sync>;

/// A port at which others may listen, at one address or at all.
pub(crate) type Allowed = (Option<IpAddr>, u16);

/// A socket that takes what anybody sends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listener {
    transport: &'static str,
    address: SocketAddr,
    inode: u64,
}

/// A listener of the mesh's own, for as long as it lives.
pub(crate) struct Own {
    listeners: Arc<Listeners>,
    inode: Option<u64>,
}

/// Holds readiness back for one server, if others are refused, while there are some or nothing is known yet.
pub(crate) struct Hold {
    readiness: Option<Readiness>,
    /// Of this server: another one's end must not let go.
    name: String,
    alone: watch::Sender<bool>,
}

impl Listeners {
    /// With `refused` nothing is ready while others listen than the `allowed` ones.
    pub(crate) fn new(refused: bool, allowed: Vec<Allowed>) -> Self {
        Self::looking(refused, allowed, Arc::new(look))
    }

    fn looking(refused: bool, allowed: Vec<Allowed>, look: Look) -> Self {
        let (own, debug, said) = (Mutex::default(), OnceLock::new(), Mutex::default());
        Self { look, refused, allowed, own, debug, said, unknown: OnceLock::new(), others: AtomicU64::new(0) }
    }

    /// How many others the last look found.
    pub(crate) fn others(&self) -> u64 {
        self.others.load(Ordering::Relaxed)
    }

    /// What a server of the mesh was given is its own.
    pub(crate) fn own(self: &Arc<Self>, listener: &TcpListener) -> Own {
        let inode = inode_of(listener);
        self.own.lock().extend(inode);
        Own { listeners: self.clone(), inode }
    }

    /// So is where the debug endpoints listen.
    pub(crate) fn own_debug(&self, address: SocketAddr) {
        self.debug.get_or_init(|| address);
    }

    /// To be called as a server begins at `address`.
    pub(crate) fn hold(&self, readiness: &Readiness, address: SocketAddr) -> Hold {
        let name = format!("other listeners than {address}");
        if self.refused {
            readiness.hold(&name, "they have not been looked for yet");
        }
        Hold { readiness: self.refused.then(|| readiness.clone()), name, alone: watch::Sender::new(!self.refused) }
    }

    /// Looks now and then, for ever, and tells of each other listener once. If others are refused, nothing is ready while one is
    /// there: of those that come later, the ones that stay from one look to the next, so that a socket that is open for
    /// a moment takes nothing out of service.
    pub(crate) async fn watch(&self, hold: &Hold) {
        let longest = LONGEST[usize::from(!self.refused)];
        let (mut wait, mut before) = (FIRST, true);
        loop {
            sleep(wait).await;
            let found = self.find().await;
            let others = found.as_ref().is_ok_and(|others| !others.is_empty());
            hold.note(found, before);
            before = others;
            wait = (wait * 2).min(longest);
        }
    }

    /// The other listeners; of those that were not there before the log tells.
    async fn find(&self) -> io::Result<Vec<Listener>> {
        let look = self.look.clone();
        // With many connections the lists are long.
        let found = tokio::task::spawn_blocking(move || look()).await.map_err(io::Error::other).and_then(|found| found);
        let mut others = match found {
            Ok(found) => found,
            Err(error) => {
                self.unknown.get_or_init(|| {
                    tracing::info!(
                        target: "mesh::lifecycle", %error,
                        "what else listens in this process cannot be known here; what does passes no policy"
                    );
                });
                return Err(error);
            }
        };
        let own = self.own.lock().clone();
        others.retain(|other| {
            !own.contains(&other.inode) && self.debug.get() != Some(&other.address) && !self.is_allowed(other.address)
        });
        self.others.store(others.len() as u64, Ordering::Relaxed);
        let mut said = self.said.lock();
        for other in &others {
            if said.insert(other.clone()) {
                let (code, remedy) = (Code::OTHER_LISTENERS, Code::OTHER_LISTENERS.remedy());
                tracing::warn!(
                    target: "mesh::lifecycle", %code, transport = other.transport, address = %other.address,
                    "this process listens beside the mesh, and there no policy is enforced: {remedy}"
                );
            }
        }
        said.retain(|known| others.contains(known));
        Ok(others)
    }

    fn is_allowed(&self, address: SocketAddr) -> bool {
        self.allowed.iter().any(|(ip, port)| *port == address.port() && ip.is_none_or(|ip| ip == address.ip()))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(inode) = self.inode {
            self.listeners.own.lock().remove(&inode);
        }
    }
}

impl Hold {
    /// Waits, if others are refused, until there was a look that found none.
    pub(crate) async fn alone(&self) {
        // The sender is ours.
        let _ = self.alone.subscribe().wait_for(|alone| *alone).await;
    }

    /// What was found; `before` = others were there at the last look, too.
    fn note(&self, found: io::Result<Vec<Listener>>, before: bool) {
        let Some(readiness) = &self.readiness else { return };
        let begun = *self.alone.borrow();
        match found {
            Ok(others) if others.is_empty() => {
                readiness.release(&self.name);
                self.alone.send_replace(true);
            }
            Ok(others) if before || !begun => readiness.hold(&self.name, &Others(&others).to_string()),
            Err(error) if !begun => readiness.hold(&self.name, &format!("what listens here cannot be known: {error}")),
            Ok(_) | Err(_) => {}
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(readiness) = &self.readiness {
            readiness.release(&self.name);
        }
    }
}

/// Why nothing is ready, in one line.
struct Others<'a>(&'a [Listener]);

impl fmt::Display for Others<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no policy is enforced at", Code::OTHER_LISTENERS)?;
        for other in self.0 {
            write!(f, " {} {},", other.transport, other.address)?;
        }
        write!(f, " where this process listens too: {}", Code::OTHER_LISTENERS.remedy())
    }
}

/// Reads a setting: ports, or addresses with their ports, separated by commas.
pub(crate) fn parse_allowed(text: &str) -> Result<Vec<Allowed>, String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let parse = |entry: &str| match (entry.parse::<u16>(), entry.parse::<SocketAddr>()) {
        (Ok(port), _) => Ok((None, port)),
        (_, Ok(address)) => Ok((Some(address.ip()), address.port())),
        _ => Err(format!("{entry:?} is neither a port nor ip:port, as in 9090,127.0.0.1:9229")),
    };
    entries.map(parse).collect()
}

/// What this process listens on.
fn look() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    let least = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let least = least.ok().and_then(|range| range.split_whitespace().next()?.parse().ok()).unwrap_or(EPHEMERAL);
    for (transport, table) in [("tcp", "tcp"), ("tcp", "tcp6"), ("udp", "udp"), ("udp", "udp6")] {
        match File::open(format!("/proc/self/net/{table}")) {
            Ok(file) => {
                let lines = BufReader::new(file).lines().map_while(Result::ok);
                found.extend(lines.filter_map(|line| listener(transport, &line, least)));
            }
            // Without IPv6 there is no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut open = BTreeSet::new();
    for descriptor in fs::read_dir("/proc/self/fd")? {
        open.extend(descriptor.ok().and_then(|descriptor| inode(&descriptor.path())));
    }
    found.retain(|listener| open.contains(&listener.inode));
    Ok(found)
}

/// A line of `/proc/net/tcp` or `udp`, if it is of a socket that takes what anybody sends. One for UDP does so in the same
/// state as one that only asks; those have ports that the system gives, from `least` on.
fn listener(transport: &'static str, line: &str, least: u16) -> Option<Listener> {
    let mut fields = line.split_whitespace().skip(1);
    let address = address(fields.next()?)?;
    let (_, state) = (fields.next()?, fields.next()?);
    let inode = fields.nth(5)?.parse().ok()?;
    let listens = match transport {
        "tcp" => state == "0A",
        _ => state == "07" && address.port() < least,
    };
    listens.then_some(Listener { transport, address, inode })
}

/// An address as the kernel writes it: words of 32 bits in the machine's order, a port in the usual one.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = [0; 16];
    let words = ip.as_bytes().chunks_exact(8);
    for (word, bytes) in words.zip(bytes.chunks_exact_mut(4)) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let ip: IpAddr = match ip.len() {
        8 => [bytes[0], bytes[1], bytes[2], bytes[3]].into(),
        32 => bytes.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The number of the socket that a descriptor is.
fn inode(descriptor: &Path) -> Option<u64> {
    let target = fs::read_link(descriptor).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(unix)]
fn inode_of(listener: &TcpListener) -> Option<u64> {
    use std::os::fd::AsRawFd;
    inode(Path::new(&format!("/proc/self/fd/{}", listener.as_raw_fd())))
}

#[cfg(not(unix))]
fn inode_of(_: &TcpListener) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use mesh_testkit::clock::pass;

    use super::*;

    const SERVED: &str = "127.0.0.1:8080";

    /// A mesh before a table that the test writes.
    fn before(refused: bool, allowed: &str, table: &Arc<Mutex<io::Result<Vec<Listener>>>>) -> Listeners {
        let table = table.clone();
        let look = move || match &*table.lock() {
            Ok(table) => Ok(table.clone()),
            Err(error) => Err(io::Error::from(error.kind())),
        };
        Listeners::looking(refused, parse_allowed(allowed).unwrap(), Arc::new(look))
    }

    fn at(address: &str) -> Listener {
        Listener { transport: "tcp", address: address.parse().unwrap(), inode: 7 }
    }

    #[test]
    fn lines_of_the_kernels_tables_are_read() {
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        let read = |transport, line: &str| listener(transport, line, 32_768).map(|l| (l.address.to_string(), l.inode));
        #[cfg(target_endian = "little")]
        assert_eq!(read("tcp", tcp), Some(("127.0.0.1:8080".to_owned(), 4711)));
        let six = tcp.replace("0100007F", "B80D0120000000000000000001000000");
        #[cfg(target_endian = "little")]
        assert_eq!(read("tcp", &six), Some(("[2001:db8::1]:8080".to_owned(), 4711)));
        // Connections, and what is in no such table.
        assert_eq!(read("tcp", &tcp.replace(" 0A ", " 01 ")), None);
        assert_eq!(read("udp", tcp), None);
        let udp = tcp.replace(" 0A ", " 07 ");
        assert!(read("udp", &udp).is_some());
        assert_eq!(read("udp", &udp.replace(":1F90", ":9C40")), None, "a port that the system gives");
        for cut in 0..tcp.len() {
            let _ = read("tcp", &tcp[..cut]);
        }
        assert_eq!(
            read(
                "tcp",
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
            ),
            None
        );
    }

    #[test]
    fn no_line_is_too_odd() {
        let good =
            "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 4711 1 0 100 0 0 10 0";
        assert!(listener("tcp", good, 0).is_some(), "the control");
        let odd = ['0', 'F', ':', ' ', '+', '-', '\u{e9}', '\0', '\u{1d11e}', '9'];
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..20_000 {
            let mut line: Vec<char> = good.chars().collect();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(0..line.len());
                match random.u8(0..3) {
                    0 => line[at] = odd[random.usize(0..odd.len())],
                    1 => line.insert(at, odd[random.usize(0..odd.len())]),
                    _ => line.truncate(at + 1),
                }
            }
            let line: String = line.into_iter().collect();
            let _ = (listener("tcp", &line, 0), listener("udp", &line, 0));
        }
    }

    #[test]
    fn a_list_of_ports_and_addresses_is_read() {
        assert_eq!(
            parse_allowed("9090, 127.0.0.1:9229,[::1]:80,").unwrap(),
            [(None, 9090), (Some("127.0.0.1".parse().unwrap()), 9229), (Some("::1".parse().unwrap()), 80)]
        );
        for bad in ["here", "127.0.0.1", "70000", "9090;9091"] {
            assert!(parse_allowed(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    /// Other tests of this process listen as well: only what is bound here is looked for.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_listens_in_this_process_is_found_and_what_the_mesh_was_given_is_its_own() {
        for place in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(place).await else { continue };
            let address = socket.local_addr().unwrap();
            let listeners = Arc::new(Listeners::new(false, Vec::new()));
            let found = async |listeners: &Listeners| {
                listeners.find().await.unwrap().iter().any(|other| other.address == address)
            };
            assert!(found(&listeners).await, "{place}");
            let own = listeners.own(&socket);
            assert!(!found(&listeners).await, "{place}");
            drop(own);
            assert!(found(&listeners).await, "{place}");
            let allowed = Arc::new(Listeners::new(false, vec![(None, address.port())]));
            assert!(!found(&allowed).await, "{place}");
            drop(socket);
            assert!(!found(&listeners).await, "{place}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn others_are_counted_and_do_not_hold_readiness_back_unless_they_are_refused() {
        let table = Arc::new(Mutex::new(Ok(vec![at("0.0.0.0:9090"), at("127.0.0.1:9229"), at("127.0.0.1:15000")])));
        for (refused, allowed, others) in
            [(false, "", 2), (true, "", 2), (true, "9090", 1), (true, "9090,0.0.0.0:9229", 1), (true, "9090,9229", 0)]
        {
            let (listeners, readiness) = (before(refused, allowed, &table), Readiness::default());
            listeners.own_debug("127.0.0.1:15000".parse().unwrap());
            let hold = listeners.hold(&readiness, SERVED.parse().unwrap());
            assert_eq!(readiness.is_ready(), !refused, "it is not known yet");
            tokio::select! {
                () = listeners.watch(&hold) => {}
                () = pass(Duration::from_secs(11)) => {}
            }
            assert_eq!(hold.alone().now_or_never().is_some(), readiness.is_ready());
            assert_eq!(
                (listeners.others(), readiness.is_ready()),
                (others, !refused || others == 0),
                "{refused} {allowed}"
            );
            if !readiness.is_ready() {
                let why = readiness.reasons().remove(&hold.name).unwrap();
                assert!(why.contains("MESH-2010") && why.contains("127.0.0.1:9229"), "{why}");
            }
            drop(hold);
            assert!(readiness.is_ready(), "whoever does not serve holds nothing back");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_comes_once_others_are_gone_and_not_while_nothing_is_known() {
        let table = Arc::new(Mutex::new(Ok(vec![at("0.0.0.0:9090")])));
        let (listeners, readiness) = (before(true, "", &table), Readiness::default());
        let hold = listeners.hold(&readiness, SERVED.parse().unwrap());
        let play = async {
            pass(Duration::from_secs(5)).await;
            assert!(!readiness.is_ready());
            *table.lock() = Err(io::ErrorKind::NotFound.into());
            pass(Duration::from_secs(60)).await;
            assert!(readiness.reasons()[&hold.name].contains("cannot be known"), "{readiness:?}");
            *table.lock() = Ok(Vec::new());
            hold.alone().await;
        };
        tokio::select! {
            () = listeners.watch(&hold) => {}
            () = play => {}
        }
        assert!(readiness.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_later_and_stays_takes_readiness_back_where_it_is_refused_and_is_counted_everywhere() {
        for refused in [true, false] {
            let table = Arc::new(Mutex::new(Ok(Vec::new())));
            let (listeners, readiness) = (before(refused, "", &table), Readiness::default());
            let hold = listeners.hold(&readiness, SERVED.parse().unwrap());
            let is = async |minutes: u64, others: u64, ready: bool, when: &str| {
                pass(Duration::from_secs(60 * minutes)).await;
                assert_eq!(
                    (listeners.others(), readiness.is_ready()),
                    (others, ready || !refused),
                    "{refused}: {when}"
                );
            };
            let play = async {
                is(120, 0, true, "it is alone").await;
                *table.lock() = Ok(vec![at("127.0.0.1:9229")]);
                if refused {
                    is(1, 1, true, "it may be there for a moment").await;
                    *table.lock() = Ok(Vec::new());
                    is(1, 0, true, "it was").await;
                    *table.lock() = Ok(vec![at("127.0.0.1:9229")]);
                    is(1, 1, true, "another one").await;
                    *table.lock() = Err(io::ErrorKind::NotFound.into());
                    is(1, 1, true, "nothing is known").await;
                    *table.lock() = Ok(vec![at("127.0.0.1:9229")]);
                }
                is(20, 1, false, "it stays").await;
                *table.lock() = Ok(Vec::new());
                is(20, 0, true, "it is gone").await;
            };
            tokio::select! {
                () = listeners.watch(&hold) => {}
                () = play => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_one_server_does_not_let_go_what_another_one_holds() {
        let table = Arc::new(Mutex::new(Ok(vec![at("127.0.0.1:9229")])));
        let (listeners, readiness) = (before(true, "", &table), Readiness::default());
        let hold = |address: &str| listeners.hold(&readiness, address.parse().unwrap());
        let (one, other) = (hold(SERVED), hold("127.0.0.1:8081"));
        drop(one);
        assert!(!readiness.is_ready());
        drop(other);
        assert!(readiness.is_ready(), "the control");
    }
}
