//! The binary `mesh` (feature `cli`): runs the control plane, asks it, reads manifests as it does, and hands out join tokens.
//!
//! Exit codes: 0 done, 1 the answer is no, 2 it could not be done.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_control::ca::{
    CertificateAuthority, CertificateLife, JoinTokens, MAX_TOKEN_TTL, ROOT_FILE, RootRotation, RotateError,
    RotationState, RotationStep, TrustDomains,
};
use mesh_control::jwks::{FetchOptions, IpNet};
use mesh_control::model::AccessPolicy;
use mesh_control::{Clock, ControlPlane};
use mesh_core::id::{SpiffeId, TrustDomain};

mod cli;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(name = "mesh", version, about = "A service mesh that is a Rust library")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane: manifests in a directory, xDS, certificates, registration.
    ControlPlane(ControlPlaneArgs),
    /// Which processes have which configuration and what they refused. Exit code 0: all in sync; 1: something is
    /// refused or lags behind; 2: the control plane cannot be asked.
    Status(cli::status::StatusArgs),
    /// What the control plane would say of manifests, by file, object and field, without one. Exit code 0: no errors; 1:
    /// errors; 2: there is nothing to read.
    Analyze(cli::analyze::AnalyzeArgs),
    /// Certificates and join tokens.
    Cert {
        #[command(subcommand)]
        command: CertCommand,
    },
}

