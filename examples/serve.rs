//! Serves a soup inside this process, asks it once over HTTP, and stops it.
//!
//!     cargo run --release --example serve -- backbones

use std::{env, error::Error, path::Path, thread, time::Duration};

use ladle::{config::ServeOptions, http};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use ureq::Agent;

/// The answer of the soup at `soup` to `body`, a request of `POST /generate`.
pub async fn ask(soup: &Path, body: Value) -> Result<Value, Box<dyn Error>> {
    let options = ServeOptions { soup: Some(soup.into()), port: Some(0), ..Default::default() };
    let config = options.check()?;
    let listener = http::bind(&config).await?;
    let url = format!("http://{}/generate", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(config, listener, async { _ = stopped.await }));

    let ended = server.abort_handle();
    let answer = tokio::task::spawn_blocking(move || -> Result<Value, ureq::Error> {
        let agent =
            Agent::new_with_config(Agent::config_builder().http_status_as_error(false).build());
        loop {
            let mut answer = agent.post(&url).send_json(&body)?;
            // 503: the soup is still being loaded. A soup that cannot be served ends the server.
            if answer.status() != 503 || ended.is_finished() {
                return answer.body_mut().read_json();
            }
            thread::sleep(Duration::from_millis(20));
        }
    })
    .await?;
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
