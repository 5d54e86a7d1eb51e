//! Several soups beside each other: each answers as on a server of its own.

use std::{collections::BTreeMap, fs, thread};

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::{
    keys::{failed, post},
    process::Process,
    server::{Reply, Server, copy, events, fixture, options, with},
    soups::{Managed, call, edit, question},
    structured::validate,
};

const TINY: &str = "soup-tiny";
const FULL: &str = "soup-tiny-full";

/// What a soup answers on a server of its own.
fn alone(soup: &str) -> Vec<Value> {
    let server = Server::start(ServeOptions { soup: Some(fixture(soup)), ..options() });
    (0..4).map(|index| server.generate(question(index))["text"].clone()).collect()
}

fn both() -> BTreeMap<&'static str, Vec<Value>> {
    let both = BTreeMap::from([(TINY, alone(TINY)), (FULL, alone(FULL))]);
    assert_ne!(both[TINY], both[FULL]);
    both
}

fn asked(soup: &str, index: usize) -> Value {
    with(question(index), json!({"model": soup}))
}

#[test]
fn requests_find_their_soup_by_the_model_on_every_route() {
    let expected = both();
    let with_soup = Some(vec![fixture(FULL)]);
    let server = Server::start(ServeOptions { with_soup, ..options() });
    thread::scope(|scope| {
        for client in 0..4 {
            let (server, expected) = (&server, &expected);
            scope.spawn(move || {
                for (soup, index) in [TINY, FULL].into_iter().cycle().zip(client..client + 8) {
                    let answer = server.generate(asked(soup, index % 4));
                    assert_eq!(answer["text"], expected[soup][index % 4], "{soup} {index}");
                    assert_eq!(answer["soup"]["name"], soup);
                }
            });
        }
    });
    // Who names none gets the first one.
    assert_eq!(server.generate(question(1))["text"], expected[TINY][1]);

    let listed = server.get("/v1/models").ok();
    let ids: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&TINY) && ids.contains(&FULL), "{ids:?}");
    assert!(ids.contains(&"soup-tiny-full:terse"), "{ids:?}");
    for (path, name) in [
        ("/v1/soup", TINY),
        ("/v1/soup?model=soup-tiny", TINY),
        ("/v1/soup?model=soup-tiny-full", FULL),
        ("/v1/soup?model=soup-tiny-full%3Aterse", FULL),
    ] {
        assert_eq!(server.get(path).ok()["name"], name, "{path}");
    }
    assert_eq!(server.get("/v1/soup?model=a&model=b").status, 400);
    let model = "soup-tiny-full:helpful=1,brief=3";
    assert_eq!(server.get(&format!("/v1/models/{model}")).ok()["id"], model);
    // The weights behind an answer: the preference of the id, solved with that soup's own B.
    let solved = |soup: &str| {
        let preference = json!([1, 0, 3]);
        server.post("/v1/solve", json!({"model": soup, "preference": preference})).ok()
    };
    assert_ne!(solved(TINY)["lambda"], solved(FULL)["lambda"]);
    let echoed = |path: &str, more: Value| {
        let body = with(json!({"model": model, "max_tokens": 4}), more);
        server.post(path, body).ok()
    };
    let messages = json!({"messages": [{"role": "user", "content": "Hi"}]});
    for (path, more) in [
        ("/v1/completions", json!({"prompt": "A soup"})),
        ("/v1/chat/completions", messages.clone()),
        ("/v1/messages", messages),
        ("/v1/responses", json!({"input": "Hi"})),
    ] {
        let more = if path.ends_with("responses") {
            json!({"input": "Hi", "max_output_tokens": 16, "max_tokens": null})
        } else {
            more
        };
        let answer = echoed(path, more);
        assert!(answer.to_string().contains(&solved_digest(&server)), "{path}: {answer}");
    }
    let refused = server.post("/generate", asked("soup", 0));
    let (code, _, message) = refused.error();
    assert_eq!((refused.status, code), (404, "model_not_found"), "{message}");
    assert!(message.contains("\"soup-tiny\", \"soup-tiny-full\""), "{message}");
    for soup in [TINY, FULL] {
        assert_eq!(
            server.metric(&format!("ladle_soup_requests_running{{model_name=\"{soup}\"}}")),
            0.0
        );
    }
}

/// The digest of the second soup.
fn solved_digest(server: &Server) -> String {
    server.get("/v1/soup?model=soup-tiny-full").ok()["digest"].as_str().unwrap().to_owned()
}

/// A server of the first soup, and the second one beside its directory.
fn managed(more: ServeOptions) -> Managed {
    let managed = Managed::start(more);
    fs::create_dir(managed.path("full")).unwrap();
    copy(&fixture(FULL), &managed.path("full"));
    edit(&managed.path("full"), "../soup-tiny/base", "../one/base");
    managed
}

fn add(managed: &Managed, source: &str) -> Reply {
    post(&managed.server, &managed.key, "/admin/soups", &json!({"source": source}))
}

fn remove(managed: &Managed, name: &str) -> Reply {
    call(&managed.server, "DELETE", &format!("/admin/soups/{name}"), &managed.key, None)
}

