//! Tests that need what `scripts/test` fetches.

use std::io::Write;

/// Tells that a test is skipped for want of `what`. Under `scripts/test`, which fetches everything
/// and says so with LADLE_TEST_COMPLETE, that is a failure.
pub fn skip_without(what: &str) {
    let message = format!("{what} is not there: run scripts/test, which gets it");
    assert!(std::env::var_os("LADLE_TEST_COMPLETE").is_none(), "{message}");
    // Not `eprintln!`: libtest shows what that prints of failed tests only.
    let _ = writeln!(std::io::stderr(), "skipped: {message}");
}
