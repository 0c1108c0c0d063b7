//! `ringlock` without an argument: a CA, a certificate, an origin and a configuration of its own, so that there is
//! something to try. The gateway then runs from that configuration by the same way as from any other.

use std::convert::Infallible;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::sync::{Semaphore, oneshot};

use crate::limits::{ACCEPT_BACKOFF, DEMO_BYTES_MAX, DEMO_CONNECTIONS_MAX};

/// Why the demo cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The private folder, or a file in it.
    #[error("cannot write the demo's files below {}: {source}; set TMPDIR to a directory that this user may write", folder.display())]
    Folder {
        /// Where.
        folder: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The certificate.
    #[error("cannot make the demo's certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The origin.
    #[error("cannot start the demo's origin: {0}")]
    Origin(io::Error),
    /// No port for the listener or the admin server.
    #[error("no free port on 127.0.0.1 from {first} to {last}; stop something that listens there")]
    NoFreePort {
        /// The first that was tried.
        first: u16,
        /// The last that was tried.
        last: u16,
    },
}

/// Everything the demo needs, for as long as this lives. Dropping it ends the origin and removes the folder.
#[derive(Debug)]
pub struct Demo {
    folder: TempDir,
    https: SocketAddr,
    admin: SocketAddr,
    _origin: Origin,
}

/// Makes the certificate, starts the origin, finds free ports and writes the configuration.
///
/// # Errors
///
/// [`DemoError`]
pub fn prepare() -> Result<Demo, DemoError> {
    let folder = tempfile::Builder::new()
        .prefix("ringlock-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|source| DemoError::Folder {
            folder: std::env::temp_dir(),
            source,
        })?;
    let certificates = certificates()?;
    let origin = Origin::start().map_err(DemoError::Origin)?;
    let https = free_address(8443)?;
    let admin = free_address(9180)?;
    for (name, mode, text) in [
        (CA, 0o644, &certificates.ca),
        ("server.pem", 0o644, &certificates.chain),
        ("server.key", 0o600, &certificates.key),
        (CONFIGURATION, 0o644, &configuration(https, admin, origin.address)),
    ] {
        let path = folder.path().join(name);
        write_new(&path, mode, text).map_err(|source| DemoError::Folder { folder: path, source })?;
    }
    Ok(Demo {
        folder,
        https,
        admin,
        _origin: origin,
    })
}

const CA: &str = "ca.pem";
const CONFIGURATION: &str = "ringlock.toml";

impl Demo {
    /// The configuration file, for the gateway to load (and to reload).
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join(CONFIGURATION)
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What to tell the user: what this is and what to try.
    #[must_use]
    pub fn banner(&self) -> String {
        let ca = shell_word(&self.folder.path().join(CA).to_string_lossy());
        let folder = self.folder.path().display();
        let (https, admin, port) = (self.https, self.admin, self.https.port());
        format!(
            "Ringlock {version}: a TLS gateway, here as a demo. It ends TLS at {https} and hands plain HTTP to a small
origin of its own. Certificate and key were made for this run and go with it ({folder}).

  curl --cacert {ca} https://localhost:{port}/
  curl --cacert {ca} -o /dev/null -w '%{{size_download}} bytes\\n' https://localhost:{port}/bytes/100000000
  openssl s_client -connect {https} -CAfile {ca} -servername localhost

  metrics  http://{admin}/metrics
  ready?   http://{admin}/readyz

Ctrl-C ends it. With services of your own: ringlock run --config FILE
",
            version = env!("CARGO_PKG_VERSION"),
        )
    }
}

/// The word as a shell reads it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn configuration(https: SocketAddr, admin: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "# The demo's configuration. Paths are relative to this file.

[global]
admin = \"{admin}\"
drain_timeout = \"3s\"

[global.log]
format = \"text\"

[[listener]]
name = \"demo\"
address = \"{https}\"
mode = \"tcp\"
identities = [\"demo\"]
upstream = \"origin\"

[listener.tls]
alpn = [\"http/1.1\"]

[[identity]]
name = \"demo\"
certificate = \"server.pem\"
key = \"server.key\"

[[upstream]]
name = \"origin\"
servers = [\"{origin}\"]
"
    )
}

/// The first free port from `first` on. Somebody may take it before we do; binding it then says so.
fn free_address(first: u16) -> Result<SocketAddr, DemoError> {
    let last = first + 99;
    (first..=last)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or(DemoError::NoFreePort { first, last })
}

fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}

/// PEM texts.
struct Certificates {
    ca: String,
    chain: String,
    key: String,
}

