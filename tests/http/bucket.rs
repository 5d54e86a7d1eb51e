//! An object store on this machine: answers GET and HEAD as S3, Google's storage and plain web servers
//! do, checks signatures for itself, and fails as it is told.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, mpsc},
    thread,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use ladle::files::{hex, sha256};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::server::fixture;

pub const ACCESS_KEY: &str = "AKIDTEST";
pub const SECRET: &str = "secret/of+tests";
/// The bucket whose requests must be signed.
pub const SIGNED: &str = "signed";

/// What goes wrong with a key.
#[derive(Clone)]
pub enum Fault {
    /// The connection breaks after so many bytes, so many times.
    Breaks {
        after: usize,
        times: usize,
    },
    /// Once it was read, the key has this content.
    Replaced(Vec<u8>),
    Status(StatusCode),
    Redirect(String),
}

#[derive(Default)]
pub struct Content {
    /// By path, the bucket first.
    pub objects: BTreeMap<String, Vec<u8>>,
    pub faults: BTreeMap<String, Fault>,
    /// Requests: method, path, and first byte.
    pub asked: Vec<(String, String, usize)>,
    /// A path whose answer waits.
    held: Option<String>,
}

pub struct Bucket {
    shared: Arc<(Mutex<Content>, Condvar)>,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Bucket {
    pub fn start() -> Self {
        let shared = Arc::<(Mutex<Content>, Condvar)>::default();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap().to_string()).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { shared, address: told.recv().unwrap() }
    }

    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.0.lock().unwrap()
    }

    /// Puts the files of a directory below a path.
    pub fn put(&self, dir: &Path, to: &str) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let to = format!("{to}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.put(&entry.path(), &to);
            } else {
                self.content().objects.insert(to, fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Lets the answer of a path wait until [`Bucket::release`].
    pub fn hold(&self, path: &str) {
        self.content().held = Some(path.to_owned());
    }

    pub fn release(&self) {
        self.content().held = None;
        self.shared.1.notify_all();
    }

    /// Waits until a path was asked for.
    pub fn wait_for(&self, path: &str) {
        let asked =
            |content: &mut Content| !content.asked.iter().any(|(_, asked, _)| asked == path);
        drop(self.shared.1.wait_while(self.content(), asked).unwrap());
    }

    /// How often the content of keys that end so was asked for.
    pub fn read(&self, ending: &str) -> usize {
        let content = self.content();
        let read = |(method, path, _): &&(String, String, usize)| {
            method == "GET" && path.ends_with(ending)
        };
        content.asked.iter().filter(read).count()
    }
}

async fn answer(
    State(shared): State<Arc<(Mutex<Content>, Condvar)>>,
    request: Request<Body>,
) -> Response {
    // A held answer must not hold up others.
    tokio::task::spawn_blocking(move || answer_to(&shared, &request)).await.unwrap()
}

fn answer_to((content, changed): &(Mutex<Content>, Condvar), request: &Request<Body>) -> Response {
    let (method, headers) = (request.method().as_str(), request.headers());
    let path = decoded(request.uri().path().trim_start_matches('/'));
    let refused = |status: StatusCode| (status, "no").into_response();
    let signed = path.starts_with(&format!("{SIGNED}/"));
    if signed && signature(SECRET, method, request.uri().path(), headers) != given(headers) {
        return refused(StatusCode::FORBIDDEN);
    }
    let range =
        headers.get(header::RANGE).and_then(|value| value.to_str().unwrap().strip_prefix("bytes="));
    let start = range.map_or(0, |range| range.split('-').next().unwrap().parse().unwrap());
    let mut content = content.lock().unwrap();
    content.asked.push((method.to_owned(), path.clone(), start));
    changed.notify_all();
    let held = |content: &mut Content| content.held.as_ref() == Some(&path);
    let mut content = changed.wait_while(content, held).unwrap();
    let Some(bytes) = content.objects.get(&path).cloned() else {
        return refused(StatusCode::NOT_FOUND);
    };
    let mut head = HeaderMap::new();
    let tag = format!("\"{}\"", &sha256(&bytes)[..32]);
    head.insert(header::ETAG, tag.parse().unwrap());
    head.insert(header::LAST_MODIFIED, "Sun, 29 Nov 2026 12:00:00 GMT".parse().unwrap());
    head.insert(header::CONTENT_LENGTH, (bytes.len() - start).into());
    if method == "HEAD" {
        return head.into_response();
    }
    let status = match range {
        Some(_) => StatusCode::PARTIAL_CONTENT,
        None => StatusCode::OK,
    };
    if range.is_some() {
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        head.insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    let body = Bytes::from(bytes).slice(start..);
    match content.faults.get_mut(&path) {
        Some(Fault::Status(status)) => refused(*status),
        Some(Fault::Redirect(to)) => {
            (StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response()
        }
        Some(Fault::Breaks { after, times }) if *times > 0 => {
            *times -= 1;
            let sent = body.slice(..*after);
            // What was sent leaves before the connection breaks: a body that waits is flushed.
            let pieces = futures::stream::unfold(Some(sent), |sent| async {
                if sent.is_none() {
                    tokio::task::yield_now().await;
                }
                Some((sent.ok_or(std::io::Error::other("the connection breaks")), None))
            });
            (status, head, Body::from_stream(pieces)).into_response()
        }
        Some(Fault::Replaced(with)) => {
            let with = with.clone();
            content.objects.insert(path, with);
            (status, head, body).into_response()
        }
        _ => (status, head, body).into_response(),
    }
}

/// A path without its escapes: Google's clients write even slashes so.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |path, part| {
        let byte = u8::from_str_radix(&part[..2], 16).unwrap();
        path + &char::from(byte).to_string() + &part[2..]
    })
}

