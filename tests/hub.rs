//! Importing from the hub, against a server that speaks the hub's protocol on this machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use ladle::{
    import::{ImportError, ImportOptions, Store, import},
    kernels::Dtype,
    soup::{Checkpoint, TensorSpec, WeightError, checkpoint::write_checkpoint},
};
use serde_json::json;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CHUNK: usize = 32 << 20;

type Files = BTreeMap<String, Vec<u8>>;

/// What the server has, and what it was asked for.
#[derive(Default)]
struct Repository {
    files: Files,
    /// GET requests for contents: file and first byte.
    served: Vec<(String, usize)>,
    /// Refuse contents from this byte of this file on.
    forbidden: Option<(String, usize)>,
    /// Answer ranges with whole files, as a careless mirror does.
    ignores_ranges: bool,
    /// sha256 of large files, as the listing names them.
    digests: BTreeMap<String, String>,
    /// Break off the first answer with this file after as many bytes.
    breaks: Option<(String, usize)>,
    /// Another host that has the contents.
    contents: Option<String>,
    /// The token of each request for contents.
    tokens: Vec<Option<String>>,
}

type Shared = Arc<Mutex<Repository>>;

/// Serves `owner/tiny`, with `main` and [`COMMIT`] as revisions.
fn serve(files: Files) -> (Shared, String) {
    let shared: Shared = Arc::new(Mutex::new(Repository { files, ..Repository::default() }));
    let router = Router::new().fallback(answer).with_state(shared.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender.send(listener.local_addr().expect("an address")).expect("a test");
            axum::serve(listener, router).await.expect("serves");
        });
    });
    let address = receiver.recv().expect("an address");
    (shared, format!("http://{address}"))
}

async fn answer(State(shared): State<Shared>, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    let mut repository = shared.lock().expect("no panic under the lock");
    let refused = |status: StatusCode| (status, "no").into_response();
    if path == "/api/models/owner/tiny" || path.starts_with("/api/models/owner/tiny/revision/") {
        if path.ends_with("/absent") {
            return refused(StatusCode::NOT_FOUND);
        }
        let siblings: Vec<_> =
            repository.files.keys().map(|name| json!({"rfilename": name})).collect();
        let info = json!({"_id": "1", "id": "owner/tiny", "sha": COMMIT, "siblings": siblings});
        return axum::Json(info).into_response();
    }
    if path == format!("/api/models/owner/tiny/tree/{COMMIT}") {
        let mut entries: Vec<_> = repository
            .files
            .iter()
            .map(|(name, bytes)| {
                let mut entry =
                    json!({"type": "file", "oid": "1", "size": bytes.len(), "path": name});
                if let Some(digest) = repository.digests.get(name) {
                    entry["lfs"] = json!({"oid": digest, "size": bytes.len(), "pointerSize": 134});
                }
                entry
            })
            .collect();
        // Two pages, the second at the address that the first names.
        let second = entries.split_off(entries.len() / 2);
        if request.uri().query() == Some("cursor=2") {
            return axum::Json(second).into_response();
        }
        let host = request.headers()[header::HOST].to_str().expect("a host");
        let link = format!("<http://{host}{path}?cursor=2>; rel=\"next\"");
        return ([(header::LINK, link)], axum::Json(entries)).into_response();
    }
    let prefix = format!("/owner/tiny/resolve/{COMMIT}/");
    let Some(name) = path.strip_prefix(&prefix) else { return refused(StatusCode::NOT_FOUND) };
    let Some(bytes) = repository.files.get(name).cloned() else {
        return refused(StatusCode::NOT_FOUND);
    };
    let token = request.headers().get(header::AUTHORIZATION);
    repository.tokens.push(token.map(|token| token.to_str().expect("a token").to_owned()));
    if let Some(host) = &repository.contents {
        let address = format!("{host}{path}");
        return (StatusCode::FOUND, [(header::LOCATION, address)]).into_response();
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::ETAG, "\"1\"".parse().expect("a header"));
    headers.insert("x-repo-commit", COMMIT.parse().expect("a header"));
    if request.method() == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, bytes.len().into());
        return (headers, ()).into_response();
    }
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (start, end) = match range {
        Some((start, end)) if !repository.ignores_ranges => {
            (start.parse().expect("a number"), end.parse::<usize>().expect("a number") + 1)
        }
        _ => (0, bytes.len()),
    };
    if repository.forbidden.as_ref().is_some_and(|(file, from)| file == name && start >= *from) {
        return refused(StatusCode::FORBIDDEN);
    }
    repository.served.push((name.to_owned(), start));
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if let Some((_, bytes_sent)) = repository.breaks.take_if(|(file, _)| file == name) {
        let sent = bytes.get(start..start + bytes_sent).expect("inside").to_vec();
        headers.insert(header::CONTENT_LENGTH, (end - start).into());
        // What was sent leaves before the connection breaks: a body that waits is flushed.
        let chunks = futures::stream::unfold(Some(sent), |sent| async {
            if sent.is_none() {
                tokio::task::yield_now().await;
            }
            let broken = std::io::Error::other("the connection breaks");
            Some((sent.ok_or(broken), None))
        });
        return (status, headers, Body::from_stream(chunks)).into_response();
    }
    (status, headers, bytes.get(start..end).expect("inside").to_vec()).into_response()
}

