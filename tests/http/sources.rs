//! Soups at addresses: fetched whole or not at all, from where the operator allows.

use std::{ffi::OsStr, fs, net::TcpListener, os::unix::fs::symlink, path::PathBuf, thread};

use axum::http::StatusCode;
use ladle::config::{ServeOptions, SoupAddress, StoreOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    bucket::{ACCESS_KEY, Bucket, Fault, SECRET, SIGNED},
    keys::{Keys, post},
    process::Process,
    server::{Reply, copy, fixture, with},
    soups::{ROUTE, call, edit, question},
};

const WEIGHTS: &str = "backbones/helpful/adapter_model.safetensors";

/// A bucket with the soups `one` and `two` of one name, and a server of the first that may be given any
/// below `soups`.
struct Remote {
    bucket: Bucket,
    home: TempDir,
    /// Read again with each replacement.
    _keys: Keys,
    key: String,
    process: Process,
}

impl Remote {
    /// Serves the soup below an address, which has `{address}` for that of the bucket.
    fn start(from: &str) -> Self {
        let (bucket, home) = (Bucket::start(), tempfile::tempdir().unwrap());
        fs::create_dir(home.path().join("models")).unwrap();
        symlink(fixture("soup-tiny/base"), home.path().join("models/tiny")).unwrap();
        for (soup, beta) in [("one", "0.7"), ("two", "0.6")] {
            let dir = home.path().join(soup);
            fs::create_dir(&dir).unwrap();
            copy(&fixture("soup-tiny"), &dir);
            fs::remove_dir_all(dir.join("base")).unwrap();
            edit(&dir, "path = \"base\"", "id = \"tiny\"");
            edit(&dir, "beta = 0.7", &format!("beta = {beta}"));
            for bucket_name in [SIGNED, "open"] {
                bucket.put(&dir, &format!("{bucket_name}/soups/{soup}"));
            }
        }
        let from = from.replace("{address}", &bucket.address);
        let keys = Keys::none();
        let key = keys.add(&["deploy", "--soups", "--admin"]);
        let soup = format!("{from}/one");
        let arguments = ["--soup-source", &from, "--named-keys", keys.file.to_str().unwrap()];
        let mut command = Process::command(OsStr::new(&soup), home.path(), &arguments);
        let url = format!("http://{}", bucket.address);
        command.envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
        command.envs([("AWS_ENDPOINT_URL", url.as_str()), ("AWS_ALLOW_HTTP", "true")]);
        command.envs([("AWS_REGION", "eu-test-1"), ("GOOGLE_SKIP_SIGNATURE", "true")]);
        command.env("GOOGLE_BASE_URL", url);
        let process = Process::run(&mut command, &arguments);
        Self { bucket, home, _keys: keys, key, process }
    }

    fn put(&self, body: Value) -> Reply {
        call(&self.process.server, "PUT", ROUTE, &self.key, Some(body))
    }

    fn soup(&self) -> Value {
        let listed = call(&self.process.server, "GET", "/admin/soups", &self.key, None).ok();
        listed["soups"][0].clone()
    }

    fn answer(&self) -> Value {
        post(&self.process.server, &self.key, "/generate", &question(1)).ok()
    }

    /// What a server of the same soup in a directory answers.
    fn expected(&self, soup: &str) -> Value {
        let home = self.home.path();
        let mut command = Process::command(home.join(soup).as_os_str(), home, &["--offline"]);
        Process::run(&mut command, &[]).server.generate(question(1))
    }

    /// What is kept of fetched soups.
    fn kept(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path().join("soups")).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.file_name() != Some(OsStr::new(".lock")));
        paths
    }

    /// The former generation has ended.
    fn wait_until_drained(&self) {
        self.process.server.wait_until("drained", |_| self.soup()["draining"] == json!([]));
    }
}