fn given(headers: &HeaderMap) -> Option<String> {
    let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    Some(authorization.split_once("Signature=")?.1.to_owned())
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

/// The signature that a request without a query must have (AWS Signature Version 4): of the method, the
/// path, the headers that are named as signed, and the digest of the body.
fn signature(secret: &str, method: &str, path: &str, headers: &HeaderMap) -> Option<String> {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let authorization = header("authorization")?;
    let part = |name: &str| Some(authorization.split_once(name)?.1.split(',').next()?.trim());
    let credential: Vec<&str> = part("Credential=")?.split('/').collect();
    let [access, day, region, service, last] = credential[..] else { return None };
    let signed = part("SignedHeaders=")?;
    let all = ["host", "x-amz-content-sha256", "x-amz-date"];
    if access != ACCESS_KEY || !all.iter().all(|name| signed.split(';').any(|s| s == *name)) {
        return None;
    }
    let named = signed.split(';').map(|name| Some(format!("{name}:{}\n", header(name)?.trim())));
    let named = named.collect::<Option<String>>()?;
    let digest = header("x-amz-content-sha256")?;
    let canonical = format!("{method}\n{path}\n\n{named}\n{signed}\n{digest}");
    let (date, scope) = (header("x-amz-date")?, [day, region, service, last].join("/"));
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, region, service, last, &to_sign] {
        key = hmac(&key, part);
    }
    Some(hex(&key))
}

/// `tests/reference/make_sigv4.py`.
#[test]
fn the_check_of_signatures_agrees_with_botocore() {
    let text = fs::read_to_string(fixture("sigv4.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let requests = document["requests"].as_array().unwrap();
    assert!(requests.len() >= 4);
    for request in requests {
        let mut headers = HeaderMap::new();
        for (name, value) in request["headers"].as_object().unwrap() {
            let name: header::HeaderName = name.parse().unwrap();
            headers.insert(name, value.as_str().unwrap().parse().unwrap());
        }
        let of = |secret: &str| {
            let (method, path) = (request["method"].as_str(), request["path"].as_str());
            signature(secret, method.unwrap(), path.unwrap(), &headers)
        };
        let given = given(&headers);
        assert!(given.is_some());
        assert_eq!(of(document["secret"].as_str().unwrap()), given, "{request}");
        assert_ne!(of("another"), given);
    }
}
