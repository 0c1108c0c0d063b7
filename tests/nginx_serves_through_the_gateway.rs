//! A real HTTP server behind the gateway: keep-alive, chunks, a large file, and its own end of connections.

use std::net::SocketAddr;
use std::path::Path;

use crate::support::*;

both_drivers!(
    requests_share_a_connection,
    a_chunked_answer_arrives_whole,
    a_file_of_100_mb_arrives_whole,
    an_answer_that_ends_with_the_connection_arrives_whole,
);

/// nginx with a folder of files.
struct Nginx {
    address: SocketAddr,
    folder: tempfile::TempDir,
    /// Ends with it.
    _program: Program,
}

impl Nginx {
    fn start() -> Nginx {
        let (folder, address) = (tempfile::TempDir::new().unwrap(), free_address());
        let path = folder.path().to_str().unwrap();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; pid {path}/pid; error_log stderr;
             events {{ worker_connections 256; }}
             http {{
                 access_log off;
                 client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c;
                 uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;
                 default_type text/plain;
                 server {{
                     listen {address};
                     root {path}/files;
                     location /chunked {{ alias {path}/files; gzip on; gzip_min_length 1; gzip_types *; }}
                     location /once {{ alias {path}/files; keepalive_timeout 0; }}
                 }}
             }}"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        std::fs::write(folder.path().join("files/small"), "a small file").unwrap();
        open_to_all(folder.path());
        let arguments = ["-p", path, "-c", &format!("{path}/nginx.conf"), "-e", "stderr"];
        let program = Program::start("nginx", &arguments);
        eventually(&format!("nginx to listen\n{}", program.text()), || {
            std::net::TcpStream::connect(address).ok()
        });
        Nginx {
            address,
            folder,
            _program: program,
        }
    }

    fn file(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join("files").join(name), content).unwrap();
    }
}

/// Started by root, nginx may serve as another user.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn curl(gateway: &Gateway, flags: &[&str], paths: &[&str]) -> Ran {
    let (ip, port, ca) = (gateway.address.ip(), gateway.address.port(), gateway.ca.file());
    let resolve = format!("{SITE}:{port}:{ip}");
    let fixed = [
        "--silent",
        "--show-error",
        "--fail",
        "--http1.1",
        "--cacert",
        ca.to_str().unwrap(),
        "--resolve",
        &resolve,
    ];
    let urls: Vec<String> = paths
        .iter()
        .map(|path| format!("https://{SITE}:{port}{path}"))
        .collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    run("curl", &[&fixed[..], flags, &urls].concat(), b"").ok()
}

fn requests_share_a_connection(io: Io) {
    let nginx = Nginx::start();
    let gateway = Setup::new(io, &[nginx.address]).start();
    let got = curl(&gateway, &["--verbose"], &["/small", "/small", "/small"]);
    assert_eq!(got.stdout, "a small file".repeat(3));
    assert_eq!(
        got.stderr.matches("Re-using existing connection").count(),
        2,
        "{got:#?}"
    );
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.count("ringlock_handshakes_total", &[]), 1);
}

fn a_chunked_answer_arrives_whole(io: Io) {
    let nginx = Nginx::start();
    let text: String = (0..200_000)
        .map(|n: u32| n.wrapping_mul(2_654_435_761).to_string() + "\n")
        .collect();
    nginx.file("long", text.as_bytes());
    let gateway = Setup::new(io, &[nginx.address]).start();
    let got = curl(&gateway, &["--compressed", "--verbose"], &["/chunked/long"]);
    assert!(got.stderr.contains("Transfer-Encoding: chunked"), "{}", got.stderr);
    assert!(got.stdout == text, "{} of {} bytes", got.stdout.len(), text.len());
    gateway.wait_until_quiet();
}

fn a_file_of_100_mb_arrives_whole(io: Io) {
    let nginx = Nginx::start();
    let content = pattern(1_000_003).repeat(100);
    nginx.file("large", &content);
    let gateway = Setup::new(io, &[nginx.address]).start();
    let target = gateway.folder().join("got");
    curl(&gateway, &["--output", target.to_str().unwrap()], &["/large"]);
    assert!(std::fs::read(target).unwrap() == content);
    gateway.wait_until_quiet();
}

fn an_answer_that_ends_with_the_connection_arrives_whole(io: Io) {
    let nginx = Nginx::start();
    let content = pattern(3_000_000);
    nginx.file("some", &content);
    let gateway = Setup::new(io, &[nginx.address]).start();
    let target = gateway.folder().join("got");
    let got = curl(
        &gateway,
        &["--verbose", "--output", target.to_str().unwrap()],
        &["/once/some"],
    );
    assert!(got.stderr.contains("Connection: close"), "{}", got.stderr);
    assert!(std::fs::read(&target).unwrap() == content);
    // HTTP/1.0 without a length: only the end of the connection says that it is complete.
    let mut connection = Client::new(&gateway).connect();
    connection.send(b"GET /some HTTP/1.0\r\n\r\n");
    let (answer, end) = connection.receive_to_end();
    assert!(answer.ends_with(&content));
    assert_eq!(end, End::CloseNotify);
    connection.close_notify();
    gateway.wait_until_quiet();
}