#[test]
fn a_soup_in_a_bucket_answers_as_its_directory_does_and_is_replaced_by_another() {
    let remote = Remote::start("s3://signed/soups");
    let (one, two) = (remote.expected("one"), remote.expected("two"));
    assert_ne!(one["text"], two["text"]);
    let same = |expected: &Value| {
        let answer = remote.answer();
        assert_eq!((&answer["text"], &answer["soup"]), (&expected["text"], &expected["soup"]));
    };
    same(&one);
    assert_eq!(remote.soup()["source"], "s3://signed/soups/one");

    // The digest that a request names is that of the soup, or nothing is replaced.
    let [digest, other] = [&two, &one].map(|answer| answer["soup"]["digest"].clone());
    let source = json!({"source": "s3://signed/soups/two"});
    let refused = remote.put(with(source.clone(), json!({"digest": other})));
    let (code, param, message) = refused.error();
    assert_eq!((refused.status, code, param), (400, "invalid_value", Some("digest")), "{message}");
    assert!(message.contains(digest.as_str().unwrap()), "{message}");
    same(&one);
    let replaced = remote.put(with(source, json!({"digest": digest}))).ok();
    assert_eq!(
        (&replaced["source"], &replaced["digest"]),
        (&"s3://signed/soups/two".into(), &digest)
    );
    same(&two);

    // What is there already is not fetched again: the weights of both are the same, their texts differ.
    assert_eq!((remote.kept().len(), remote.bucket.read(WEIGHTS)), (2, 2));
    remote.wait_until_drained();
    remote.put(json!({"source": "s3://signed/soups/one/"})).ok();
    same(&one);
    assert_eq!((remote.kept().len(), remote.bucket.read(WEIGHTS)), (2, 2));

    // SIGHUP looks at the address again.
    remote.wait_until_drained();
    remote.process.signal("HUP");
    remote.process.wait_for(&["SIGHUP", "the soup has not changed"]);
    remote.bucket.put(&remote.home.path().join("two"), "signed/soups/one");
    remote.process.signal("HUP");
    remote.process.wait_for(&["SIGHUP", "the soup was loaded again"]);
    same(&two);
}

#[test]
fn googles_storage_and_web_servers_give_soups_too() {
    for from in ["gs://open/soups", "http://{address}/open/soups"] {
        let remote = Remote::start(from);
        let from = from.replace("{address}", &remote.bucket.address);
        assert_eq!(remote.answer()["text"], remote.expected("one")["text"], "{from}");
        remote.put(json!({"source": format!("{from}/two")})).ok();
        assert_eq!(remote.answer()["text"], remote.expected("two")["text"], "{from}");
    }
}

