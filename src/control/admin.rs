//! The admin server: metrics, health, version and profiles over HTTP/1.1, read-only, one request for each connection.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::{AdminAddress, parse_duration};
use crate::control::certs::InForce;
use crate::control::metrics::{self, View};
use crate::control::profile::{self, ProfileError};
use crate::limits::{
    ACCEPT_BACKOFF, ADMIN_CONNECTIONS_MAX, ADMIN_HEAD_BYTES_MAX, ADMIN_REQUEST_TIMEOUT, PROFILE_DRAWING_TIME_MAX,
};

/// Why the admin server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("admin = \"{address}\": {source}; choose another address, or stop what listens there")]
    Address {
        /// As configured.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("admin = \"{}\": {source}; the directory must exist and this user must be allowed to write there", path.display())]
    Path {
        /// As configured.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody answers at the socket.
    #[error("admin = \"{}\": another process listens there; stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// The path is something else.
    #[error("admin = \"{}\": this is not a socket and stays as it is; remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
}

/// A bound admin socket, not yet served. The file of a UNIX socket is removed on drop.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, SocketFile),
}

/// The file of a UNIX socket that this process made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have put its own in this place since.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.id) {
            // After dropping privileges it may not be ours to remove. The next start replaces a stale socket.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Admin {
    /// Binds and listens; connections wait in the kernel until [`Admin::serve`]. A stale socket file is replaced.
    ///
    /// # Errors
    ///
    /// [`AdminError`] names what was configured and what to do.
    pub fn bind(address: &AdminAddress) -> Result<Admin, AdminError> {
        let listener = match address {
            AdminAddress::Tcp(address) => bind_tcp(*address).map_err(|source| AdminError::Address {
                address: *address,
                source,
            })?,
            AdminAddress::Unix(path) => {
                let failed = |source| AdminError::Path {
                    path: path.clone(),
                    source,
                };
                match std::fs::symlink_metadata(path) {
                    Ok(found) if !found.file_type().is_socket() => return Err(AdminError::NotASocket(path.clone())),
                    Ok(_) => match UnixStream::connect(path) {
                        Ok(_) => return Err(AdminError::InUse(path.clone())),
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                            std::fs::remove_file(path).map_err(failed)?;
                        }
                        Err(error) => return Err(failed(error)),
                    },
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
                bind_unix(path).map_err(failed)?
            }
        };
        Ok(Admin { listener })
    }

    /// Where it listens: the address with its real port, or the path.
    #[must_use]
    pub fn address(&self) -> AdminAddress {
        match &self.listener {
            Listener::Tcp(_, address) => AdminAddress::Tcp(*address),
            Listener::Unix(_, file) => AdminAddress::Unix(file.path.clone()),
        }
    }

    /// Answers requests from what the sources say at the time. Runs in a `LocalSet` until it is dropped.
    ///
    /// # Errors
    ///
    /// When the socket cannot be given to the runtime.
    pub async fn serve(self, sources: Rc<Sources>) -> io::Result<()> {
        let slots = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
        match self.listener {
            Listener::Tcp(listener, _) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                accept(slots, sources, async || Ok(listener.accept().await?.0)).await
            }
            Listener::Unix(listener, _file) => {
                let listener = tokio::net::UnixListener::from_std(listener)?;
                accept(slots, sources, async || Ok(listener.accept().await?.0)).await
            }
        }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listener {
            Listener::Tcp(_, address) => write!(f, "http://{address}"),
            Listener::Unix(_, file) => write!(f, "{}", file.path.display()),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok(Listener::Tcp(listener, address))
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before bind: the file is never there with another mode (Linux takes it from the socket).
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, ADMIN_CONNECTIONS_MAX as i32)?;
    let made = std::fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: (made.dev(), made.ino()),
    };
    Ok(Listener::Unix(UnixListener::from(socket), file))
}

