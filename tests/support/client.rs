//! A TLS client: rustls, blocking, with control over everything a test may want to do wrong.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion,
};
use rustls_pki_types::ServerName;

use super::{Gateway, PATIENCE, SITE, Shown, Wallet, reset};

/// What a client offers.
#[derive(Clone)]
pub(crate) struct Client<'g> {
    gateway: &'g Gateway,
    address: SocketAddr,
    name: Option<String>,
    versions: Vec<&'static SupportedProtocolVersion>,
    suites: Option<Vec<CipherSuite>>,
    groups: Option<Vec<NamedGroup>>,
    alpn: Vec<Vec<u8>>,
    shown: Option<Shown>,
    fragment: Option<usize>,
    patience: Duration,
    wallet: Option<Wallet>,
    /// Of all its connections, with what they remember.
    config: Option<Arc<ClientConfig>>,
}

/// A connection of a [`Client`].
pub(crate) struct Connection {
    /// The TLS side.
    pub(crate) tls: ClientConnection,
    /// The socket.
    pub(crate) stream: TcpStream,
}

/// How the gateway's stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By close_notify.
    CloseNotify,
    /// By FIN without close_notify.
    Truncated,
    /// By RST.
    Reset,
}

impl<'g> Client<'g> {
    /// Asks for [`SITE`] and offers what rustls offers.
    pub(crate) fn new(gateway: &'g Gateway) -> Client<'g> {
        Client {
            gateway,
            address: gateway.address,
            name: Some(SITE.into()),
            versions: rustls::ALL_VERSIONS.to_vec(),
            suites: None,
            groups: None,
            alpn: Vec::new(),
            shown: None,
            fragment: None,
            patience: PATIENCE,
            wallet: None,
            config: None,
        }
    }

    /// Connects to this address, of another listener.
    pub(crate) fn to(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Asks for this name.
    pub(crate) fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Sends no SNI. The certificate is then verified for [`SITE`].
    pub(crate) fn no_name(mut self) -> Self {
        self.name = None;
        self
    }

    /// Only TLS 1.2.
    pub(crate) fn tls12(mut self) -> Self {
        self.versions = vec![&rustls::version::TLS12];
        self
    }

    /// Only TLS 1.3.
    pub(crate) fn tls13(mut self) -> Self {
        self.versions = vec![&rustls::version::TLS13];
        self
    }

    /// These suites in this order.
    pub(crate) fn suites(mut self, suites: &[CipherSuite]) -> Self {
        self.suites = Some(suites.to_vec());
        self
    }

    /// These groups in this order. A share is sent for the first.
    pub(crate) fn groups(mut self, groups: &[NamedGroup]) -> Self {
        self.groups = Some(groups.to_vec());
        self
    }

    /// These application protocols.
    pub(crate) fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_owned())
            .collect();
        self
    }

    /// Shows this when it is asked for a certificate.
    pub(crate) fn shows(mut self, shown: &Shown) -> Self {
        self.shown = Some(shown.clone());
        self
    }

    /// Cuts what it sends into records of at most so many bytes.
    pub(crate) fn fragments(mut self, bytes: usize) -> Self {
        self.fragment = Some(bytes);
        self
    }

    /// Offers the sessions in it, and puts those in that it gets.
    pub(crate) fn wallet(mut self, wallet: &Wallet) -> Self {
        self.wallet = Some(wallet.clone());
        self
    }

    /// Waits for so long and no longer.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Keeps sessions from now on, as a client does with the default settings of rustls: each connection resumes one of those before. What
    /// it offers cannot be changed after this.
    pub(crate) fn keeps_sessions(mut self) -> Self {
        self.config = Some(self.config());
        self
    }

    /// The alert with which the gateway refuses what this client shows. In TLS 1.3 the client's handshake is over by then.
    #[track_caller]
    pub(crate) fn refused_after_its_flight(&self) -> AlertDescription {
        let read = self.try_connect().and_then(|mut connection| connection.read(&mut [0]));
        let error = match read {
            Err(error) => error,
            Ok(read) => panic!("it is not refused: {read:?}\n{}", self.gateway.log()),
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            Some(_) | None => panic!("no alert, but {error:?}"),
        }
    }

    /// Connects and completes the handshake.
    #[track_caller]
    pub(crate) fn connect(&self) -> Connection {
        self.try_connect()
            .unwrap_or_else(|error| panic!("no handshake: {error}\n{}", self.gateway.log()))
    }

    /// Connects, and fails if the handshake does.
    pub(crate) fn try_connect(&self) -> Result<Connection, io::Error> {
        let mut connection = self.open();
        connection.handshake()?;
        Ok(connection)
    }

    /// The alert with which the gateway refuses this client.
    #[track_caller]
    pub(crate) fn refused_with(&self) -> AlertDescription {
        let Err(error) = self.try_connect() else {
            panic!("the handshake succeeds")
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            Some(_) | None => panic!("no alert, but {error:?}"),
        }
    }

