//! OCSP: certificates that name a responder, and responders, which answer what a test wants.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, CustomExtension};

use super::{Ca, Origin, Stream, own_ip, run};

/// What was asked over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// "GET" or "POST".
    pub(crate) method: String,
    /// As in the first line.
    pub(crate) target: String,
    /// The whole head.
    pub(crate) head: String,
    /// What comes behind it.
    pub(crate) body: Vec<u8>,
}

type Serve = Arc<dyn Fn(&Asked, Stream) + Send + Sync>;

/// An HTTP server on loopback, whose behaviour can be changed while it runs.
pub(crate) struct Responder {
    origin: Origin,
    serve: Arc<Mutex<Serve>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Responder {
    /// Reads a request and has `serve` answer it.
    pub(crate) fn start(serve: impl Fn(&Asked, Stream) + Send + Sync + 'static) -> Responder {
        Responder::start_at(own_ip(), serve)
    }

    /// The same at this address.
    pub(crate) fn start_at(ip: IpAddr, serve: impl Fn(&Asked, Stream) + Send + Sync + 'static) -> Responder {
        let serve: Arc<Mutex<Serve>> = Arc::new(Mutex::new(Arc::new(serve)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (present, log) = (Arc::clone(&serve), Arc::clone(&asked));
        let origin = Origin::start_at(SocketAddr::new(ip, 0), move |mut stream| {
            let Some(request) = read(&mut stream) else { return };
            log.lock().unwrap().push(request.clone());
            let serve = Arc::clone(&present.lock().unwrap());
            serve(&request, stream);
        });
        Responder { origin, serve, asked }
    }

    /// Answers everything with these bytes, as an OCSP response.
    pub(crate) fn with(response: &[u8]) -> Responder {
        let response = response.to_owned();
        Responder::start(move |_, stream| answer(stream, &response))
    }

    /// From now on does something else.
    pub(crate) fn change(&self, serve: impl Fn(&Asked, Stream) + Send + Sync + 'static) {
        *self.serve.lock().unwrap() = Arc::new(serve);
    }

    /// From now on answers everything with these bytes.
    pub(crate) fn change_to(&self, response: &[u8]) {
        let response = response.to_owned();
        self.change(move |_, stream| answer(stream, &response));
    }

    /// `http://…`, without a path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.origin.address())
    }

    /// The port where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.origin.address().port()
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// An HTTP response with this body, as responders send it.
pub(crate) fn answer(stream: Stream, body: &[u8]) {
    reply(stream, "200 OK", "Content-Type: application/ocsp-response\r\n", body);
}

/// An HTTP response. That nobody takes it any more is no error.
pub(crate) fn reply(mut stream: Stream, status: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn read(stream: &mut Stream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut words = head.split_whitespace().map(str::to_owned);
            let (method, target) = (words.next()?, words.next()?);
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().unwrap())
            });
            let body = &bytes[end + 4..];
            if body.len() >= length.unwrap_or(0) {
                let body = body.to_vec();
                return Some(Asked {
                    method,
                    target,
                    head,
                    body,
                });
            }
        }
        let length = stream.read(&mut buffer).ok().filter(|&length| length > 0)?;
        bytes.extend_from_slice(&buffer[..length]);
    }
}

/// Names a responder in a certificate (authorityInfoAccess).
pub(crate) fn names_responder(params: &mut CertificateParams, url: &str) {
    const OCSP: [u8; 10] = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01];
    let location = der(0x86, url.as_bytes());
    let description = der(0x30, &[&OCSP[..], &location].concat());
    let content = der(0x30, &description);
    let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content);
    params.custom_extensions.push(extension);
}

/// Demands a staple in a certificate (RFC 7633).
pub(crate) fn must_staple(params: &mut CertificateParams) {
    let content = vec![0x30, 0x03, 0x02, 0x01, 0x05];
    let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], content);
    params.custom_extensions.push(extension);
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 128, "one byte of length");
    [&[tag, length][..], content].concat()
}

/// What the index of a CA says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    Good,
    Revoked,
    Nowhere,
}

/// An index of `openssl ca` with this certificate.
pub(crate) fn index(ca: &Ca, name: &str, listed: Listed) -> PathBuf {
    let file = ca.certificate_file(name);
    let text = run(
        "openssl",
        &["x509", "-in", file.to_str().unwrap(), "-noout", "-serial"],
        b"",
    )
    .ok()
    .stdout;
    let serial = text.trim().strip_prefix("serial=").unwrap();
    let line = match listed {
        Listed::Good => format!("V\t491231235959Z\t\t{serial}\tunknown\t/CN={name}\n"),
        Listed::Revoked => format!("R\t491231235959Z\t200101000000Z,keyCompromise\t{serial}\tunknown\t/CN={name}\n"),
        Listed::Nowhere => String::new(),
    };
    let index = file.with_extension("index");
    std::fs::write(&index, line).unwrap();
    index
}

/// How `openssl ocsp` answers about a certificate.
pub(crate) struct Answer<'a> {
    /// What its CA knows.
    pub(crate) listed: Listed,
    /// Who signs: a certificate of [`Ca::issue_with`] by its name, or the CA itself.
    pub(crate) signer: Option<&'a str>,
    /// When it is made, as faketime has it: "-2d". Now when there is nothing.
    pub(crate) time: Option<&'a str>,
    /// How long it is good, and what else there is to say.
    pub(crate) arguments: &'a [&'a str],
}

impl Default for Answer<'_> {
    fn default() -> Self {
        Answer {
            listed: Listed::Good,
            signer: None,
            time: None,
            arguments: &["-ndays", "1"],
        }
    }
}

impl Answer<'_> {
    /// Makes it, about the certificate of this name.
    #[track_caller]
    pub(crate) fn about(&self, ca: &Ca, name: &str) -> Vec<u8> {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let certificate = ca.certificate_file(name);
        let file = |extension: &str| path(&certificate.with_extension(extension));
        let (authority, request, response) = (path(&ca.file()), file("request"), file("response"));
        let index = path(&index(ca, name, self.listed));
        let certificate = path(&certificate);
        let asking = [
            "ocsp",
            "-issuer",
            &authority,
            "-cert",
            &certificate,
            "-no_nonce",
            "-reqout",
            &request,
        ];
        run("openssl", &asking, b"").ok();
        let (signer, key) = match self.signer {
            None => (authority.clone(), path(&ca.write_key())),
            Some(name) => (path(&ca.certificate_file(name)), path(&ca.key_file(name))),
        };
        let answering = [
            "ocsp", "-index", &index, "-CA", &authority, "-rsigner", &signer, "-rkey", &key, "-reqin", &request,
            "-respout", &response,
        ];
        let answering = answering.into_iter().chain(self.arguments.iter().copied());
        match self.time {
            None => run("openssl", &answering.collect::<Vec<_>>(), b"").ok(),
            Some(time) => {
                let all: Vec<&str> = ["-f", time, "openssl"].into_iter().chain(answering).collect();
                run("faketime", &all, b"").ok()
            }
        };
        std::fs::read(response).unwrap()
    }
}
