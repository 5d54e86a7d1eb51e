//! Serves a soup inside this process, asks it once over HTTP, and stops it.
//!
//!     cargo run --release --example serve -- backbones

use std::{env, error::Error, path::Path, time::Duration};

use ladle::{config::ServeOptions, http};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// The answer of the soup at `soup` to `body`, a request of `POST /generate`.
pub async fn ask(soup: &Path, body: Value) -> Result<Value, Box<dyn Error>> {
    let options = ServeOptions { soup: Some(soup.into()), port: Some(0), ..Default::default() };
    let config = options.check()?;
    let listener = http::bind(&config).await?;
    let url = format!("http://{}/generate", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(config, listener, async { _ = stopped.await }));

    let client = reqwest::Client::new();
    let answer = loop {
        let answer = client.post(&url).json(&body).send().await?;
        // 503: the soup is still being loaded. A soup that cannot be served ends the server.
        if answer.status() != 503 || server.is_finished() {
            break answer.json().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    drop(stop);
    server.await??;
    Ok(answer?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let soup = env::args().nth(1).ok_or("expected an argument: SOUP")?;
    let body = json!({"prompt": "The sea is", "max_tokens": 16, "temperature": 0});
    println!("{:#}", ask(Path::new(&soup), body).await?);
    Ok(())
}