/// The files of a small model, in one file or in shards.
fn model(sharded: bool) -> Files {
    let dir = tempfile::tempdir().expect("a directory");
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/tiny-qwen2.gguf");
    let options = ImportOptions { dtype: Dtype::F32, ..ImportOptions::new(dir.path()) };
    let made = import(gguf.to_str().expect("UTF-8"), &options).expect("imports").dir;
    if sharded {
        let checkpoint = Checkpoint::open(&made).expect("opens");
        let specs: Vec<TensorSpec> =
            checkpoint.tensors().iter().map(|(name, t)| TensorSpec::of(name, t)).collect();
        write_checkpoint(&made, &specs, 500_000, |spec| -> Result<_, WeightError> {
            Ok(checkpoint.get(&spec.name).expect("listed"))
        })
        .expect("written");
        fs::remove_file(made.join("model.safetensors")).expect("removed");
    }
    fs::read_dir(&made)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| !path.ends_with("ladle.json"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a file"))
        })
        .collect()
}

fn fetch(spec: &str, models: &TempDir, endpoint: &str) -> Result<PathBuf, ImportError> {
    let endpoint = Some(endpoint.to_owned());
    let options = ImportOptions { endpoint, ..ImportOptions::new(models.path()) };
    import(spec, &options).map(|imported| imported.dir)
}

fn models() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn a_model_arrives_byte_for_byte_in_one_file_or_in_shards_and_only_once() {
    for sharded in [false, true] {
        let mut files = model(sharded);
        files.insert("pytorch_model.bin".to_owned(), b"a pickle".to_vec());
        files.insert("original/consolidated.safetensors".to_owned(), b"x".to_vec());
        let (server, endpoint) = serve(files.clone());
        let models = models();
        let dir = fetch("owner/tiny", &models, &endpoint).expect("imports");
        assert_eq!(dir, models.path().join("owner/tiny"));
        Checkpoint::open(&dir).expect("a checkpoint");
        for (name, bytes) in &files {
            let wanted = !name.contains(".bin") && !name.contains('/');
            assert_eq!(fs::read(dir.join(name)).ok().as_ref(), wanted.then_some(bytes), "{name}");
        }
        let served = server.lock().expect("a server").served.len();
        assert_eq!(fetch("owner/tiny", &models, &endpoint).expect("is there"), dir);
        assert_eq!(
            Store { models_dir: models.path().to_owned(), offline: true }
                .resolve("owner/tiny")
                .expect("offline"),
            dir
        );
        assert_eq!(server.lock().expect("a server").served.len(), served);
    }
}