#[test]
fn what_is_wrong_at_an_address_changes_nothing_and_leaves_nothing() {
    let remote = Remote::start("s3://signed/soups");
    let (before, answer, kept) = (remote.soup(), remote.answer(), remote.kept());
    let (two, weights) = ("signed/soups/two", format!("signed/soups/two/{WEIGHTS}"));
    let sound = remote.bucket.content().objects.clone();
    let manifest = String::from_utf8(sound[&format!("{two}/soup.toml")].clone()).unwrap();
    let settings = format!("{two}/backbones/helpful/adapter_config.json");
    let written = |from: &str, to: &str| manifest.replace(from, to).into_bytes();
    let set = |path: &str, bytes: Option<Vec<u8>>| {
        let mut content = remote.bucket.content();
        (content.objects, content.faults) = (sound.clone(), Default::default());
        match bytes {
            Some(bytes) => _ = content.objects.insert(path.to_owned(), bytes),
            None => _ = content.objects.remove(path),
        }
    };
    let refused = |what: &str, status: u16, parts: &[&str]| {
        let reply = remote.put(json!({"source": "s3://signed/soups/two"}));
        let (_, param, message) = reply.error();
        assert_eq!((reply.status, param), (status, Some("source")), "{what}: {message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{what}: {message}");
        assert_eq!((remote.soup(), remote.kept()), (before.clone(), kept.clone()), "{what}");
        assert_eq!(remote.answer()["text"], answer["text"], "{what}");
    };
    let mut changed = sound[&weights].clone();
    *changed.last_mut().unwrap() ^= 1;
    set(&weights, Some(changed));
    refused("another weight", 400, &[WEIGHTS, "sha256 is", "expected"]);
    set(&weights, Some(sound[&weights][..1000].to_vec()));
    refused("a truncated object", 400, &[WEIGHTS, "sha256 is", "expected"]);
    for path in [&weights, &settings, &format!("{two}/soup.toml")] {
        set(path, None);
        refused("a missing key", 400, &[path.strip_prefix("signed/").unwrap(), "no such file"]);
    }
    let toml = format!("{two}/soup.toml");
    set(&toml, Some(written("id = \"tiny\"", "path = \"../../etc\"")));
    refused("a base beside it", 400, &["soups/two", "base is \"../../etc\"", "ladle import"]);
    set(&toml, Some(written("id = \"tiny\"", "id = \"owner/unknown\"")));
    refused("a base that is not here", 400, &["owner/unknown", "fetching is off"]);
    set(&toml, Some(written("backbones/brief/adapter_model", "base/model")));
    refused("weights of no model", 400, &["base/model.safetensors", "of a model of the soup"]);
    set(&toml, Some(written("backbones/brief/adapter_model", "../adapter_model")));
    refused("weights outside", 400, &["soup.toml"]);
    set(&toml, Some(b"format = 2".to_vec()));
    refused("no manifest", 400, &["s3://signed/soups/two/soup.toml"]);

    let fault = |path: &str, fault: Fault| {
        set(path, sound.get(path).cloned());
        remote.bucket.content().faults.insert(path.to_owned(), fault);
    };
    let other = Fault::Replaced(written("beta = 0.6", "beta = 0.55"));
    fault(&toml, other);
    refused("a manifest that is replaced meanwhile", 400, &["soup.toml", "was replaced"]);
    fault(&settings, Fault::Replaced(b"{}".to_vec()));
    refused("settings that are replaced meanwhile", 400, &["adapter_config.json", "was replaced"]);
    fault(&weights, Fault::Status(StatusCode::FORBIDDEN));
    refused("a forbidden object", 400, &[WEIGHTS, "403"]);
    fault(&weights, Fault::Breaks { after: 500, times: 100 });
    refused("a server that dies each time", 502, &[WEIGHTS]);
    fault(&weights, Fault::Status(StatusCode::INTERNAL_SERVER_ERROR));
    refused("a server that fails", 502, &[WEIGHTS, "500"]);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let target = format!("http://{}/{weights}", elsewhere.local_addr().unwrap());
    fault(&weights, Fault::Redirect(target));
    refused("a redirect", 502, &[WEIGHTS, "redirects are not followed"]);
    assert!(elsewhere.accept().is_err(), "the redirect was followed");

    // One that breaks once is gone on with where it broke.
    fault(&weights, Fault::Breaks { after: 500, times: 1 });
    remote.put(json!({"source": "s3://signed/soups/two"})).ok();
    let content = remote.bucket.content();
    assert!(content.asked.contains(&("GET".to_owned(), weights.clone(), 500)));
    drop(content);
    assert_eq!(remote.answer()["text"], remote.expected("two")["text"]);
}

