//! Soups at an address, fetched into a directory of this machine.
//!
//! Texts come first and decide under which name the soup is kept, so that one that is there already is
//! not fetched again; weights are compared with the digests of the manifest as they come. Nothing has
//! its name before it is whole.

mod web;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use object_store::{
    ClientOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::AmazonS3Builder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder, path::Path as Key,
};
use sha2::{Digest, Sha256};

use self::web::Connector;
use crate::{
    config::{Scheme, SoupAddress},
    files::{FileError, Staging, hex, sha256},
    soup::{
        BackboneKind, FRONT, Manifest, SoupError, adapter,
        checkpoint::{COMPANIONS, INDEX},
        manifest, read_manifest,
    },
};

/// Largest text of a soup, in bytes.
const MAX_TEXT: u64 = 64 << 20;
/// Times that a request is sent again, and the time after which it is not.
const RETRIES: usize = 3;
const RETRY_TIME: Duration = Duration::from_secs(180);

/// Why a soup was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The place does not give a file, for a reason that may pass.
    #[error("{at}: {reason}")]
    Unreachable { at: String, reason: String },
    /// The place gives no file to this server.
    #[error("{at}: {reason}")]
    Refused { at: String, reason: String },
    /// The place has no such file.
    #[error("{at}: there is no such file")]
    Absent { at: String },
    /// A file is another than the one that the manifest describes.
    #[error("{at}: sha256 is {got}, expected {expected}")]
    Digest { at: String, expected: String, got: String },
    /// A file was replaced while others were fetched.
    #[error("{at}: was replaced while the soup was fetched; fetch it again")]
    Replaced { at: String },
    /// A text is longer than any that makes sense.
    #[error("{at}: expected at most {MAX_TEXT} bytes")]
    TooLong { at: String },
    /// The base lies beside the soup, where nothing is fetched from.
    #[error(
        "{at}: base is {got:?}, expected base.id: a soup that is fetched brings no base; import it \
         with `ladle import`, or give --base"
    )]
    Base { at: String, got: PathBuf },
    /// A weight file that belongs to no model of the soup.
    #[error("{at}: sha256.{key:?} is no .safetensors file of a model of the soup")]
    Stray { at: String, key: String },
    /// The manifest is not right.
    #[error(transparent)]
    Soup(#[from] SoupError),
    /// What was fetched cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
}

impl FetchError {
    /// Whether asking again later may help, with nothing changed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The directory below `cache` that holds the soup at `address` as it is now, whole; what is not there
/// yet is fetched. Nothing but its manifest is fetched of a soup that `check` refuses.
pub fn fetch<E: From<FetchError>>(
    address: &SoupAddress,
    cache: &Path,
    check: impl FnOnce(&Manifest) -> Result<(), E>,
) -> Result<PathBuf, E> {
    // Two at once would fetch the same files.
    let _lock = lock(cache)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| FetchError::File(FileError::at(cache)(error)))?;
    let outcome = runtime.block_on(async { Remote::new(address)?.fetch(cache, check).await });
    // An answer that nobody reads any more is not waited for.
    runtime.shutdown_background();
    outcome
}

fn lock(cache: &Path) -> Result<File, FetchError> {
    fs::create_dir_all(cache).map_err(FileError::at(cache))?;
    let path = cache.join(".lock");
    let file = File::create(&path).map_err(FileError::at(&path))?;
    file.lock().map_err(FileError::at(&path))?;
    Ok(file)
}

/// A soup at its address.
struct Remote {
    address: SoupAddress,
    store: Box<dyn ObjectStore>,
    /// The texts that were fetched: as the store described them, and their digests.
    texts: BTreeMap<String, (ObjectMeta, String)>,
}