#[test]
fn a_soup_is_added_and_removed_while_others_answer() {
    let (managed, expected) = (managed(ServeOptions::default()), both());
    let added = add(&managed, "full");
    assert_eq!(added.status, 201, "{}", added.body);
    assert_eq!(added.body["name"], FULL);
    let document = managed.server.get("/openapi.json").ok();
    let schema = &document["paths"]["/admin/soups"]["post"]["responses"]["201"]["content"]["application/json"]
        ["schema"];
    let schema = with(schema.clone(), json!({"components": document["components"]}));
    validate(&[(schema, added.body.to_string())]);
    for soup in [TINY, FULL] {
        assert_eq!(managed.generate(&asked(soup, 2))["text"], expected[soup][2], "{soup}");
    }
    // Its name is taken now, and it has generations of its own.
    let refused = add(&managed, "full");
    assert_eq!((refused.status, refused.error().1), (400, Some("source")), "{}", refused.body);
    assert!(refused.error().2.contains("served already"), "{}", refused.body);
    assert_eq!(add(&managed, "two").status, 400);
    let route = "/admin/soups/soup-tiny-full";
    let put = |body: Value| call(&managed.server, "PUT", route, &managed.key, Some(body));
    assert_eq!(put(json!({"source": "one"})).status, 400);
    let again = put(json!({"source": "full", "if_generation": added.body["generation"]})).ok();
    assert!(again["generation"].as_u64() > added.body["generation"].as_u64(), "{again}");
    managed.engines.lock().unwrap().clear();

    let before = managed.metric("ladle_generated_tokens_total");
    let long = with(asked(FULL, 0), json!({"stream": true, "max_tokens": 200}));
    let request = managed.server.client.post(format!("{}/generate", managed.server.url));
    let mut stream = events(request.bearer_auth(&managed.key).json(&long).send().unwrap());
    stream.next().unwrap();
    assert_eq!(remove(&managed, FULL).status, 204);
    let gone = post(&managed.server, &managed.key, "/generate", &asked(FULL, 0));
    assert_eq!((gone.status, gone.error().0), (404, "model_not_found"));
    assert_eq!(remove(&managed, FULL).status, 404);
    let (name, data) = stream.last().unwrap();
    let answer: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((name.as_str(), &answer["soup"]["name"]), ("done", &json!(FULL)), "{data}");
    assert!(answer["text"].as_str().unwrap().starts_with(expected[FULL][0].as_str().unwrap()));
    managed.server.wait_until("drained", |_| managed.metric("ladle_soup_draining") == 0.0);
    assert_eq!(managed.metric("ladle_generated_tokens_total"), before + 200.0);

    // The first one stays, and answers throughout.
    let kept = remove(&managed, TINY);
    assert_eq!((kept.status, kept.error().1), (400, Some("name")), "{}", kept.body);
    assert_eq!(managed.generate(&question(3))["text"], expected[TINY][3]);
    assert_eq!(add(&managed, "full").status, 201);
}

#[test]
fn only_who_may_adds_and_removes() {
    let managed = managed(ServeOptions::default());
    let body = || Some(json!({"source": "full"}));
    for (key, status) in [("", 401), ("wrong", 401)] {
        let server = &managed.server;
        assert_eq!(call(server, "POST", "/admin/soups", key, body()).status, status);
        assert_eq!(call(server, "DELETE", "/admin/soups/soup-tiny", key, None).status, status);
    }
    for (source, part) in
        [("../full", "soup_root"), ("absent", "soup_root"), ("s3://a/b", "soup_source")]
    {
        let refused = add(&managed, source);
        assert!(refused.error().2.contains(part), "{source}: {}", refused.body);
    }
    let unknown = json!({"source": "full", "if_generation": 3});
    let refused = post(&managed.server, &managed.key, "/admin/soups", &unknown);
    assert_eq!((refused.status, refused.error().1), (400, Some("if_generation")));
    let open = Server::shared();
    assert_eq!(call(open, "POST", "/admin/soups", "", body()).status, 403);
    assert_eq!(call(open, "DELETE", "/admin/soups/soup-tiny", "", None).status, 403);
}

#[test]
fn an_engine_that_dies_takes_no_other_soup_with_it() {
    let (managed, expected) = (managed(ServeOptions::default()), both());
    assert_eq!(add(&managed, "full").status, 201);
    let engine = managed.engines.lock().unwrap()[1].clone();
    engine.abort();
    for index in 0..4 {
        assert_eq!(managed.generate(&asked(TINY, index))["text"], expected[TINY][index]);
    }
    managed.server.wait_until("it is back", |server| {
        let answer = post(server, &managed.key, "/generate", &asked(FULL, 1));
        answer.status == 200 && answer.body["text"] == expected[FULL][1]
    });
}

#[test]
fn a_base_that_several_soups_have_is_in_memory_once() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for (from, to) in [(TINY, "one"), (FULL, "shares"), (FULL, "copied")] {
        fs::create_dir(path(to)).unwrap();
        copy(&fixture(from), &path(to));
    }
    fs::create_dir(path("copied/base")).unwrap();
    copy(&path("one/base"), &path("copied/base"));
    edit(&path("shares"), "../soup-tiny/base", "../one/base");
    edit(&path("copied"), "../soup-tiny/base", "base");
    // Bytes that the second soup adds, as the division of the memory counts them.
    let added = |second: &str| {
        let second = path(second).into_os_string().into_string().unwrap();
        let more = ["--max-memory", "2GiB", "--with-soup", &second];
        let process = Process::start(&path("one"), &more);
        process.wait_for(&["memory is divided"]);
        let line: Value = serde_json::from_str(&process.wait_for(&["memory is divided"])).unwrap();
        line["fields"]["weights"].as_u64().unwrap()
    };
    let base = fs::metadata(path("one/base/model.safetensors")).unwrap().len();
    assert_eq!(added("copied") - added("shares"), base);
}

#[test]
fn soups_of_one_name_do_not_start_together() {
    let with_soup = Some(vec![fixture(TINY)]);
    let error = failed(ServeOptions { with_soup, ..options() });
    assert!(error.contains("\"soup-tiny\" is served already"), "{error}");
    let error = ServeOptions { with_soup: Some(vec!["s3:/a".into(), "s3://".into()]), ..options() };
    let error = error.check().unwrap_err().to_string();
    assert!(error.contains("with_soup"), "{error}");
}
