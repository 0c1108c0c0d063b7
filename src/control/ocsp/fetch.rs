//! One response fetched from a responder over HTTP/1.1 (RFC 6960, appendix A; RFC 5019, 5). Everything that the other side decides has
//! a bound.

use data_encoding::BASE64;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::config::OcspProxy;
use crate::limits::{
    OCSP_CONNECT_TIMEOUT, OCSP_FETCH_TIMEOUT, OCSP_HEAD_BYTES_MAX, OCSP_REDIRECTS_MAX, OCSP_RESPONSE_BYTES_MAX,
};

const REQUEST_TYPE: &str = "application/ocsp-request";
const RESPONSE_TYPE: &str = "application/ocsp-response";

/// A longer URL is not asked for: the request is sent in a body instead (RFC 5019, 5).
const GET_URL_BYTES_MAX: usize = 255;

/// Why there is no response. What it says ends the sentence "the responder at URL".
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("has an address that is none: {0}")]
    Url(String),
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("has not answered in time")]
    Timeout,
    #[error("has broken off: {0}")]
    BrokenOff(hyper::Error),
    #[error("has answered {0}")]
    Status(StatusCode),
    #[error("has sent us elsewhere: {0}")]
    Redirect(String),
    #[error("has sent {0} instead of {RESPONSE_TYPE}")]
    ContentType(String),
    #[error("has sent more than {OCSP_RESPONSE_BYTES_MAX} bytes")]
    TooLarge,
}

impl FetchError {
    /// In metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            FetchError::Url(_) | FetchError::Unreachable(_) => "unreachable",
            FetchError::Timeout => "timeout",
            FetchError::BrokenOff(_) => "broken_off",
            FetchError::Status(_) => "http_status",
            FetchError::Redirect(_) => "redirect",
            FetchError::ContentType(_) => "content_type",
            FetchError::TooLarge => "too_large",
        }
    }
}

/// Asks the responder at `url`, through a proxy if there is one.
pub(super) async fn fetch(url: &str, question: Vec<u8>, proxy: Option<OcspProxy>) -> Result<Vec<u8>, FetchError> {
    let all = async {
        let by_post = Ask {
            uri: parse(url)?,
            body: Some(question.into()),
        };
        let Some(by_get) = by_post.as_get(url) else {
            return by_post.follow(proxy.as_ref()).await;
        };
        match by_get.follow(proxy.as_ref()).await {
            // Not every responder answers GET, though it has to.
            Err(FetchError::Status(_)) => by_post.follow(proxy.as_ref()).await,
            other => other,
        }
    };
    timeout(OCSP_FETCH_TIMEOUT, all)
        .await
        .unwrap_or(Err(FetchError::Timeout))
}

/// A request: GET, or POST when it has a body.
#[derive(Clone)]
struct Ask {
    uri: Uri,
    body: Option<Bytes>,
}

impl Ask {
    /// With the question in the address, if that is short enough.
    fn as_get(&self, url: &str) -> Option<Ask> {
        let question = BASE64.encode(self.body.as_ref()?);
        let question = question.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let url = format!("{}/{question}", url.strip_suffix('/').unwrap_or(url));
        // Behind a query it would mean something else.
        let fits = url.len() <= GET_URL_BYTES_MAX && self.uri.query().is_none();
        let uri = fits.then(|| parse(&url).ok()).flatten()?;
        Some(Ask { uri, body: None })
    }

    async fn follow(&self, proxy: Option<&OcspProxy>) -> Result<Vec<u8>, FetchError> {
        let mut ask = self.clone();
        for _ in 0..=OCSP_REDIRECTS_MAX {
            match ask.send(proxy).await? {
                Reply::Response(response) => return Ok(response),
                Reply::Elsewhere(uri) => ask.uri = uri,
            }
        }
        let why = format!("more than {OCSP_REDIRECTS_MAX} times");
        Err(FetchError::Redirect(why))
    }

    async fn send(&self, proxy: Option<&OcspProxy>) -> Result<Reply, FetchError> {
        let host = self.uri.host().unwrap_or_default();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let port = self.uri.port_u16().unwrap_or(80);
        let stream = match proxy {
            Some(proxy) => connect(&proxy.host, proxy.port).await?,
            None => connect(bare, port).await?,
        };
        // A proxy is told the whole address, a server what comes behind its name (RFC 9112, 3.2).
        let target = match (proxy, self.uri.path_and_query()) {
            (None, Some(path)) => path.as_str().parse().unwrap_or_else(|_| self.uri.clone()),
            (Some(_), _) | (None, None) => self.uri.clone(),
        };
        let authority = self.uri.authority().map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(if self.body.is_some() { Method::POST } else { Method::GET })
            .uri(target)
            .header(HOST, authority)
            .header(ACCEPT, RESPONSE_TYPE)
            .header(USER_AGENT, concat!("ringlock/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close");
        let request = match &self.body {
            Some(_) => request.header(CONTENT_TYPE, REQUEST_TYPE),
            None => request,
        };
        let request = request
            .body(Full::new(self.body.clone().unwrap_or_default()))
            .map_err(|error| FetchError::Url(error.to_string()))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(OCSP_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(FetchError::BrokenOff)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(FetchError::BrokenOff)?;
            self.take(response).await
        };
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            reply = &mut exchange => reply,
            // What it has received is still to be taken.
            _ = connection => exchange.await,
        }
    }