/// A CA that signs one ECDSA P-256 certificate. Its key is forgotten at once: nothing more can be signed by it.
fn certificates() -> Result<Certificates, rcgen::Error> {
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let params = |names: &[&str], common_name: &str| -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
        params.not_before = (now - hour).into();
        params.not_after = (now + 30 * 24 * hour).into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        Ok(params)
    };
    let mut ca = params(&[], "Ringlock demo CA")?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)?;

    let mut leaf = params(&["localhost", "127.0.0.1", "::1"], "localhost")?;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    Ok(Certificates {
        ca: ca.pem(),
        chain: leaf.signed_by(&key, &ca)?.pem(),
        key: key.serialize_pem(),
    })
}

/// A small HTTP/1.1 server on a thread of its own. Dropping it ends it.
#[derive(Debug)]
struct Origin {
    address: SocketAddr,
    /// `None` only while dropping.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    fn start() -> io::Result<Origin> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("demo-origin".to_owned())
            .spawn(move || {
                tokio::task::LocalSet::new().block_on(&runtime, async {
                    tokio::select! {
                        () = accept(listener) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Origin {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the demo's origin ended by a defect");
        }
    }
}

async fn accept(listener: tokio::net::TcpListener) {
    let slots = Arc::new(Semaphore::new(DEMO_CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((connection, peer)) => {
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |request| {
                        let response = respond(request, peer);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(connection), service)
                        .await;
                    if let Err(error) = served {
                        tracing::debug!(error = %error, "a connection to the demo's origin failed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "the demo's origin cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

fn respond(request: Request<Incoming>, peer: SocketAddr) -> Answer {
    let path = request.uri().path();
    let readable = *request.method() == Method::GET || *request.method() == Method::HEAD;
    if path == "/" && readable {
        text(StatusCode::OK, what_arrived(&request, peer))
    } else if let Some(count) = path.strip_prefix("/bytes/")
        && readable
    {
        match count.parse() {
            Ok(left) if left <= DEMO_BYTES_MAX => octets(Filler { left }.map_err(|never| match never {}).boxed()),
            Ok(_) | Err(_) => text(
                StatusCode::BAD_REQUEST,
                format!("/bytes/N: N is a number up to {DEMO_BYTES_MAX}\n"),
            ),
        }
    } else if path == "/echo" && *request.method() == Method::POST {
        octets(request.into_body().boxed())
    } else {
        text(
            StatusCode::NOT_FOUND,
            "not found; there are GET /, GET /bytes/N and POST /echo\n".to_owned(),
        )
    }
}

/// The request as the origin got it, in words.
fn what_arrived(request: &Request<Incoming>, peer: SocketAddr) -> String {
    let mut headers = String::new();
    for (name, value) in request.headers() {
        headers.push_str(&format!("  {name}: {}\n", value.as_bytes().escape_ascii()));
    }
    format!(
        "Hello from behind Ringlock.

You spoke TLS with Ringlock. This origin got plain HTTP, from {peer}:

  {method} {uri} {version:?}
{headers}
Also here: GET /bytes/N sends N bytes, POST /echo sends back what you send.
",
        method = request.method(),
        uri = request.uri(),
        version = request.version(),
    )
}

fn text(code: StatusCode, text: String) -> Answer {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    answer(code, "text/plain; charset=utf-8", body)
}

fn octets(body: BoxBody<Bytes, hyper::Error>) -> Answer {
    answer(StatusCode::OK, "application/octet-stream", body)
}

fn answer(code: StatusCode, kind: &'static str, body: BoxBody<Bytes, hyper::Error>) -> Answer {
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, kind)
        .body(body)
        .expect("constant header values are legal")
}

/// A body of that many bytes, made while it is sent.
struct Filler {
    left: u64,
}

impl Body for Filler {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static CHUNK: [u8; 64 * 1024] = [b'.'; 64 * 1024];
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let count = self.left.min(CHUNK.len() as u64);
        self.left -= count;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..count as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    use super::*;

    fn ask(address: SocketAddr, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a head");
        let body = answer.split_off(end + 4);
        (String::from_utf8(answer).unwrap(), body)
    }

    fn get(address: SocketAddr, path: &str) -> (String, Vec<u8>) {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Trace: seven\r\n\r\n");
        ask(address, &head)
    }

    #[test]
    fn the_origin_tells_sends_and_echoes() {
        let origin = Origin::start().unwrap();
        let (head, body) = get(origin.address, "/");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let body = String::from_utf8(body).unwrap();
        assert!(
            body.contains("  GET / HTTP/1.1\n") && body.contains("  x-trace: seven\n"),
            "{body}"
        );

        for count in [0, 1, 65_536, 200_001] {
            let (head, body) = get(origin.address, &format!("/bytes/{count}"));
            assert!(
                head.to_ascii_lowercase()
                    .contains(&format!("content-length: {count}\r\n")),
                "{head}"
            );
            assert_eq!(body.len(), count);
        }
        for refused in [format!("{}", DEMO_BYTES_MAX + 1), "-1".to_owned(), "x".to_owned()] {
            let (head, _) = get(origin.address, &format!("/bytes/{refused}"));
            assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        }
        let sent = "echo ".repeat(50_000);
        let length = sent.len();
        let (head, body) = ask(
            origin.address,
            &format!("POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{sent}"),
        );
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(body == sent.as_bytes(), "{} bytes came back of {length}", body.len());
        assert!(get(origin.address, "/nothing").0.starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn dropping_the_origin_frees_its_port() {
        let origin = Origin::start().unwrap();
        let address = origin.address;
        let _idle = TcpStream::connect(address).unwrap();
        drop(origin);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_client_that_trusts_the_ca_accepts_the_certificate_for_every_name_it_is_told() {
        let certificates = certificates().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(certificates.chain.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(certificates.key.as_bytes()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(certificates.ca.as_bytes()).unwrap())
            .unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (server, client) = (Arc::new(server), Arc::new(client));
        let handshake = |name: &'static str| -> Result<(), rustls::Error> {
            let name = ServerName::try_from(name).unwrap();
            let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
            let mut server = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
            while client.is_handshaking() || server.is_handshaking() {
                let mut wire = Vec::new();
                client.write_tls(&mut wire).unwrap();
                server.read_tls(&mut &wire[..]).unwrap();
                server.process_new_packets()?;
                wire.clear();
                server.write_tls(&mut wire).unwrap();
                client.read_tls(&mut &wire[..]).unwrap();
                client.process_new_packets()?;
            }
            Ok(())
        };
        for name in ["localhost", "127.0.0.1", "::1"] {
            handshake(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(handshake("example.com").is_err());
    }

    #[test]
    fn two_demos_run_side_by_side_and_leave_nothing_behind() {
        let first = prepare().unwrap();
        let _https = TcpListener::bind(first.https).unwrap();
        let _admin = TcpListener::bind(first.admin).unwrap();
        let second = prepare().unwrap();
        assert_ne!(first.https, second.https);
        assert_ne!(first.admin, second.admin);

        let folder = first.folder.path().to_owned();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("server.key")), 0o600);
        let keys = std::fs::read_dir(&folder).unwrap().filter(|entry| {
            let text = std::fs::read_to_string(entry.as_ref().unwrap().path()).unwrap();
            text.contains("PRIVATE KEY")
        });
        assert_eq!(keys.count(), 1, "the key of the CA is never written");

        let config: toml::Table = std::fs::read_to_string(first.configuration()).unwrap().parse().unwrap();
        assert_eq!(config["global"]["admin"].as_str().unwrap(), first.admin.to_string());
        assert_eq!(
            config["listener"][0]["address"].as_str().unwrap(),
            first.https.to_string()
        );
        assert_eq!(config["listener"][0]["identities"][0], config["identity"][0]["name"]);
        assert_eq!(config["listener"][0]["upstream"], config["upstream"][0]["name"]);
        for key in ["certificate", "key"] {
            assert!(folder.join(config["identity"][0][key].as_str().unwrap()).is_file());
        }
        let origin = config["upstream"][0]["servers"][0].as_str().unwrap().parse().unwrap();
        assert!(get(origin, "/").0.starts_with("HTTP/1.1 200 "));

        let banner = first.banner();
        let ca = folder.join("ca.pem");
        let (ca, port) = (ca.display(), first.https.port());
        assert!(ca.to_string().len() > 10);
        for line in [
            format!("curl --cacert {ca} https://localhost:{port}/\n"),
            format!("openssl s_client -connect 127.0.0.1:{port} -CAfile {ca} -servername localhost\n"),
            format!("http://{}/metrics\n", first.admin),
        ] {
            assert!(banner.contains(&line), "{line}\nis not in\n{banner}");
        }
        drop(first);
        assert!(!folder.exists());
    }

    #[test]
    fn a_path_with_odd_characters_is_one_shell_word() {
        assert_eq!(shell_word("/tmp/ringlock-demo-x/ca.pem"), "/tmp/ringlock-demo-x/ca.pem");
        assert_eq!(shell_word("/tmp/it's here"), r"'/tmp/it'\''s here'");
    }
}