#[test]
fn of_two_who_ask_at_once_one_fetches_while_the_former_soup_serves() {
    let remote = Remote::start("s3://signed/soups");
    let answer = remote.answer();
    let weights = format!("signed/soups/two/{WEIGHTS}");
    remote.bucket.hold(&weights);
    thread::scope(|scope| {
        let (server, key) = (&remote.process.server, &remote.key);
        let put = move || {
            call(server, "PUT", ROUTE, key, Some(json!({"source": "s3://signed/soups/two"})))
        };
        let both = [(), ()].map(|()| scope.spawn(put));
        remote.bucket.wait_for(&weights);
        assert_eq!(remote.answer()["text"], answer["text"]);
        assert_eq!(remote.soup()["source"], "s3://signed/soups/one");
        remote.bucket.release();
        let statuses = both.map(|put| put.join().unwrap().status);
        // The second one finds all of it, or the former generation still there.
        assert!(statuses.contains(&200), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
    });
    assert_eq!((remote.kept().len(), remote.bucket.read(&weights)), (2, 1));
    assert_eq!(remote.answer()["text"], remote.expected("two")["text"]);
}

#[test]
fn a_request_names_no_address_that_the_operator_has_not_allowed() {
    let remote = Remote::start("s3://signed/soups");
    let before = remote.soup();
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let asked = remote.bucket.content().asked.len();
    for source in [
        format!("http://{}/soup", elsewhere.local_addr().unwrap()),
        format!("http://{}/signed/soups/two", remote.bucket.address),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "s3://signed/soups-2/two".to_owned(),
        "s3://signed".to_owned(),
        "s3://open/soups/two".to_owned(),
        "gs://signed/soups/two".to_owned(),
        "s3://signed/soups/../private".to_owned(),
        "s3://signed/soups/%2e%2e/private".to_owned(),
        "s3://signed/soups//two".to_owned(),
        "s3://signed/soups/two?versionId=1".to_owned(),
        "s3://signed@elsewhere/soups/two".to_owned(),
        "file:///etc".to_owned(),
    ] {
        let refused = remote.put(json!({"source": source}));
        let (code, param, message) = refused.error();
        assert_eq!((refused.status, code), (400, "invalid_value"), "{source}: {message}");
        assert_eq!(param, Some("source"), "{source}: {message}");
        assert!(message.contains("soup_source"), "{source}: {message}");
    }
    // Nor a directory, without soup_root.
    let refused = remote.put(json!({"source": "two"}));
    assert_eq!((refused.status, refused.error().0), (403, "not_permitted"));
    assert!(refused.error().2.contains("soup_root"), "{}", refused.body);
    for digest in [json!(1), json!("abc"), json!("A".repeat(64))] {
        let body = json!({"source": "s3://signed/soups/two", "digest": digest});
        let refused = remote.put(body);
        assert_eq!((refused.status, refused.error().1), (400, Some("digest")), "{digest}");
    }
    assert!(elsewhere.accept().is_err(), "something was asked of another place");
    assert_eq!(remote.bucket.content().asked.len(), asked);
    assert_eq!(remote.soup(), before);
}

#[test]
fn options_about_addresses_are_checked_at_the_start() {
    let address: SoupAddress = "s3://models/soups".parse().unwrap();
    let some = ServeOptions { soup: Some("soup".into()), ..Default::default() };
    let keys = Some(PathBuf::from("keys.toml"));
    let allowed = ServeOptions { soup_source: Some(vec![address]), ..some.clone() };
    let open = ServeOptions { named_keys: None, ..allowed.clone() };
    let error = open.check().unwrap_err().to_string();
    assert!(error.contains("named_keys") && error.contains("soup_source"), "{error}");
    let offline = || StoreOptions { offline: Some(true), ..Default::default() };
    let cut_off = ServeOptions { named_keys: keys, store: offline(), ..allowed };
    let error = cut_off.check().unwrap_err().to_string();
    assert!(error.contains("offline") && error.contains("soup_source"), "{error}");
    let remote = ServeOptions { soup: Some("s3://b/a".into()), store: offline(), ..some.clone() };
    assert!(remote.check().unwrap_err().to_string().contains("offline"));
    let wrong = ServeOptions { soup: Some("s3://b/../a".into()), ..some };
    let error = wrong.check().unwrap_err().to_string();
    assert!(error.contains("s3://b/../a") && error.contains("s3://BUCKET/PATH"), "{error}");
}