    /// Connects by TCP; the handshake is yet to begin.
    #[track_caller]
    pub(crate) fn open(&self) -> Connection {
        let stream = connect_tcp(self.address);
        stream.set_read_timeout(Some(self.patience)).unwrap();
        Connection {
            tls: self.tls(),
            stream,
        }
    }

    /// The TLS side alone.
    pub(crate) fn tls(&self) -> ClientConnection {
        let name = self.name.clone().unwrap_or_else(|| SITE.into());
        ClientConnection::new(self.config(), ServerName::try_from(name).unwrap()).unwrap()
    }

    fn config(&self) -> Arc<ClientConfig> {
        if let Some(config) = &self.config {
            return Arc::clone(config);
        }
        let mut provider = aws_lc_rs::default_provider();
        if let Some(suites) = &self.suites {
            let all = aws_lc_rs::ALL_CIPHER_SUITES;
            let find = |name| {
                *all.iter()
                    .find(|suite| suite.suite() == name)
                    .expect("rustls has this suite")
            };
            provider.cipher_suites = suites.iter().map(|&name| find(name)).collect();
        }
        if let Some(groups) = &self.groups {
            let all = aws_lc_rs::ALL_KX_GROUPS;
            let find = |name| {
                *all.iter()
                    .find(|group| group.name() == name)
                    .expect("rustls has this group")
            };
            provider.kx_groups = groups.iter().map(|&name| find(name)).collect();
        }
        let mut roots = RootCertStore::empty();
        roots.add(self.gateway.ca.der()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::new(provider))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.shown {
            Some(shown) => builder.with_client_cert_resolver(shown.resolver()),
            None => builder.with_no_client_auth(),
        };
        if let Some(wallet) = &self.wallet {
            wallet.give_to(&mut config, self.shown.as_ref());
        }
        config.max_fragment_size = self.fragment;
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_sni = self.name.is_some();
        Arc::new(config)
    }
}

/// A TCP connection to this address of the gateway.
#[track_caller]
pub(crate) fn connect_tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Connection {
    /// Completes the handshake.
    pub(crate) fn handshake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.stream)?;
        }
        self.flush()
    }

    /// Takes what the client wants to send next, without sending it: at first the ClientHello.
    pub(crate) fn take_outgoing(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// Sends data.
    #[track_caller]
    pub(crate) fn send(&mut self, data: &[u8]) {
        self.try_send(data).unwrap();
    }

    /// Sends data, and fails if the gateway has gone.
    pub(crate) fn try_send(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let taken = self.tls.writer().write(data)?;
            data = &data[taken..];
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what is due.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    /// Receives exactly so many bytes.
    #[track_caller]
    pub(crate) fn receive(&mut self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.read(&mut data[filled..]) {
                Ok(Ok(count)) => filled += count,
                Ok(Err(end)) => panic!("the stream ended ({end:?}) after {filled} of {length} bytes"),
                Err(error) => panic!("{error} after {filled} of {length} bytes"),
            }
        }
        data
    }

    /// Receives to the end of the stream.
    #[track_caller]
    pub(crate) fn receive_to_end(&mut self) -> (Vec<u8>, End) {
        let mut data = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.read(&mut buffer).unwrap() {
                Ok(count) => data.extend_from_slice(&buffer[..count]),
                Err(end) => return (data, end),
            }
        }
    }

    /// Receives something, or the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Result<usize, End>> {
        loop {
            match self.tls.reader().read(buffer) {
                Ok(0) => return Ok(Err(End::CloseNotify)),
                Ok(count) => return Ok(Ok(count)),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Err(End::Truncated)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.tls.read_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Err(End::Reset)),
                Err(error) => return Err(error),
            }
            self.tls.process_new_packets().map_err(io::Error::other)?;
            // An answer to a KeyUpdate may be due; the gateway may have closed already.
            let _ = self.flush();
        }
    }

    /// Sends close_notify; the other direction goes on.
    #[track_caller]
    pub(crate) fn close_notify(&mut self) {
        self.tls.send_close_notify();
        self.flush().unwrap();
    }

    /// Ends our TCP stream.
    pub(crate) fn fin(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes with a RST.
    pub(crate) fn reset(self) {
        reset(self.stream);
    }

    /// Ends our stream by close_notify, receives the rest, and expects close_notify.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.close_notify();
        let (rest, end) = self.receive_to_end();
        assert_eq!(end, End::CloseNotify);
        rest
    }

    /// Version, suite and group.
    pub(crate) fn negotiated(&self) -> (ProtocolVersion, CipherSuite, NamedGroup) {
        (
            self.tls.protocol_version().unwrap(),
            self.tls.negotiated_cipher_suite().unwrap().suite(),
            self.tls.negotiated_key_exchange_group().unwrap().name(),
        )
    }

    /// The certificate that the gateway showed.
    pub(crate) fn certificate(&self) -> &[u8] {
        &self.tls.peer_certificates().unwrap()[0]
    }
}
