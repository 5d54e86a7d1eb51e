//! The routes, and the layers around their handlers.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, Uri, header::RETRY_AFTER},
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::{get, post, put},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, CorsLayer},
};

use super::{
    admin, anthropic,
    app::App,
    error::{ApiError, shorten},
    generate, limits, observe, openai, openapi, playground, responses, soups,
};

/// The routes with all layers.
pub fn router(app: Arc<App>, allow_origin: Option<AllowOrigin>) -> Router {
    // These routes ask for a key and count against the limits.
    let work = Router::new()
        .route("/generate", post(generate::handle))
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/embeddings", post(openai::embeddings::handle))
        .route("/v1/messages", post(anthropic::handle))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{id}", get(openai::models::get))
        .route("/v1/responses", post(responses::handle))
        .route("/v1/solve", post(admin::solve))
        .route("/v1/soup", get(admin::soup))
        .route("/tokenizer_info", get(admin::tokenizer_info))
        .route("/tokenize", post(admin::tokenize))
        .route("/detokenize", post(admin::detokenize))
        .route("/admin/soups", get(soups::list).post(soups::add))
        .route("/admin/soups/{name}", put(soups::replace).delete(soups::remove))
        .route_layer(from_fn_with_state(app.clone(), limits::admit));
    let open = Router::new()
        .route("/", get(playground::page))
        .route("/health", get(admin::health))
        .route("/ready", get(admin::ready))
        .route("/openapi.json", get(openapi::document));
    let open = match app.metrics_apart() {
        true => open,
        false => open.route("/metrics", get(admin::metrics)),
    };
    let routes = work.merge(open).fallback(not_found).method_not_allowed_fallback(wrong_method);
    harden(routes, allow_origin)
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

/// The routes of an address of their own: metrics, and what probes ask.
pub fn metrics_router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/metrics", get(admin::open_metrics))
        .route("/health", get(admin::health))
        .route("/ready", get(admin::ready))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method);
    harden(routes, None).with_state(app)
}

/// Adds the layers that turn a handler's panic into an error, and CORS.
fn harden<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    allow_origin: Option<AllowOrigin>,
) -> Router<S> {
    let routes = match allow_origin {
        None => routes,
        Some(origins) => routes.layer(
            CorsLayer::new()
                .allow_origin(origins)
                .allow_methods([Method::GET, Method::POST])
                // Official clients send headers of their own (`x-stainless-…`).
                .allow_headers(AllowHeaders::mirror_request())
                .expose_headers([RETRY_AFTER, HeaderName::from_static("x-request-id")]),
        ),
    };
    routes.layer(CatchPanicLayer::custom(ApiError::from_panic)).layer(map_response(no_sniffing))
}

/// Browsers must take an answer for what its content type says.
async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::Route { path: shorten(uri.path()) }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::Method { method: shorten(method.as_str()), path: shorten(uri.path()) }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        extract::Request,
    };
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_of_its_request_alone() {
        async fn fails() -> &'static str {
            panic!("a secret of the server")
        }
        let routes =
            Router::new().route("/fails", get(fails)).route("/works", get(|| async { "fine" }));
        let routes = harden(routes, None);
        let ask =
            |path: &str| routes.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
        let failed = ask("/fails").await.unwrap();
        assert_eq!(failed.status(), 500);
        let body = to_bytes(failed.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "internal_error");
        assert!(!body.to_string().contains("secret"), "{body}");
        assert_eq!(ask("/works").await.unwrap().status(), 200);
    }
}