#[test]
fn a_revision_is_kept_beside_the_default_one() {
    let (_server, endpoint) = serve(model(false));
    let models = models();
    let dir = fetch(&format!("owner/tiny@{COMMIT}"), &models, &endpoint).expect("imports");
    assert_eq!(dir, models.path().join(format!("owner/tiny@{COMMIT}")));
    let error = fetch("owner/tiny@absent", &models, &endpoint).expect_err("no such revision");
    assert!(matches!(error, ImportError::Hub { .. }), "{error}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let mut files = model(true);
    let large: Vec<u8> = (0..CHUNK + 1000).map(|i| u8::try_from(i % 251).expect("small")).collect();
    files.insert("LICENSE".to_owned(), large.clone());
    let (server, endpoint) = serve(files.clone());
    server.lock().expect("a server").forbidden = Some(("LICENSE".to_owned(), CHUNK));
    let models = models();
    let error = fetch("owner/tiny", &models, &endpoint).expect_err("forbidden");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    assert!(!models.path().join("owner/tiny").exists());

    let first = {
        let mut server = server.lock().expect("a server");
        server.forbidden = None;
        std::mem::take(&mut server.served)
    };
    let dir = fetch("owner/tiny", &models, &endpoint).expect("imports");
    assert_eq!(fs::read(dir.join("LICENSE")).expect("a file"), large);
    let second = std::mem::take(&mut server.lock().expect("a server").served);
    assert!(first.contains(&("LICENSE".to_owned(), 0)));
    assert!(second.contains(&("LICENSE".to_owned(), CHUNK)));
    assert!(second.iter().all(|request| !first.contains(request)), "{first:?} {second:?}");
    assert!(fs::read_dir(models.path().join(".downloads")).expect("a directory").next().is_none());
}

#[test]
fn what_cannot_be_served_is_refused_before_its_weights_are_fetched() {
    let refused = |change: &dyn Fn(&mut Files), expected: &str| {
        let mut files = model(false);
        change(&mut files);
        let (server, endpoint) = serve(files);
        let models = models();
        let error = fetch("owner/tiny", &models, &endpoint).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!models.path().join("owner/tiny").exists());
        let served = &server.lock().expect("a server").served;
        assert!(served.iter().all(|(name, _)| !name.ends_with(".safetensors")), "{served:?}");
    };
    refused(
        &|files| {
            files.insert("config.json".to_owned(), br#"{"model_type": "bert"}"#.to_vec());
        },
        "bert",
    );
    refused(
        &|files| {
            files.remove("model.safetensors");
            files.insert("pytorch_model.bin".to_owned(), b"a pickle".to_vec());
        },
        "pickle",
    );
    refused(&|files| drop(files.remove("tokenizer.json")), "tokenizer.json");
    refused(
        &|files| {
            files.remove("model.safetensors");
            let index = json!({"weight_map": {"a": "../../../etc/x.safetensors"}});
            files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
        },
        "x.safetensors",
    );
}

#[test]
fn a_server_that_ignores_ranges_cannot_corrupt_a_resumed_file() {
    let mut files = model(false);
    files.insert("LICENSE".to_owned(), vec![7; CHUNK + 10]);
    let (server, endpoint) = serve(files);
    server.lock().expect("a server").ignores_ranges = true;
    let models = models();
    let error = fetch("owner/tiny", &models, &endpoint).expect_err("more than asked for");
    assert!(error.to_string().contains("LICENSE"), "{error}");
    assert!(!models.path().join("owner/tiny").exists());
}

#[test]
fn damaged_weights_are_refused_when_they_arrive() {
    let mut files = model(false);
    files.get_mut("model.safetensors").expect("weights").truncate(100_000);
    let (_server, endpoint) = serve(files);
    let models = models();
    let error = fetch("owner/tiny", &models, &endpoint).expect_err("truncated");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(!models.path().join("owner/tiny").exists());
}

#[test]
fn a_download_that_breaks_goes_on_at_the_byte_where_it_stopped() {
    let files = model(false);
    let (server, endpoint) = serve(files.clone());
    let name = "model.safetensors";
    server.lock().expect("a server").breaks = Some((name.to_owned(), 70_000));
    let models = models();
    let dir = fetch("owner/tiny", &models, &endpoint).expect("imports");
    assert_eq!(fs::read(dir.join(name)).expect("weights"), files[name]);
    let served = server.lock().expect("a server").served.clone();
    let starts: Vec<usize> =
        served.iter().filter(|(file, _)| file == name).map(|(_, start)| *start).collect();
    assert!(matches!(starts[..], [0, second] if second > 0 && second <= 70_000), "{starts:?}");
}

#[test]
fn a_file_that_is_not_the_one_that_the_hub_lists_is_refused_and_fetched_anew() {
    let files = model(false);
    let (server, endpoint) = serve(files.clone());
    let name = "model.safetensors".to_owned();
    server.lock().expect("a server").digests.insert(name.clone(), "0".repeat(64));
    let models = models();
    let error = fetch("owner/tiny", &models, &endpoint).expect_err("another digest");
    assert!(error.to_string().contains("sha256"), "{error}");
    let right = ladle::files::sha256(&files[&name]);
    server.lock().expect("a server").digests.insert(name.clone(), right);
    let dir = fetch("owner/tiny", &models, &endpoint).expect("imports");
    assert_eq!(fs::read(dir.join(&name)).expect("weights"), files[&name]);
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let (contents, other) = serve(model(false));
    let (server, endpoint) = serve(model(false));
    server.lock().expect("a server").contents = Some(other.replace("127.0.0.1", "localhost"));
    let home = models();
    let output = Command::new(env!("CARGO_BIN_EXE_ladle"))
        .args(["import", "owner/tiny"])
        .env("LADLE_HOME", home.path())
        .env("HF_ENDPOINT", &endpoint)
        .env("HF_TOKEN", "hf_secret")
        .env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN")
        .env_remove("LADLE_MODELS_DIR")
        .env("NO_PROXY", "*")
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tokens = |server: &Shared| server.lock().expect("a server").tokens.clone();
    let (asked, answered) = (tokens(&server), tokens(&contents));
    assert!(asked.len() > 2 && asked.iter().all(|token| *token == Some("Bearer hf_secret".into())));
    assert_eq!(answered.len(), asked.len());
    assert!(answered.iter().all(Option::is_none), "{answered:?}");
}

#[test]
fn an_endpoint_that_is_no_address_is_refused() {
    for wrong in ["hub.example", "ftp://hub.example", "http://", "not an address"] {
        let models = models();
        let error = fetch("owner/tiny", &models, wrong).expect_err("no hub");
        assert!(error.to_string().contains(&format!("HF_ENDPOINT is {wrong:?}")), "{error}");
    }
}