impl Remote {
    /// Nothing is sent yet. Credentials and endpoints are those of the environment.
    fn new(address: &SoupAddress) -> Result<Self, FetchError> {
        let (scheme, place) = (address.scheme, &address.place);
        let retry =
            RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIME, ..Default::default() };
        let store = match scheme {
            Scheme::S3 => AmazonS3Builder::from_env()
                .with_bucket_name(place)
                .with_retry(retry)
                .with_http_connector(Connector)
                .build()
                .map(|store| Box::new(store) as Box<dyn ObjectStore>),
            Scheme::Gs => GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(place)
                .with_retry(retry)
                .with_http_connector(Connector)
                .build()
                .map(|store| Box::new(store) as _),
            Scheme::Https | Scheme::Http => {
                let url = SoupAddress { path: Vec::new(), ..address.clone() };
                let plain = ClientOptions::new().with_allow_http(scheme == Scheme::Http);
                HttpBuilder::new()
                    .with_url(url.to_string())
                    .with_client_options(plain)
                    .with_retry(retry)
                    .with_http_connector(Connector)
                    .build()
                    .map(|store| Box::new(store) as _)
            }
        };
        let refuse =
            |error| FetchError::Refused { at: address.to_string(), reason: reason(&error) };
        let store = store.map_err(refuse)?;
        Ok(Self { address: address.clone(), store, texts: BTreeMap::new() })
    }

    /// Puts the soup into a directory of `cache`, named by the digests of all its files.
    async fn fetch<E: From<FetchError>>(
        &mut self,
        cache: &Path,
        check: impl FnOnce(&Manifest) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let staging = Staging::new(&cache.join(".fetched")).map_err(FetchError::File)?;
        self.text(manifest::FILE, staging.path()).await?;
        let manifest = read_manifest(staging.path()).map_err(|error| self.named(error));
        let (_, manifest) = manifest.map_err(FetchError::Soup)?;
        check(&manifest)?;
        Ok(self.rest(cache, staging, &manifest).await?)
    }

    /// Fetches what the manifest names, and gives the directory its name.
    async fn rest(
        &mut self,
        cache: &Path,
        staging: Staging,
        manifest: &Manifest,
    ) -> Result<PathBuf, FetchError> {
        let out = staging.path();
        let weights = self.weights(manifest)?;
        self.optional(FRONT, out).await?;
        let sft = manifest.sft.iter().map(|sft| (&sft.path, BackboneKind::Adapter));
        let tuned = manifest.backbones.iter().map(|backbone| (&backbone.path, backbone.kind));
        let models: BTreeMap<String, BackboneKind> =
            sft.chain(tuned).map(|(path, kind)| (slashed(path), kind)).collect();
        for (dir, kind) in models {
            let in_dir = |name: &str| format!("{dir}/{name}");
            let settings = match kind {
                BackboneKind::Adapter => adapter::CONFIG,
                BackboneKind::Full => COMPANIONS[0],
            };
            self.text(&in_dir(settings), out).await?;
            let tokenizer = self.optional(&in_dir("tokenizer.json"), out).await?;
            if kind == BackboneKind::Full {
                self.optional(&in_dir(INDEX), out).await?;
            } else if !tokenizer {
                // An adapter's other files tell about its tokenizer.
                continue;
            }
            for name in COMPANIONS {
                self.optional(&in_dir(name), out).await?;
            }
        }
        let texts = self.texts.iter().map(|(name, (_, digest))| (name, digest));
        let parts = texts.chain(&weights).map(|(name, digest)| format!("{digest} {name}\n"));
        let content = sha256(parts.collect::<String>().as_bytes());
        let target = cache.join(format!("{}@{content}", manifest.name));
        let there = target.is_dir();
        tracing::info!(soup = %self.address, directory = %target.display(), there, "fetched its texts");
        if !there {
            for (name, expected) in &weights {
                let at = self.at(name);
                let got = self.get(name).await.map_err(|error| self.failed(name, error))?;
                let (_, got) = self.save(name, got, &out.join(name), u64::MAX).await?;
                if got != *expected {
                    return Err(FetchError::Digest { at, expected: expected.clone(), got });
                }
            }
        }
        self.check_unchanged().await?;
        if !there {
            staging.commit_as(&target)?;
            tracing::info!(soup = %self.address, files = weights.len(), "fetched its weights");
        }
        Ok(target)
    }

    /// The digests that the manifest lists, of weight files of its models alone.
    fn weights(&self, manifest: &Manifest) -> Result<BTreeMap<String, String>, FetchError> {
        let dirs = manifest.backbones.iter().map(|backbone| &backbone.path);
        let dirs: BTreeSet<&Path> =
            dirs.chain(manifest.sft.iter().map(|sft| &sft.path)).map(PathBuf::as_path).collect();
        let belongs = |key: &String| {
            let path = Path::new(key);
            let of_model = path.parent().is_some_and(|dir| dirs.contains(dir));
            of_model && path.extension().is_some_and(|extension| extension == "safetensors")
        };
        match manifest.sha256.keys().find(|key| !belongs(key)) {
            Some(key) => Err(FetchError::Stray { at: self.at(manifest::FILE), key: key.clone() }),
            None => Ok(manifest.sha256.clone()),
        }
    }

    /// Fetches a text that must be there.
    async fn text(&mut self, name: &str, out: &Path) -> Result<(), FetchError> {
        if self.texts.contains_key(name) {
            return Ok(());
        }
        let got = self.get(name).await.map_err(|error| self.failed(name, error))?;
        let saved = self.save(name, got, &out.join(name), MAX_TEXT).await?;
        self.texts.insert(name.to_owned(), saved);
        Ok(())
    }

    /// Fetches a text where there is one.
    async fn optional(&mut self, name: &str, out: &Path) -> Result<bool, FetchError> {
        match self.text(name, out).await {
            Ok(()) => Ok(true),
            Err(FetchError::Absent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, name: &str) -> object_store::Result<GetResult> {
        self.store.get(&self.key(name)).await
    }

    /// Writes an answer to a file; returns what the store told of it, and its digest.
    async fn save(
        &self,
        name: &str,
        got: GetResult,
        to: &Path,
        limit: u64,
    ) -> Result<(ObjectMeta, String), FetchError> {
        let io = |error| FileError::Io { path: to.to_owned(), error };
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(io)?;
        }
        let (mut file, mut hasher, mut left) =
            (File::create(to).map_err(io)?, Sha256::new(), limit);
        let meta = got.meta.clone();
        let mut pieces = got.into_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.failed(name, error))?;
            left = left
                .checked_sub(piece.len() as u64)
                .ok_or_else(|| FetchError::TooLong { at: self.at(name) })?;
            hasher.update(&piece);
            file.write_all(&piece).map_err(io)?;
        }
        Ok((meta, hex(&hasher.finalize())))
    }

    /// Every text is still the one that was fetched: all of them were there together.
    async fn check_unchanged(&self) -> Result<(), FetchError> {
        let stamp = |meta: &ObjectMeta| (meta.size, meta.last_modified, meta.e_tag.clone());
        for (name, (was, _)) in &self.texts {
            let now = self.store.head(&self.key(name)).await;
            if stamp(&now.map_err(|error| self.failed(name, error))?) != stamp(was) {
                return Err(FetchError::Replaced { at: self.at(name) });
            }
        }
        Ok(())
    }

    fn key(&self, name: &str) -> Key {
        Key::from_iter(self.address.path.iter().map(String::as_str).chain(name.split('/')))
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn failed(&self, name: &str, error: object_store::Error) -> FetchError {
        let at = self.at(name);
        match error {
            object_store::Error::NotFound { .. } => FetchError::Absent { at },
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                FetchError::Refused { at, reason: reason(&error) }
            }
            _ => FetchError::Unreachable { at, reason: reason(&error) },
        }
    }

    /// An error about the manifest with its address: the directory that it names is a passing one.
    fn named(&self, error: SoupError) -> SoupError {
        match error {
            SoupError::Manifest { error, .. } => {
                SoupError::Manifest { path: self.at(manifest::FILE).into(), error }
            }
            other => other,
        }
    }
}

/// Characters of a store's error that are told.
const TOLD: usize = 400;

fn reason(error: &object_store::Error) -> String {
    error.to_string().chars().take(TOLD).collect()
}

/// A checked relative path with `/`.
fn slashed(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}