async fn accept<C>(slots: Arc<Semaphore>, sources: Rc<Sources>, next: impl AsyncFn() -> io::Result<C>) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
{
    loop {
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match next().await {
            Ok(connection) => {
                let sources = Rc::clone(&sources);
                tokio::task::spawn_local(async move {
                    converse(connection, sources).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "the admin server cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// One request and its answer, within [`ADMIN_REQUEST_TIMEOUT`] in all, besides the time that a profile takes.
async fn converse(connection: impl AsyncRead + AsyncWrite + Unpin + 'static, sources: Rc<Sources>) {
    let profiling = Rc::new(Cell::new(Duration::ZERO));
    let spent = Rc::clone(&profiling);
    let service = service_fn(move |request: Request<Incoming>| {
        let (sources, profiling) = (Rc::clone(&sources), Rc::clone(&profiling));
        async move { Ok::<_, Infallible>(respond(&request, &sources, &profiling).await) }
    });
    let exchange = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(ADMIN_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(connection), service);
    let begin = Instant::now();
    let too_long = async {
        let mut deadline = begin + ADMIN_REQUEST_TIMEOUT;
        while Instant::now() < deadline {
            tokio::time::sleep_until(deadline).await;
            deadline = begin + ADMIN_REQUEST_TIMEOUT + spent.get();
        }
    };
    tokio::select! {
        ended = exchange => {
            if let Err(error) = ended {
                tracing::debug!(error = %error, "admin request failed");
            }
        }
        () = too_long => tracing::debug!("admin request took too long"),
    }
}

/// What the admin server asks when it is asked.
pub struct Sources {
    /// How the gateway is.
    pub status: Box<dyn Fn() -> Status>,
    /// The certificates in force: of those that end within this time, or of all.
    pub certificates: Box<dyn Fn(Option<Duration>) -> InForce>,
}

/// What the admin server tells.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether new connections are welcome.
    pub readiness: Readiness,
    /// Counters and names.
    pub view: View,
}

/// Whether a balancer should send connections here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not all workers accept connections yet.
    Starting,
    /// All do.
    Serving,
    /// None does; what is open is finished.
    Draining,
    /// The gateway cannot go on, for this reason.
    Failed(String),
}

/// Tells `profiling` how much longer than usual the answer takes.
async fn respond<B>(request: &Request<B>, sources: &Sources, profiling: &Cell<Duration>) -> Response<Full<Bytes>> {
    const PATHS: [&str; 6] = ["/metrics", "/healthz", "/readyz", "/version", "/certs", PROFILE];
    const PROFILE: &str = "/debug/profile";
    const PLAIN: &str = "text/plain; charset=utf-8";
    const SVG: &str = "image/svg+xml";
    const JSON: &str = "application/json";
    let path = request.uri().path();
    if !PATHS.contains(&path) {
        return response(
            StatusCode::NOT_FOUND,
            PLAIN,
            format!("not found; there are {}\n", PATHS.join(", ")),
        );
    }
    // A profile takes its time, and HEAD would throw it away.
    let (methods, allowed, said) = match path {
        PROFILE => (&[Method::GET][..], "GET", "only GET\n"),
        _ => (&[Method::GET, Method::HEAD][..], "GET, HEAD", "only GET and HEAD\n"),
    };
    if !methods.contains(request.method()) {
        let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, said);
        let allowed = hyper::header::HeaderValue::from_static(allowed);
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    if path == "/certs" {
        return match within(request.uri().query()) {
            Ok(within) => response(StatusCode::OK, JSON, (sources.certificates)(within).json()),
            Err(remedy) => response(StatusCode::BAD_REQUEST, PLAIN, format!("{remedy}\n")),
        };
    }
    if path == PROFILE {
        return match profiled(request, profiling).await {
            Ok(graph) => response(StatusCode::OK, SVG, graph),
            Err(error) => response(error.status(), PLAIN, format!("{error}\n")),
        };
    }
    let status = (sources.status)();
    match path {
        "/metrics" => {
            let exposition = metrics::render(status.view);
            if accepts_openmetrics(request) {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response(StatusCode::OK, kind, exposition)
            } else {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                response(StatusCode::OK, kind, metrics::to_prometheus_text(&exposition))
            }
        }
        "/healthz" => response(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => {
            let (code, reason) = match status.readiness {
                Readiness::Serving => (StatusCode::OK, "serving\n".to_owned()),
                Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
                Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
                Readiness::Failed(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("failed: {why}\n")),
            };
            response(code, PLAIN, reason)
        }
        "/version" => {
            let version = serde_json::json!({
                "name": "ringlock",
                "version": env!("CARGO_PKG_VERSION"),
                "driver": status.view.workers.first().map(|worker| worker.driver),
                "workers": status.view.workers.iter().map(|worker| worker.cpu).collect::<Vec<_>>(),
                "epoch": status.view.epoch,
            });
            response(StatusCode::OK, JSON, format!("{version}\n"))
        }
        other => unreachable!("{other} is in PATHS and has no answer"),
    }
}

async fn profiled<B>(request: &Request<B>, profiling: &Cell<Duration>) -> Result<Vec<u8>, ProfileError> {
    let time = profile::wanted(request.uri().query())?;
    profiling.set(time + PROFILE_DRAWING_TIME_MAX);
    profile::take(time).await
}

/// What `/certs` is to be about.
fn within(query: Option<&str>) -> Result<Option<Duration>, String> {
    match query {
        None | Some("") => Ok(None),
        Some(query) => match query.strip_prefix("expires_within=").map(parse_duration) {
            Some(Ok(within)) => Ok(Some(within)),
            Some(Err(_)) | None => Err(format!("found ?{query}, expected a time, such as ?expires_within=30d")),
        },
    }
}

fn accepts_openmetrics<B>(request: &Request<B>) -> bool {
    let mut accepted = request.headers().get_all(ACCEPT).iter();
    accepted.any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.contains("application/openmetrics-text"))
    })
}

fn response(code: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, kind)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(text.into()))
        .expect("constant header values are legal")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::control::metrics::tests::busy;

    /// Serves from a thread of its own, which lasts as long as the test.
    fn start(address: &AdminAddress, readiness: Readiness) -> AdminAddress {
        let admin = Admin::bind(address).unwrap();
        let address = admin.address();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let status = move || Status {
                readiness: readiness.clone(),
                view: busy(),
            };
            let sources = Sources {
                status: Box::new(status),
                certificates: Box::new(|_| InForce::default()),
            };
            tokio::task::LocalSet::new().block_on(&runtime, admin.serve(Rc::new(sources)))
        });
        address
    }

    fn start_tcp(readiness: Readiness) -> SocketAddr {
        match start(&AdminAddress::Tcp("127.0.0.1:0".parse().unwrap()), readiness) {
            AdminAddress::Tcp(address) => address,
            AdminAddress::Unix(path) => panic!("{path:?}"),
        }
    }

    fn ask(mut stream: impl Read + Write, request: &str) -> String {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(address: SocketAddr, method: &str, path: &str, headers: &str) -> (String, String) {
        let stream = TcpStream::connect(address).unwrap();
        let answer = ask(stream, &format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[test]
    fn metrics_come_in_the_format_the_client_accepts() {
        let address = start_tcp(Readiness::Serving);
        let (head, body) = get(address, "GET", "/metrics", "");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        assert!(body.contains("# TYPE ringlock_connections_accepted_total counter"));
        let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1\r\n";
        let (head, body) = get(address, "GET", "/metrics?x=1", accept);
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"));
    }

    #[test]
    fn readiness_says_why_not() {
        for (readiness, code, text) in [
            (Readiness::Serving, 200, "serving\n"),
            (Readiness::Starting, 503, "starting\n"),
            (Readiness::Draining, 503, "draining\n"),
            (
                Readiness::Failed("worker 3 ended".to_owned()),
                503,
                "failed: worker 3 ended\n",
            ),
        ] {
            let address = start_tcp(readiness);
            let (head, body) = get(address, "GET", "/readyz", "");
            assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
            assert_eq!(body, text);
            let (head, body) = get(address, "GET", "/healthz", "");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert_eq!(body, "ok\n");
        }
    }

    #[test]
    fn the_version_is_json() {
        let (head, body) = get(start_tcp(Readiness::Serving), "GET", "/version", "");
        assert!(head.contains("content-type: application/json"), "{head}");
        let version: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(version["driver"], "epoll");
        assert_eq!(version["workers"], serde_json::json!([2, 5]));
        assert_eq!(version["epoch"], 3);
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let address = start_tcp(Readiness::Serving);
        let (head, body) = get(address, "GET", "/nothing", "");
        assert!(
            head.starts_with("HTTP/1.1 404 ") && body.contains("/metrics"),
            "{head}{body}"
        );
        let (head, _) = get(address, "POST", "/metrics", "Content-Length: 0\r\n");
        assert!(
            head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"),
            "{head}"
        );
        let (head, body) = get(address, "HEAD", "/healthz", "");
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 3"),
            "{head}"
        );
        assert_eq!(body, "");
    }

    #[test]
    fn a_long_head_is_refused_and_waiting_connections_get_their_turn() {
        let address = start_tcp(Readiness::Serving);
        let long = format!("X: {}\r\n", "x".repeat(2 * ADMIN_HEAD_BYTES_MAX));
        let (head, _) = get(address, "GET", "/healthz", &long);
        assert!(head.starts_with("HTTP/1.1 431 "), "{head}");

        let idle: Vec<TcpStream> = (0..ADMIN_CONNECTIONS_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let mut waiting = TcpStream::connect(address).unwrap();
        waiting.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut byte = [0];
        assert!(
            waiting.read(&mut byte).is_err(),
            "more connections than the bound are served"
        );
        drop(idle);
        waiting.set_read_timeout(None).unwrap();
        assert_eq!(waiting.read(&mut byte).unwrap(), 1);
    }

    #[test]
    fn a_unix_socket_is_private_and_replaces_only_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // A socket file whose owner is gone.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let address = AdminAddress::Unix(path.clone());
        start(&address, Readiness::Serving);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let answer = ask(
            UnixStream::connect(&path).unwrap(),
            "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        assert!(answer.ends_with("serving\n"), "{answer}");

        let error = Admin::bind(&address).unwrap_err();
        assert!(matches!(error, AdminError::InUse(_)), "{error}");
        let file = folder.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        let error = Admin::bind(&AdminAddress::Unix(file.clone())).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn dropping_removes_its_own_socket_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let admin = Admin::bind(&AdminAddress::Unix(path.clone())).unwrap();
        drop(admin);
        assert!(!path.exists());
        let admin = Admin::bind(&AdminAddress::Unix(path.clone())).unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let _successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(admin);
        assert!(path.exists());
    }

    #[test]
    fn an_address_in_use_is_named_with_a_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Admin::bind(&AdminAddress::Tcp(address)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("admin = \"{address}\": Address already in use")),
            "{error}"
        );
        assert!(error.contains("choose another address"), "{error}");
        let error = Admin::bind(&AdminAddress::Unix("/nonexistent/admin.sock".into()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/admin.sock") && error.contains("directory must exist"),
            "{error}"
        );
    }
}