#[derive(Args)]
struct ControlPlaneArgs {
    /// Directory of manifests, watched for changes.
    #[arg(long)]
    manifests: PathBuf,
    /// Directory for the CA key, the root certificate and the registrations; made with mode 0700.
    #[arg(long)]
    state: PathBuf,
    /// Where xDS, the CA and registration listen, over TLS.
    #[arg(long, default_value = "127.0.0.1:15012")]
    listen: SocketAddr,
    /// Where the debug endpoints listen.
    #[arg(long, default_value = "127.0.0.1:15014")]
    debug: SocketAddr,
    /// An additional xDS listener without TLS, loopback only, for clients that have no certificate.
    #[arg(long)]
    insecure_xds: Option<SocketAddr>,
    #[command(flatten)]
    domains: Domains,
    #[command(flatten)]
    inbound: Inbound,
    /// Ask clients to report the load they put on each cluster; shown under `/load` of the debug endpoints.
    #[arg(long)]
    load_reports: bool,
    /// A network that is not public and from which keys of token issuers (`jwksUri`) may be fetched all the same.
    #[arg(long = "jwks-network")]
    jwks_networks: Vec<IpNet>,
    /// PEM file of roots that are trusted beside the system's where keys of token issuers are fetched.
    #[arg(long)]
    jwks_roots: Option<PathBuf>,
    /// A further DNS name or IP address of this control plane, for its certificate.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Longest life of a certificate in seconds; it is renewed before half of it is over.
    #[arg(long, default_value_t = DAY)]
    certificate_ttl: u64,
    /// Let the system write this process's memory, the authority's key in it, into core dumps, and debuggers of the same
    /// user read it.
    #[arg(long)]
    core_dumps: bool,
    /// What to print once everything is listening.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The mesh's own names, the same for every command.
#[derive(Args)]
pub(crate) struct Domains {
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local", value_parser = TrustDomain::new)]
    trust_domain: TrustDomain,
    /// A former name of the trust domain, whose principals and roots count on; may be repeated.
    #[arg(long, value_parser = TrustDomain::new)]
    trust_domain_alias: Vec<TrustDomain>,
}

impl Domains {
    fn trusted(self) -> TrustDomains {
        TrustDomains::new(self.trust_domain, self.trust_domain_alias)
    }
}

/// What is let in where no manifest says it.
#[derive(Args)]
pub(crate) struct Inbound {
    /// Who may call a port that no Linkerd Server guards, where no annotation says so: one of Linkerd's default inbound
    /// policies.
    #[arg(long, default_value = "all-unauthenticated", value_parser = AccessPolicy::read)]
    default_inbound_policy: AccessPolicy,
}

/// Seconds.
const DAY: u64 = 86_400;

/// What a command prints on stdout; the log goes to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Nothing: the log says it.
    #[default]
    Log,
    /// One line of JSON for scripts: `{"address":…,"debug":…,"insecure_xds":…,"root_cert":…}`.
    Json,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum CertCommand {
    /// Print a single-use join token as shell variables for one process.
    Token {
        /// The control plane's state directory.
        #[arg(long)]
        state: PathBuf,
        /// Namespace of the identity.
        #[arg(long, default_value = "default")]
        namespace: String,
        /// Service account of the identity.
        #[arg(long)]
        service_account: String,
        /// Life of the token in seconds, at most 600.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=MAX_TOKEN_TTL.as_secs()))]
        ttl: u64,
        /// Address of the control plane.
        #[arg(long, default_value = "127.0.0.1:15012")]
        control_plane: String,
    },
    /// Write a key and a certificate into files, for a peer that takes them from there: a stock Envoy or gRPC
    /// process. Run it again before the certificate ends; such peers watch their files.
    Issue {
        /// The control plane's state directory.
        #[arg(long)]
        state: PathBuf,
        /// Namespace of the identity.
        #[arg(long, default_value = "default")]
        namespace: String,
        /// Service account of the identity.
        #[arg(long)]
        service_account: String,
        /// Directory for `cert.pem`, `key.pem`, `root.pem` and, for an Envoy, `default.yaml` and `ROOTCA.yaml`; made with
        /// mode 0700.
        #[arg(long)]
        out: PathBuf,
        /// Life of the certificate in seconds, from 300 to a day.
        #[arg(long, default_value_t = DAY, value_parser = clap::value_parser!(u64).range(300..=DAY))]
        ttl: u64,
        #[command(flatten)]
        domains: Domains,
    },
    /// Print the roots of the mesh as a SPIFFE trust bundle map (JSON): what another mesh puts into the
    /// `federated-bundles.json` of its state directory to let in the peers of this one.
    Bundle {
        /// The control plane's state directory.
        #[arg(long)]
        state: PathBuf,
        #[command(flatten)]
        domains: Domains,
    },
    /// Change the authority's root in three runs: add a new one, let it sign, take the old one out. A running control
    /// plane follows, and workloads follow it. Exit code 0: a step was made; 1: the next step would cut somebody off now,
    /// and it is said when it would not; 2: it could not be done.
    RotateRoot {
        /// The control plane's state directory.
        #[arg(long)]
        state: PathBuf,
        #[command(flatten)]
        domains: Domains,
        /// Make the next step though it cuts somebody off.
        #[arg(long)]
        force: bool,
        /// Longest life of a certificate in seconds, as the control plane was told: one that knows the old root alone may
        /// be given just before a step.
        #[arg(long, default_value_t = DAY)]
        certificate_ttl: u64,
        /// Make no step; print where it stands.
        #[arg(long, conflicts_with = "force")]
        status: bool,
        /// What to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(cli::colours())
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .init();
    let done = match Cli::parse().command {
        Command::ControlPlane(args) => control_plane(args).await.map(|()| ExitCode::SUCCESS),
        Command::Status(args) => cli::status::status(args).await,
        Command::Analyze(args) => cli::analyze::analyze(args),
        Command::Cert { command } => cert(command),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(target: "mesh", "{error}");
            ExitCode::from(2)
        }
    }
}

#[allow(clippy::print_stdout)] // The line is what was asked for.
async fn control_plane(args: ControlPlaneArgs) -> Result<(), Error> {
    // Before the key is read.
    if !args.core_dumps {
        cli::memory::keep_private()?;
    }
    let mut jwks = FetchOptions::default();
    (jwks.networks, jwks.roots) = (args.jwks_networks, args.jwks_roots);
    let plane = ControlPlane::builder()
        .manifests(args.manifests)
        .state_dir(args.state)
        .listen(args.listen)
        .debug_listen(Some(args.debug))
        .insecure_xds(args.insecure_xds)
        .trust_domain(args.domains.trust_domain)
        .trust_domain_aliases(args.domains.trust_domain_alias)
        .default_inbound_policy(args.inbound.default_inbound_policy)
        .load_reports(args.load_reports)
        .jwks(jwks)
        .names(args.names)
        .certificate_ttl(Duration::from_secs(args.certificate_ttl))
        .start()
        .await?;
    tracing::info!(target: "mesh", address = %plane.address(), root = %plane.root_cert_path().display(), "serving");
    if args.output == Output::Json {
        let ready = serde_json::json!({
            "address": plane.address(),
            "debug": plane.debug_address(),
            "insecure_xds": plane.insecure_address(),
            "root_cert": std::path::absolute(plane.root_cert_path())?,
        });
        println!("{ready}");
    }
    mesh_server::lifecycle::shutdown_signal().await?;
    plane.shutdown().await;
    Ok(())
}

fn cert(command: CertCommand) -> Result<ExitCode, Error> {
    match command {
        CertCommand::Token { state, namespace, service_account, ttl, control_plane } => {
            token(&state, &namespace, &service_account, ttl, &control_plane)?;
        }
        CertCommand::Issue { state, namespace, service_account, out, ttl, domains } => {
            let id = SpiffeId::for_service_account(&domains.trust_domain, &namespace, &service_account)?;
            let (life, known) = (CertificateLife::default(), has_authority(&state));
            let authority = CertificateAuthority::open(&state, domains.trusted(), life, Clock::system())?;
            tell_of_new(&state, known)?;
            authority.issue_files(&id, Some(Duration::from_secs(ttl)), &out)?;
        }
        CertCommand::Bundle { state, domains } => {
            bundle(&state, domains.trusted())?;
        }
        CertCommand::RotateRoot { state, domains, force, certificate_ttl, status, output } => {
            let life = CertificateLife::at_most(Duration::from_secs(certificate_ttl));
            let known = has_authority(&state);
            let rotation = RootRotation::open(&state, domains.trusted(), life, Clock::system())?;
            tell_of_new(&state, known)?;
            let made = if status { rotation.state() } else { rotation.advance(force) };
            let state = match made {
                Err(error @ RotateError::TooEarly { .. }) => {
                    tracing::warn!(target: "mesh", "{error}");
                    return Ok(ExitCode::from(1));
                }
                state => state?,
            };
            show(&state, output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn has_authority(state: &Path) -> bool {
    state.join(ROOT_FILE).exists()
}

/// Where there is no authority what is asked of it makes none.
fn demand_authority(state: &Path, so: &str) -> Result<(), Error> {
    if has_authority(state) {
        return Ok(());
    }
    let directory = std::path::absolute(state)?;
    let directory = directory.display();
    let message = format!(
        "no control plane keeps its state in {directory} (there is no {ROOT_FILE}), so {so}: start one with --state, or \
         correct this --state"
    );
    Err(message.into())
}

/// A mistyped directory makes an authority whose certificates no control plane trusts.
fn tell_of_new(state: &Path, known: bool) -> Result<(), Error> {
    if !known {
        let directory = std::path::absolute(state)?;
        let directory = directory.display();
        tracing::warn!(target: "mesh", "there was no authority in {directory}: a new one was made there");
    }
    Ok(())
}

fn show(state: &RotationState, output: Format) -> Result<(), Error> {
    if output == Format::Json {
        return Ok(cli::print(&format!("{}\n", serde_json::to_string(state)?))?);
    }
    let (now, next) = match state.step {
        RotationStep::Idle => ("one root is trusted", "adds a new root"),
        RotationStep::Added => ("a new root is trusted; the old one signs", "lets the new root sign"),
        RotationStep::Switched => ("the new root signs; the old one is still trusted", "takes the old root out"),
    };
    let when = match state.safe_at {
        None => "now".to_owned(),
        Some(at) => format!("in {} s", at.saturating_sub(Clock::system().unix_seconds())),
    };
    let (signing, trusted) = (&state.signing, state.trusted.join(" "));
    Ok(cli::print(&format!("{now}\nsigning   {signing}\ntrusted   {trusted}\nnext run  {next}; it is safe {when}\n"))?)
}

fn bundle(state: &Path, domains: TrustDomains) -> Result<(), Error> {
    demand_authority(state, "nobody has roots of it")?;
    let authority = CertificateAuthority::open(state, domains, CertificateLife::default(), Clock::system())?;
    Ok(cli::print(&format!("{}\n", authority.bundle_map()?))?)
}

fn token(state: &Path, namespace: &str, account: &str, ttl: u64, control_plane: &str) -> Result<(), Error> {
    demand_authority(state, "nobody would take a token of it")?;
    let root = std::path::absolute(state.join(ROOT_FILE))?;
    let token = JoinTokens::open(state)?.mint(namespace, account, Duration::from_secs(ttl))?;
    let root = root.display();
    Ok(cli::print(&format!(
        "export MESH_CONTROL_PLANE='{control_plane}'\nexport MESH_ROOT_CERT='{root}'\nexport MESH_JOIN_TOKEN='{token}'\n\
         export POD_NAMESPACE='{namespace}'\nexport SERVICE_ACCOUNT='{account}'\n"
    ))?)
}
