//! A TLS terminator made of pingora, for `scripts/compare`: its example `proxy`, with the TLS settings that a work asks for.
//!
//! The example copies through buffers of 1 KiB; here tokio copies, with buffers as it comes (8 KiB).

use async_trait::async_trait;
use clap::Parser;
use pingora::apps::ServerApp;
use pingora::connectors::TransportConnector;
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::{HttpPeer, ProxyHttp, Session, http_proxy_service};
use pingora::protocols::Stream;
use pingora::server::configuration::ServerConf;
use pingora::server::{Server, ShutdownWatch};
use pingora::services::listening::Service;
use pingora::upstreams::peer::BasicPeer;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{ProtocolVersion, RootCertStore};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// What `scripts/compare` tells it.
#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    listen: String,
    #[arg(long)]
    origin: String,
    /// A chain in PEM.
    #[arg(long)]
    certificate: String,
    #[arg(long)]
    key: String,
    /// The only version: 1.2 or 1.3.
    #[arg(long)]
    tls: String,
    /// The only key exchange, by the name of TLS.
    #[arg(long)]
    group: String,
    /// Clients have to show a certificate of one of these CAs.
    #[arg(long)]
    client_ca: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// An HTTP proxy, which does not connect to the origin before there is a request.
    #[arg(long)]
    http: bool,
}

/// rustls takes versions, suites and groups from what is installed for the process: pingora has no settings for them.
fn install_provider(version: &str, group: &str) -> Result<(), Box<dyn Error>> {
    let version = match version {
        "1.2" => ProtocolVersion::TLSv1_2,
        "1.3" => ProtocolVersion::TLSv1_3,
        other => return Err(format!("--tls: found '{other}', expected 1.2 or 1.3").into()),
    };
    let mut provider: CryptoProvider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| {
        suite.version().version == version && format!("{:?}", suite.suite()).ends_with("AES_128_GCM_SHA256")
    });
    provider
        .kx_groups
        .retain(|known| format!("{:?}", known.name()) == group);
    if provider.kx_groups.is_empty() {
        return Err(format!("--group: aws-lc-rs has no {group}").into());
    }
    provider
        .install_default()
        .map_err(|_| "another cryptographic provider was installed before".into())
}

fn tls_settings(arguments: &Arguments) -> Result<TlsSettings, Box<dyn Error>> {
    let mut settings = TlsSettings::intermediate(&arguments.certificate, &arguments.key)?;
    if let Some(file) = &arguments.client_ca {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(file)? {
            roots.add(root?)?;
        }
        settings.set_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?);
    }
    Ok(settings)
}

struct Terminator {
    connector: TransportConnector,
    origin: BasicPeer,
}

#[async_trait]
impl ServerApp for Terminator {
    async fn process_new(self: &Arc<Self>, mut client: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        if let Ok(mut origin) = self.connector.new_stream(&self.origin).await {
            // How a connection ends is the client's and the origin's business, and counted there.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut origin).await;
        }
        None
    }
}

struct HttpTerminator {
    origin: String,
}

#[async_trait]
impl ProxyHttp for HttpTerminator {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, (): &mut Self::CTX) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin.as_str(), false, String::new())))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    install_provider(&arguments.tls, &arguments.group)?;
    let settings = tls_settings(&arguments)?;
    let conf = ServerConf {
        threads: arguments.threads,
        // SIGTERM ends it at once, instead of after five minutes.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    if arguments.http {
        let app = HttpTerminator {
            origin: arguments.origin,
        };
        let mut service = http_proxy_service(&server.configuration, app);
        service.add_tls_with_settings(&arguments.listen, None, settings);
        server.add_service(service);
    } else {
        let app = Terminator {
            connector: TransportConnector::new(None),
            origin: BasicPeer::new(&arguments.origin),
        };
        let mut service = Service::new("terminator".to_owned(), app);
        service.add_tls_with_settings(&arguments.listen, None, settings);
        server.add_service(service);
    }
    server.run_forever();
}
