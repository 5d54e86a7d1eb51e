use std::{path::PathBuf, process::Command};

use ladle::config::{ApiKey, ServeOptions};

use crate::{
    prerequisite::skip_without,
    server::{Server, options},
};

#[test]
fn the_official_openai_client_works_unmodified() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("LADLE_TEST_PYTHON").map_or(root.join(".venv/bin/python"), PathBuf::from);
    if !python.exists() {
        let python = python.display();
        return skip_without(&format!("{python} with the openai package (or LADLE_TEST_PYTHON)"));
    }
    let key = "sk-test-key";
    let server =
        Server::start(ServeOptions { api_keys: Some(vec![ApiKey(key.into())]), ..options() });
    let output = Command::new(python)
        .arg(root.join("tests/sdk/test_openai.py"))
        .args([server.url.as_str(), key])
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
}