    async fn take(&self, response: Response<Incoming>) -> Result<Reply, FetchError> {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        match response.status() {
            StatusCode::OK => {}
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => {
                let location = header(LOCATION).unwrap_or_default();
                return self.elsewhere(location).map(Reply::Elsewhere);
            }
            other => return Err(FetchError::Status(other)),
        }
        let content_type = header(CONTENT_TYPE).unwrap_or("something without a type");
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case(RESPONSE_TYPE) {
            return Err(FetchError::ContentType(shown(content_type)));
        }
        match Limited::new(response.into_body(), OCSP_RESPONSE_BYTES_MAX)
            .collect()
            .await
        {
            Ok(body) => Ok(Reply::Response(body.to_bytes().into())),
            Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(FetchError::BrokenOff(*error)),
                Err(error) => Err(FetchError::Unreachable(error.to_string())),
            },
        }
    }

    /// Where a redirect leads: to `http` only, and to nothing of this machine by another scheme.
    fn elsewhere(&self, location: &str) -> Result<Uri, FetchError> {
        let origin = self.uri.authority().map(ToString::to_string).unwrap_or_default();
        let absolute = match location.strip_prefix('/') {
            Some(path) if !path.starts_with('/') => format!("http://{origin}/{path}"),
            Some(_) | None => location.to_owned(),
        };
        parse(&absolute)
            .map_err(|_| FetchError::Redirect(format!("to {}, which is no http:// address", shown(location))))
    }
}

enum Reply {
    Response(Vec<u8>),
    Elsewhere(Uri),
}

fn parse(url: &str) -> Result<Uri, FetchError> {
    let refused = |why: &str| FetchError::Url(format!("{} {why}", shown(url)));
    let uri: Uri = url.parse().map_err(|_| refused("is no URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(refused("is not of http"));
    }
    let authority = uri.authority().ok_or_else(|| refused("has no host"))?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(refused("has no host, or a user"));
    }
    Ok(uri)
}

/// To the first of its addresses that answers.
async fn connect(host: &str, port: u16) -> Result<TcpStream, FetchError> {
    let addresses = lookup_host((host, port))
        .await
        .map_err(|error| FetchError::Unreachable(format!("the name {host} cannot be resolved ({error})")))?;
    let mut why = format!("the name {host} has no address");
    for address in addresses {
        match timeout(OCSP_CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = format!("{address} ({error})"),
            Err(_) => why = format!("{address} does not answer"),
        }
    }
    Err(FetchError::Unreachable(why))
}

/// What others have written, for a log line.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(100).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(url: &str, question: &[u8]) -> Ask {
        Ask {
            uri: parse(url).unwrap(),
            body: Some(Bytes::copy_from_slice(question)),
        }
    }

    #[test]
    fn a_short_question_is_part_of_the_address() {
        let url = "http://ocsp.example.com";
        let get = ask(url, &[0xfb, 0xff, 0xfe, 0x01]).as_get(url).unwrap();
        assert_eq!(get.uri.to_string(), "http://ocsp.example.com/%2B%2F%2F%2BAQ%3D%3D");
        assert!(get.body.is_none());
        let below = "http://ocsp.example.com/status/";
        let get = ask(below, b"?").as_get(below).unwrap();
        assert_eq!(get.uri.to_string(), "http://ocsp.example.com/status/Pw%3D%3D");
        assert!(ask(url, &[0; 200]).as_get(url).is_none(), "too long");
        let query = "http://ocsp.example.com/?ca=1";
        assert!(ask(query, b"?").as_get(query).is_none());
    }

    #[test]
    fn only_http_is_asked() {
        for url in [
            "https://a.example/",
            "file:///etc/passwd",
            "ldap://a.example/",
            "http://",
            "a.example",
            "/a",
            "http://user@a.example/",
            "http://@/",
        ] {
            assert!(matches!(parse(url), Err(FetchError::Url(_))), "{url}");
        }
        for url in ["http://a.example", "HTTP://a.example:8080/x", "http://[::1]:80/"] {
            assert!(parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn redirects_stay_with_http() {
        let ask = ask("http://a.example:8080/x", b"?");
        let leads = |location: &str| ask.elsewhere(location).ok().map(|uri| uri.to_string());
        assert_eq!(leads("/y"), Some("http://a.example:8080/y".into()));
        assert_eq!(leads("http://b.example/z"), Some("http://b.example/z".into()));
        for location in [
            "",
            "https://a.example/",
            "file:///etc/passwd",
            "//b.example/",
            "y",
            "javascript:1",
            "gopher://a.example/",
        ] {
            assert_eq!(leads(location), None, "{location}");
        }
    }
}
